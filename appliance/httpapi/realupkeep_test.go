package httpapi_test

import (
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/store"
)

// mirror makes a repository on two directories below dir, beside the one of lab.
func (r *real) mirror(dir string) client.Repository {
	r.t.Helper()
	built, err := r.CreateRepositoryWithResponse(r.ctx, nil, client.CreateRepositoryRequest{Name: "mirror", Set: client.NewSet{
		Data: 1, Parity: 1, Members: []client.SetMember{{Path: filepath.Join(dir, "a"), Domain: "x"}, {Path: filepath.Join(dir, "b"), Domain: "y"}},
	}})
	check(r.t, err)
	return got(r.t, built.JSON201, built.HTTPResponse, built.ApplicationProblemJSONDefault)
}

func (r *real) repository(id string) client.Repository {
	r.t.Helper()
	shown, err := r.GetRepositoryWithResponse(r.ctx, id)
	check(r.t, err)
	return got(r.t, shown.JSON200, shown.HTTPResponse, shown.ApplicationProblemJSONDefault)
}

// TestRealUpkeepOfAMirror: a mirror loses a directory, is filled again, verified, measured and looked at; every answer
// is compared with the document.
func TestRealUpkeepOfAMirror(t *testing.T) {
	r := newReal(t)
	vm, _ := r.lab()
	dir := t.TempDir()
	made := r.mirror(dir)
	if made.Redundancy.Parity != 1 || made.Redundancy.CanLose != 1 || len(made.Members) != 2 || made.Verification.EveryDays != 30 {
		t.Errorf("repository %+v", made)
	}
	check(t, r.platform.Write(r.vm.ID, "disk0", []byte(strings.Repeat("mirrored ", 9000)), 0))
	point := r.backup(vm, made.ID)

	disk, away := filepath.Join(dir, "b"), filepath.Join(dir, "away")
	check(t, os.Rename(disk, away))
	shown := r.repository(made.ID)
	if shown.Status != client.StatusProblem || shown.Redundancy.CanLose != 0 || shown.Error.Advice == "" || shown.Usage.RestorePoints != 1 {
		t.Errorf("repository that lost a directory %+v", shown)
	}
	check(t, os.Rename(away, disk))
	emptyFolders(t, filepath.Join(disk, "objects"))
	member := shown.Members[1].ID
	rebuilt, err := r.StartRebuildWithResponse(r.ctx, made.ID, member, &client.StartRebuildParams{Prefer: &wait}, client.RebuildRequest{})
	check(t, err)
	run := r.succeeded(got(t, rebuilt.JSON200, rebuilt.HTTPResponse, rebuilt.ApplicationProblemJSONDefault))
	if res := run.Tasks[0].Result; run.Kind != client.RunRebuild || res.MemberID != member || res.ShardsRepaired == 0 {
		t.Errorf("rebuild %+v", run)
	}
	scrubbed, err := r.StartScrubWithResponse(r.ctx, made.ID, &client.StartScrubParams{Prefer: &wait}, client.ScrubRequest{BytesPerSecond: 1 << 30})
	check(t, err)
	if run = r.succeeded(got(t, scrubbed.JSON200, scrubbed.HTTPResponse, scrubbed.ApplicationProblemJSONDefault)); run.Tasks[0].Result.ShardsRepaired != 0 {
		t.Errorf("scrub after the rebuild %+v", run.Tasks[0].Result)
	}
	if shown = r.repository(made.ID); shown.Redundancy.CanLose != 1 || shown.Redundancy.ObjectsBelow != 0 {
		t.Errorf("repository that was filled again %+v", shown)
	}

	verified, err := r.StartRepositoryVerifyWithResponse(r.ctx, made.ID, &client.StartRepositoryVerifyParams{Prefer: &wait}, client.RepositoryVerifyRequest{})
	check(t, err)
	run = r.succeeded(got(t, verified.JSON200, verified.HTTPResponse, verified.ApplicationProblemJSONDefault))
	if res := run.Tasks[0].Result; run.Kind != client.RunVerify || !res.CycleComplete || res.PointsProven != 1 {
		t.Errorf("verify %+v", res)
	}
	changed, err := r.UpdateRepositoryWithResponse(r.ctx, made.ID, &client.UpdateRepositoryParams{IfMatch: &whatever}, client.UpdateRepositoryRequest{
		Verification: &client.VerificationSettings{EveryDays: 90, BytesPerSecond: 1000}, Compression: client.CompressionHigh,
	})
	check(t, err)
	now := got(t, changed.JSON200, changed.HTTPResponse, changed.ApplicationProblemJSONDefault)
	if now.Compression != client.CompressionHigh {
		t.Errorf("compression %q", now.Compression)
	}
	v := now.Verification
	if v.EveryDays != 90 || v.BytesPerSecond != 1000 || v.LastCompletedAt.IsZero() || !v.CycleStartedAt.IsZero() {
		t.Errorf("verification %+v", v)
	}
	r.measureAndHeal(made.ID, point)
}

