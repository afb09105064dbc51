package server

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// sweep verifies the repository.
func (b *bench) sweep(r httpapi.SweepRequest) catalog.Task {
	b.t.Helper()
	return b.ended(b.StartRepositoryVerify(b.t.Context(), httpapi.Start{}, b.repo, r))
}

func (b *bench) point(id string) catalog.RestorePoint {
	b.t.Helper()
	p, err := b.GetRestorePoint(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return p.RestorePoint
}

func (b *bench) info() httpapi.RepositoryInfo {
	b.t.Helper()
	info, err := b.GetRepository(b.t.Context(), b.repo)
	if err != nil {
		b.t.Fatal(err)
	}
	return info
}

// events returns the messages of a run, one a line.
func (b *bench) events(run string) string {
	b.t.Helper()
	events, err := b.ListRunEvents(b.t.Context(), run, 0, 1000)
	if err != nil {
		b.t.Fatal(err)
	}
	var lines []string
	for _, e := range events {
		lines = append(lines, e.Message)
	}
	return strings.Join(lines, "\n")
}

func TestVerifyOfARepositoryNamesWhatIsTouched(t *testing.T) {
	b := newBench(t)
	first := b.backup()
	b.write("disk0", 64<<10, 2<<20)
	second := b.backup()
	task := b.sweep(httpapi.SweepRequest{})
	if task.State != catalog.Succeeded || !task.Result.Swept.Complete || task.Result.Swept.PointsProven != 2 || task.Result.BytesVerified == 0 {
		t.Fatalf("verify = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	for _, id := range []string{first.ID, second.ID} {
		if p := b.point(id); p.VerifyResult != catalog.VerifyGood || p.Verified == nil {
			t.Errorf("restore point after the verification: %q, %v", p.VerifyResult, p.Verified)
		}
	}
	if v := b.info().Verification; v.LastCompleted == nil || v.CycleStarted != nil || v.DamagedPacks+v.DamagedPoints != 0 {
		t.Errorf("verification = %+v", v)
	}
	b.rot()
	task = b.sweep(httpapi.SweepRequest{})
	if task.State != catalog.Failed || task.Error.Kind != "corrupt" || !strings.Contains(task.Error.What, "web (2)") || task.Result.Swept.PointsDamaged != 2 {
		t.Fatalf("verify of damaged = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	lines := b.events(task.RunID)
	for _, want := range []string{"VM web: 2 restore points", first.ID, second.ID, "disk disk0:", "packs/"} {
		if !strings.Contains(lines, want) {
			t.Errorf("the events do not name %q:\n%s", want, lines)
		}
	}
	for _, id := range []string{first.ID, second.ID} {
		if p := b.point(id); p.VerifyResult != catalog.VerifyDamaged || p.VerifyError == nil {
			t.Errorf("restore point that is damaged: %q, %+v", p.VerifyResult, p.VerifyError)
		}
	}
	info := b.info()
	if info.Status != catalog.HealthProblem || info.LastError.Kind != "corrupt" || info.Verification.DamagedPoints != 2 || info.Verification.DamagedPacks == 0 || info.Usage == nil {
		t.Errorf("repository = %s, %+v, %+v", info.Status, info.LastError, info.Verification)
	}
	damage, err := b.RepositoryDamage(t.Context(), b.repo)
	if err != nil || len(damage.Packs) != info.Verification.DamagedPacks || len(damage.Touched) != 2 {
		t.Fatalf("damage = %+v, %v", damage, err)
	}
	if d := damage.Touched[0]; d.VMName != "web" || d.VMID != b.vmID || d.RestorePoint != first.ID || len(d.Images) == 0 || d.Images[0].Bytes == 0 {
		t.Errorf("touched = %+v", d)
	}
}

func TestVerifyOfARepositoryGoesOnAfterARestart(t *testing.T) {
	b := newBench(t)
	for i := range int64(3) {
		b.write("disk0", 64<<10, i<<20)
		b.backup()
	}
	var packs, calls int
	for calls = 1; ; calls++ {
		task := b.sweep(httpapi.SweepRequest{BudgetBytes: 1})
		if task.State != catalog.Succeeded {
			t.Fatalf("verify = %s, %+v", task.State, task.Error)
		}
		packs += task.Result.Swept.Packs
		v := b.info().Verification
		if task.Result.Swept.Complete {
			if v.LastCompleted == nil || v.CycleStarted != nil {
				t.Errorf("at the end of the cycle: %+v", v)
			}
			break
		}
		if v.CycleStarted == nil || v.DoneBytes+task.Result.Swept.BytesLeft != v.TotalBytes || v.DoneBytes == 0 {
			t.Errorf("in the cycle: %+v, %d left", v, task.Result.Swept.BytesLeft)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.start()
	}
	if want := b.info().Usage.Packs; packs != want || calls != want {
		t.Errorf("%d packs were read in %d calls, want each of %d once", packs, calls, want)
	}
}

func TestSpaceAndWhatPruningFrees(t *testing.T) {
	b := newBench(t)
	var points []string
	for i := range int64(3) {
		b.write("disk0", 128<<10, i<<20)
		points = append(points, b.backup().ID)
	}
	space, err := b.RepositorySpace(t.Context(), b.repo, points[:1])
	if err != nil || len(space.Series) != 1 || len(space.SpaceReport.RestorePoints) != 3 || space.WouldFree == nil {
		t.Fatalf("space = %+v, %v", space, err)
	}
	sum := space.UnreferencedBytes
	for _, p := range space.SpaceReport.RestorePoints {
		sum += p.FairShareBytes
		if space.Rows[p.ID].VMName != "web" {
			t.Errorf("restore point %s is of %q", p.ID, space.Rows[p.ID].VMName)
		}
	}
	if sum != space.StoredBytes || space.VMs[space.Series[0].Series].VMID != b.vmID {
		t.Errorf("shares and what nobody needs are %d, stored are %d; VMs %v", sum, space.StoredBytes, space.VMs)
	}
	if _, err := b.RepositorySpace(t.Context(), b.repo, []string{"rp_x"}); kindOf(err) != "invalid" {
		t.Errorf("without an unknown restore point: %v, want invalid", err)
	}
	before := b.ended(b.StartCollect(t.Context(), httpapi.Start{}, b.repo, httpapi.CollectRequest{DryRun: true})).Result.Collected
	if err := b.PruneRestorePoint(t.Context(), points[0]); err != nil {
		t.Fatal(err)
	}
	after := b.ended(b.StartCollect(t.Context(), httpapi.Start{}, b.repo, httpapi.CollectRequest{DryRun: true, Compact: -1})).Result.Collected
	if got := after.BytesDead - before.BytesDead; got != *space.WouldFree || got == 0 {
		t.Errorf("pruning made %d bytes needless, %d were promised", got, *space.WouldFree)
	}
	if after.PacksCompacted != 0 {
		t.Errorf("%d packs would be rewritten, although none shall", after.PacksCompacted)
	}
	task := b.ended(b.StartCollect(t.Context(), httpapi.Start{}, b.repo, httpapi.CollectRequest{Compact: 1}))
	if task.State != catalog.Succeeded || task.Result.BytesFreed == 0 || task.Result.Collected.PacksCompacted == 0 {
		t.Errorf("collect = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	for i, id := range points[1:] {
		if got := b.verify(id); got != catalog.Succeeded {
			t.Errorf("restore point %d after the collect: %s", i+1, got)
		}
	}
}

// copyRepository attaches a copy of the repository as another one.
func (b *bench) copyRepository(name string) string {
	b.t.Helper()
	row, err := b.catalog.Repository(b.t.Context(), b.repo)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.Close(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	copyTree(b.t, filepath.Join(b.root, "repo"), filepath.Join(b.root, name))
	b.start()
	repo, err := b.AddRepository(b.t.Context(), httpapi.NewRepository{
		Name: name, Path: filepath.Join(b.root, name), Attach: true, KeyFile: row.KeyFile,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return repo.ID
}

func TestHealFromACopy(t *testing.T) {
	b := newBench(t)
	point := b.backup()
	from := b.copyRepository("copy")
	b.rot()
	if task := b.sweep(httpapi.SweepRequest{}); task.State != catalog.Failed {
		t.Fatalf("verify of damaged = %s", task.State)
	}
	heal := func(r httpapi.HealRequest) catalog.Task {
		t.Helper()
		return b.ended(b.StartHeal(t.Context(), httpapi.Start{}, b.repo, r))
	}
	task := heal(httpapi.HealRequest{})
	if task.State != catalog.Failed || task.Error.Kind != "corrupt" || !strings.Contains(task.Error.What, "web (1)") || task.Result.Healed.Missing == 0 {
		t.Errorf("heal from nothing = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	if task = heal(httpapi.HealRequest{From: []string{from}, DryRun: true}); task.State != catalog.Succeeded || b.point(point.ID).VerifyResult != catalog.VerifyDamaged {
		t.Errorf("dry run = %s, %+v; restore point %q", task.State, task.Error, b.point(point.ID).VerifyResult)
	}
	task = heal(httpapi.HealRequest{From: []string{from}})
	if h := task.Result.Healed; task.State != catalog.Succeeded || h.Healed == 0 || h.PacksQuarantined == 0 || h.Missing != 0 {
		t.Fatalf("heal = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	if p := b.point(point.ID); p.VerifyResult != "" || p.Verified != nil {
		t.Errorf("healed and not yet verified: %q, %v", p.VerifyResult, p.Verified)
	}
	if info := b.info(); info.Status != catalog.HealthOK {
		t.Errorf("repository = %s, %+v", info.Status, info.LastError)
	}
	if task := b.sweep(httpapi.SweepRequest{}); task.State != catalog.Succeeded || b.point(point.ID).VerifyResult != catalog.VerifyGood {
		t.Errorf("verify of healed = %s, %+v", task.State, task.Error)
	}
	b.restoresTo(point.ID, "restored", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}

func TestHealFromARepositoryOfItsDomain(t *testing.T) {
	b := newBench(t)
	first := b.repo
	other := httpapi.NewRepository{Name: "other", Path: filepath.Join(b.root, "other"), DomainOf: "repo_x"}
	if _, err := b.AddRepository(t.Context(), other); kindOf(err) != "invalid" {
		t.Errorf("domain of nothing: %v, want invalid", err)
	}
	other.DomainOf = first
	repo, err := b.AddRepository(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	b.repo = repo.ID
	b.backup() // the same VM at the same state, into the other one
	b.repo = first
	point := b.backup()
	b.rot()
	if task := b.sweep(httpapi.SweepRequest{}); task.State != catalog.Failed {
		t.Fatalf("verify of damaged = %s", task.State)
	}
	task := b.ended(b.StartHeal(t.Context(), httpapi.Start{}, b.repo, httpapi.HealRequest{From: []string{repo.ID}}))
	if h := task.Result.Healed; h == nil || h.Healed == 0 {
		t.Fatalf("heal = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	b.restoresTo(point.ID, "restored", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
	if _, err := b.catalog.Repository(t.Context(), repo.ID); err != nil {
		t.Error(err)
	}
}

func TestHealFromWhatIsNoCopy(t *testing.T) {
	b := newBench(t)
	other, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "other", Path: filepath.Join(b.root, "other")})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{other.ID, b.repo, "repo_x"} {
		if _, err := b.StartHeal(t.Context(), httpapi.Start{}, b.repo, httpapi.HealRequest{From: []string{id}}); kindOf(err) != "invalid" {
			t.Errorf("heal from %s: %v, want invalid", id, err)
		}
	}
}

// verifies returns the runs that verified a repository, the oldest first.
func (b *bench) verifies() []httpapi.RunInfo {
	b.t.Helper()
	list, err := b.ListRuns(b.t.Context(), catalog.RunFilter{Kind: catalog.KindVerify}, catalog.Page{})
	if err != nil {
		b.t.Fatal(err)
	}
	slices.Reverse(list.Items)
	return list.Items
}

// maintained waits until no maintenance is under way, and returns it by kind.
func (b *bench) maintained() map[catalog.MaintenanceKind]httpapi.MaintenanceInfo {
	b.t.Helper()
	for b.t.Context().Err() == nil {
		list, err := b.ListMaintenance(b.t.Context())
		if err != nil {
			b.t.Fatal(err)
		}
		out, busy := map[catalog.MaintenanceKind]httpapi.MaintenanceInfo{}, false
		for _, m := range list {
			out[m.Kind], busy = m, busy || m.Busy
		}
		if !busy {
			return out
		}
	}
	b.t.Fatal("maintenance does not end")
	return nil
}

// TestMaintenance reads the inventory and collects when that is due, and when somebody asks.
func TestMaintenance(t *testing.T) {
	b := stillBench(t)
	b.platform.AddVM(memplatform.VMSpec{Name: "later", Disks: []int64{1 << 20}})
	now := time.Now().UTC().Truncate(24 * time.Hour).Add(24*time.Hour + 5*time.Hour + 29*time.Minute) // tomorrow, 05:29
	b.routine.began = now.Add(-20 * time.Minute)
	b.keepMaintenance(t.Context(), now, false)
	before := b.maintained()
	if got := before[catalog.MaintainInventory]; !strings.HasPrefix(got.LastResult, "1 of 1 connections read: 2 VMs, 1 new, ") || got.LastError != nil || !got.LastStarted.Equal(now) {
		t.Errorf("inventory = %+v", got)
	}
	if got := b.standing()["later"]; got != "unprotected" {
		t.Errorf("the new VM is %q", got)
	}
	if err := b.ReplaceMaintenance(t.Context(), admin, catalog.Maintenance{Kind: catalog.MaintainCollect, Schedule: "05:30", Windows: []string{"06:00-07:00"}, BudgetBytes: 7 << 20}); err != nil {
		t.Fatal(err)
	}
	b.keepMaintenance(t.Context(), now.Add(2*time.Minute), false)
	if got := b.maintained()[catalog.MaintainCollect]; got.LastStarted != nil {
		t.Errorf("it collects although the window is closed: %+v", got)
	}
	b.keepMaintenance(t.Context(), now.Add(time.Hour), false)
	if got := b.maintained()[catalog.MaintainCollect]; got.LastStarted == nil || !got.LastStarted.Equal(now.Add(time.Hour)) || got.LastResult != "1 of 1 repositories are collected" {
		t.Errorf("collect = %+v", got)
	} else if tasks, err := b.catalog.TasksOfRuns(t.Context(), []string{got.LastParts[0].RunID}); err != nil || len(tasks[got.LastParts[0].RunID]) != 1 ||
		!strings.Contains(string(tasks[got.LastParts[0].RunID][0].Spec), `"budget":7340032`) {
		t.Errorf("its task is %+v, %v", tasks, err)
	}
	b.idle()
	if err := b.ReplaceMaintenance(t.Context(), admin, catalog.Maintenance{Kind: catalog.MaintainInventory, Schedule: "*:00", Paused: true}); err != nil {
		t.Fatal(err)
	}
	b.keepMaintenance(t.Context(), now.Add(9*time.Hour), false)
	b.idle()
	paused := b.maintained()[catalog.MaintainInventory]
	f := b.platform.Inject("VMs", &memplatform.Fault{Err: fault.New(fault.Transient, "list VMs", "", "planted")})
	if err := b.RunMaintenance(t.Context(), admin, catalog.MaintainInventory); err != nil {
		t.Fatal(err)
	}
	got := b.maintained()[catalog.MaintainInventory]
	if paused.LastStarted.After(now.Add(time.Hour)) || f.Fired() == 0 || got.LastError == nil || !strings.Contains(got.LastError.What, "planted") || got.LastResult != "0 of 1 connections read: 0 VMs, 0 new, 0 changed, 0 gone" {
		t.Errorf("the fault fired %d times; paused %+v, inventory %+v", f.Fired(), paused, got)
	}
	for _, err := range []error{
		b.ReplaceMaintenance(t.Context(), admin, catalog.Maintenance{Kind: "x", Schedule: "daily"}), b.RunMaintenance(t.Context(), admin, "x"),
	} {
		if kindOf(err) != "not-found" {
			t.Errorf("maintenance that there is not: %v", err)
		}
	}
	for _, m := range []catalog.Maintenance{{Kind: catalog.MaintainCollect, Schedule: "x"}, {Kind: catalog.MaintainSweep, Schedule: "daily", BudgetBytes: 1}, {Kind: catalog.MaintainVerify, Schedule: "daily", Windows: []string{"x"}}} {
		if err := b.ReplaceMaintenance(t.Context(), admin, m); kindOf(err) != "invalid" {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

func TestRepositoryIsVerifiedWhenItIsDue(t *testing.T) {
	b := newBench(t)
	b.backup()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.ticks = make(chan time.Time)
	b.start()
	// A tick is taken only when the one before it has been dealt with, so a second one tells that the first is over.
	look := func(in time.Duration) []httpapi.RunInfo {
		t.Helper()
		for range 2 {
			select {
			case b.ticks <- time.Now().Add(in):
			case <-t.Context().Done():
				t.Fatal("nobody looks")
			}
		}
		b.maintained()
		runs := b.verifies()
		for _, r := range runs {
			b.await(b.watch.end(r.Tasks[0].ID))
		}
		return runs
	}
	const day = 24 * time.Hour
	if runs := look(29 * day); len(runs) != 0 {
		t.Errorf("verified before it was due: %+v", runs)
	}
	never := httpapi.VerificationSettings{EveryDays: 0}
	if _, err := b.UpdateRepository(t.Context(), b.repo, httpapi.RepositoryChange{Verification: &never}); err != nil {
		t.Fatal(err)
	}
	if runs := look(35 * day); len(runs) != 0 {
		t.Errorf("verified although it never shall be: %+v", runs)
	}
	info, err := b.UpdateRepository(t.Context(), b.repo, httpapi.RepositoryChange{Verification: &httpapi.VerificationSettings{EveryDays: 7, BytesPerSecond: 1 << 30}})
	if err != nil || info.Verification.EveryDays != 7 || info.Verification.BytesPerSecond != 1<<30 {
		t.Fatalf("repository = %+v, %v", info.Verification, err)
	}
	runs := look(36 * day)
	if len(runs) == 0 || runs[0].Trigger != catalog.TriggerScheduled || runs[0].User != "" {
		t.Fatalf("runs = %+v", runs)
	}
	if v := b.info().Verification; v.LastCompleted == nil || v.EveryDays != 7 {
		t.Errorf("verification = %+v", v)
	}
	said, err := b.maintainVerify(t.Context(), catalog.Maintenance{BudgetBytes: 1 << 30}, time.Now().Add(6*day))
	if again := b.verifies(); err != nil || len(again) != len(runs) || said.text != "no repository is due" {
		t.Errorf("verified again before it was due: %d runs, then %d; %s, %v", len(runs), len(again), said.text, err)
	}
}