// emptyFolders removes all files below dir.
func emptyFolders(t *testing.T, dir string) {
	t.Helper()
	check(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Remove(path)
	}))
}

func (r *real) measureAndHeal(repository string, point client.RestorePoint) {
	r.t.Helper()
	without := []string{point.ID}
	measured, err := r.GetRepositorySpaceWithResponse(r.ctx, repository, &client.GetRepositorySpaceParams{Without: &without})
	check(r.t, err)
	space := got(r.t, measured.JSON200, measured.HTTPResponse, measured.ApplicationProblemJSONDefault)
	if len(space.VMs) != 1 || space.VMs[0].VMName != "web" || len(space.RestorePoints) != 1 || space.WouldFreeBytes == nil ||
		*space.WouldFreeBytes != space.RestorePoints[0].Space.UniqueBytes || *space.WouldFreeBytes == 0 {
		r.t.Errorf("space %+v", space)
	}
	looked, err := r.GetRepositoryDamageWithResponse(r.ctx, repository)
	check(r.t, err)
	if d := got(r.t, looked.JSON200, looked.HTTPResponse, looked.ApplicationProblemJSONDefault); len(d.Packs)+len(d.Touched) != 0 {
		r.t.Errorf("damage %+v", d)
	}
	healed, err := r.StartHealWithResponse(r.ctx, repository, &client.StartHealParams{Prefer: &wait}, client.HealRequest{})
	check(r.t, err)
	run := r.succeeded(got(r.t, healed.JSON200, healed.HTTPResponse, healed.ApplicationProblemJSONDefault))
	if res := run.Tasks[0].Result; run.Kind != client.RunHeal || res.ObjectsMoved+res.ObjectsHealed+res.PacksQuarantined != 0 {
		r.t.Errorf("heal of what is whole %+v", res)
	}
}

// TestRealKeys: a paper key is made, tried and taken away; a key that is wrong is refused.
func TestRealKeys(t *testing.T) {
	r := newReal(t)
	vm, repo := r.lab()
	point := r.backup(vm, repo)
	added, err := r.AddKeyWithResponse(r.ctx, repo, nil, client.AddKeyRequest{Kind: client.KeyPaper, Label: "safe"})
	check(t, err)
	paper := got(t, added.JSON201, added.HTTPResponse, added.ApplicationProblemJSONDefault)
	if _, err := store.ParsePaperKey(paper.Paper); err != nil || paper.Key.Label != "safe" || paper.Key.InUse {
		t.Fatalf("paper key %+v, %v", paper.Key, err)
	}
	drilled, err := r.DrillKeyWithResponse(r.ctx, repo, client.DrillRequest{PaperKey: paper.Paper})
	check(t, err)
	report := got(t, drilled.JSON200, drilled.HTTPResponse, drilled.ApplicationProblemJSONDefault)
	if report.RestorePointID != point.ID || report.VMName != "web" || report.RepositoryID != repo || report.Key.ID != paper.Key.ID {
		t.Errorf("drill %+v", report)
	}
	rotated, err := r.RotateKeyWithResponse(r.ctx, repo, nil)
	check(t, err)
	fresh := got(t, rotated.JSON200, rotated.HTTPResponse, rotated.ApplicationProblemJSONDefault)
	listed, err := r.ListKeysWithResponse(r.ctx, repo)
	check(t, err)
	keys := got(t, listed.JSON200, listed.HTTPResponse, listed.ApplicationProblemJSONDefault).Items
	for _, k := range keys {
		if k.InUse != (k.ID == fresh.ID) {
			t.Errorf("key %+v; the appliance's is %s", k, fresh.ID)
		}
	}
	removed, err := r.RemoveKeyWithResponse(r.ctx, repo, paper.Key.ID, &client.RemoveKeyParams{IfMatch: &whatever})
	check(t, err)
	if removed.StatusCode() != http.StatusNoContent || len(keys) != 2 {
		t.Errorf("remove: %s %s; there were %d keys", removed.Status(), removed.Body, len(keys))
	}
	refused, err := r.DrillKeyWithResponse(r.ctx, repo, client.DrillRequest{PaperKey: paper.Paper})
	check(t, err)
	if p := refused.ApplicationProblemJSONDefault; p == nil || p.Type != "/problems/denied" || p.Advice == "" || strings.Contains(string(refused.Body), "CAIRN-PAPER") {
		t.Errorf("drill with a key that was taken away: %s %+v", refused.Status(), p)
	}
	if last, err := r.RemoveKeyWithResponse(r.ctx, repo, fresh.ID, &client.RemoveKeyParams{IfMatch: &whatever}); err != nil || last.StatusCode() != http.StatusConflict {
		t.Errorf("removing the appliance's own key: %s, %v", last.Status(), err)
	}
}
