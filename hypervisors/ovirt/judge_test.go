package ovirt

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/internal/fault"
)

func parsed[T any](t *testing.T, doc, tag string, read apixml.EntityReader[T]) *T {
	t.Helper()
	v, err := apixml.DecodeOne([]byte(doc), tag, read)
	if err != nil {
		t.Fatalf("%s: %v", doc, err)
	}
	return v
}

func TestJudgeSnapshot(t *testing.T) {
	for name, tt := range map[string]struct {
		kind, status, description string
		want                      outcome
	}{
		"being made":                      {"regular", "locked", "cairn-t", pending},
		"being made, of no type yet":      {"", "locked", "cairn-t", pending},
		"made":                            {"regular", "ok", "cairn-t", ready},
		"failed: the active one's id":     {"active", "ok", "Active VM", failed},
		"failed: active with our words":   {"active", "ok", "cairn-t", failed},
		"somebody else's":                 {"regular", "ok", "by hand", failed},
		"another tag's":                   {"regular", "ok", "cairn-t2", failed},
		"in preview":                      {"preview", "in_preview", "cairn-t", failed},
		"ok, and in preview all the same": {"regular", "in_preview", "cairn-t", failed},
		"stateless":                       {"stateless", "ok", "cairn-t", failed},
		"nothing said":                    {"", "", "", failed},
	} {
		s := parsed(t, fmt.Sprintf("<snapshot><snapshot_type>%s</snapshot_type><snapshot_status>%s</snapshot_status><description>%s</description></snapshot>",
			tt.kind, tt.status, tt.description), "snapshot", sdk.XMLSnapshotReadOne)
		if got, why := judgeSnapshot(s, "cairn-t"); got != tt.want || (got == failed) != (why != "") {
			t.Errorf("%s: %v (%s), want %v", name, got, why, tt.want)
		}
	}
}

func TestJudgeRemoval(t *testing.T) {
	for name, tt := range map[string]struct {
		status string
		locked bool
		looks  int
		want   outcome
	}{
		"not begun yet":      {"ok", false, 1, pending},
		"never begun":        {"ok", false, removalLooks, failed},
		"under way":          {"locked", true, 40, pending},
		"came back":          {"ok", true, 2, failed},
		"something unheard":  {"in_preview", true, 2, failed},
		"locked at once":     {"locked", false, 1, pending},
		"nothing said of it": {"", false, 1, failed},
	} {
		s := parsed(t, "<snapshot><snapshot_status>"+tt.status+"</snapshot_status></snapshot>", "snapshot", sdk.XMLSnapshotReadOne)
		if got, _ := judgeRemoval(s, tt.locked, tt.looks); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// transferPhases are all that the API's model has.
var transferPhases = []sdk.ImageTransferPhase{
	"initializing", "transferring", "resuming", "paused_system", "paused_user", "cancelled", "cancelled_system", "cancelled_user",
	"finalizing_success", "finalizing_failure", "finalizing_cleanup", "finished_success", "finished_failure", "finished_cleanup", "unknown",
}

// TestTransferPhases looks that each phase has one meaning while a transfer begins, and one while it ends.
func TestTransferPhases(t *testing.T) {
	got := map[string][]sdk.ImageTransferPhase{}
	for _, p := range transferPhases {
		begins, why := judgeTransfer(p)
		if (begins == failed) != (why != "") {
			t.Errorf("%s: %v without a reason", p, begins)
		}
		word := [...]string{"wait", "read", "give up"}[begins]
		switch {
		case paused(p):
			word += ", resume"
		case over(p) && ending(p):
			t.Errorf("%s is over and ending", p)
		case over(p):
			word += ", over"
		case ending(p):
			word += ", ending"
		}
		got[word] = append(got[word], p)
	}
	want := map[string][]sdk.ImageTransferPhase{
		"read":            {"transferring"},
		"wait":            {"initializing", "resuming", "unknown"},
		"wait, resume":    {"paused_system", "paused_user"},
		"give up, ending": {"cancelled", "cancelled_system", "cancelled_user", "finalizing_success", "finalizing_failure", "finalizing_cleanup"},
		"give up, over":   {"finished_success", "finished_failure", "finished_cleanup"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("phases (-want +got):\n%s", diff)
	}
}

func TestJudgeBackup(t *testing.T) {
	for p, want := range map[sdk.BackupPhase]outcome{
		"initializing": pending, "starting": pending, "creating_scratch_disks": pending, "": pending,
		"ready": ready, "finalizing": failed, "succeeded": failed, "failed": failed,
	} {
		if got, _ := judgeBackup(p); got != want {
			t.Errorf("%s: %v, want %v", p, got, want)
		}
		if backupOver(p) != (p == "succeeded" || p == "failed") {
			t.Errorf("%s: over is %v", p, backupOver(p))
		}
	}
}

func TestAttempts(t *testing.T) {
	for _, tt := range []struct {
		quiesce hypervisors.Quiesce
		asks    bool
		from    string
		want    []attempt
	}{
		{"try", true, "c", []attempt{{"c", true}, {"c", false}, {"", true}, {"", false}}},
		{"require", true, "c", []attempt{{"c", true}, {"", true}}},
		{"never", false, "c", []attempt{{"c", false}, {"", false}}},
		{"try", false, "", []attempt{{"", false}}},
	} {
		if got := attempts(tt.quiesce, tt.asks, tt.from); !slices.Equal(got, tt.want) {
			t.Errorf("attempts(%s, %v, %q) = %v, want %v", tt.quiesce, tt.asks, tt.from, got, tt.want)
		}
	}
}

const (
	diskA = "aaaaaaaa-0000-4000-8000-000000000001"
	diskB = "aaaaaaaa-0000-4000-8000-000000000002"
)

// siteOf makes a survey of a VM with two disks; each is "cow", "raw", "untracked" or "inactive".
func siteOf(t *testing.T, status, a, b string) survey {
	t.Helper()
	disk := func(id, kind string) string {
		format, backup, active := "cow", "incremental", "true"
		switch kind {
		case "raw":
			format = "raw"
		case "untracked":
			backup = "none"
		case "inactive":
			active = "false"
		}
		return fmt.Sprintf(`<disk_attachment id=%q><active>%s</active><disk id=%q><alias>%s</alias><provisioned_size>1048576</provisioned_size>`+
			`<format>%s</format><backup>%s</backup><storage_type>image</storage_type></disk></disk_attachment>`, id, active, id, kind, format, backup)
	}
	x := parsed(t, `<vm id="v"><name>web</name><status>`+status+`</status><disk_attachments>`+disk(diskA, a)+disk(diskB, b)+`</disk_attachments></vm>`, "vm", sdk.XMLVmReadOne)
	return survey{
		x: x, vm: describe(x, &places{}), cluster: cluster{name: "prod", level: level{4, 7}}, version: level{4, 5},
		marks: []mark{{id: "id-1", description: "cairn-last", valid: true, checkpoint: hypervisors.Checkpoint{Disks: []string{diskA, diskB}}}},
	}
}

func TestChoose(t *testing.T) {
	track := hypervisors.FreezeRequest{Track: true}
	since := hypervisors.FreezeRequest{Track: true, Since: "cairn-last"}
	for name, tt := range map[string]struct {
		req    hypervisors.FreezeRequest
		change func(*survey)
		a, b   string
		backup bool
		from   string
		full   []string // parts of the reasons of disks a and b; "" is none
	}{
		"nothing asked for":           {hypervisors.FreezeRequest{}, nil, "cow", "cow", false, "", []string{"", ""}},
		"the first one":               {track, nil, "cow", "cow", true, "", []string{"", ""}},
		"an incremental":              {since, nil, "cow", "cow", true, "id-1", []string{"", ""}},
		"one disk is raw":             {since, nil, "cow", "raw", true, "id-1", []string{"", "not enabled for this disk"}},
		"no disk is tracked":          {since, nil, "untracked", "raw", false, "", []string{"not enabled for any disk", "not enabled for any disk"}},
		"the checkpoint is gone":      {since, func(s *survey) { s.marks = nil }, "cow", "cow", true, "", []string{"not the checkpoint", "not the checkpoint"}},
		"the checkpoint is invalid":   {since, func(s *survey) { s.marks[0].valid = false }, "cow", "cow", true, "", []string{"invalid", "invalid"}},
		"a disk came later":           {since, func(s *survey) { s.marks[0].checkpoint.Disks = []string{diskA} }, "cow", "cow", true, "id-1", []string{"", "does not have this disk"}},
		"another tool's checkpoint":   {hypervisors.FreezeRequest{Since: "theirs"}, func(s *survey) { s.marks[0].description = "theirs" }, "cow", "cow", true, "", []string{"not the checkpoint", "not the checkpoint"}},
		"an old engine":               {since, func(s *survey) { s.version = level{4, 4} }, "cow", "cow", false, "", []string{"older than 4.5", "older than 4.5"}},
		"an old cluster":              {since, func(s *survey) { s.cluster.level = level{4, 4} }, "cow", "cow", false, "", []string{"level 4.4", "level 4.4"}},
		"a newer engine of a new era": {since, func(s *survey) { s.version = level{5, 0} }, "cow", "cow", true, "id-1", []string{"", ""}},
	} {
		s := siteOf(t, "up", tt.a, tt.b)
		if tt.change != nil {
			tt.change(&s)
		}
		p := choose(tt.req, s)
		if p.backup != tt.backup || p.from != tt.from || len(p.disks) != 2 {
			t.Errorf("%s: backup %v from %q with %d disks, want %v from %q with 2", name, p.backup, p.from, len(p.disks), tt.backup, tt.from)
		}
		for i, id := range []string{diskA, diskB} {
			if got := p.full[id]; (got == "") != (tt.full[i] == "") || !strings.Contains(got, tt.full[i]) {
				t.Errorf("%s: disk %d is read as a whole because %q, want %q", name, i, got, tt.full[i])
			}
		}
	}
}

// TestChooseDeactivated: a VM that runs is frozen without its deactivated disks, and the run says so; one that is off has all of them in
// a snapshot.
func TestChooseDeactivated(t *testing.T) {
	since := hypervisors.FreezeRequest{Track: true, Since: "cairn-last"}
	p := choose(since, siteOf(t, "up", "cow", "inactive"))
	if !p.backup || p.from != "id-1" || len(p.disks) != 1 || len(p.skipped) != 1 || !strings.Contains(p.skipped[0].Reason, "deactivated") {
		t.Errorf("up: backup %v from %q, disks %+v, skipped %+v", p.backup, p.from, p.disks, p.skipped)
	}
	p = choose(since, siteOf(t, "down", "cow", "inactive"))
	if p.backup || len(p.disks) != 2 || len(p.skipped) != 0 || !strings.Contains(p.full[diskA], "deactivated") {
		t.Errorf("down: backup %v, disks %+v, skipped %+v, full %q", p.backup, p.disks, p.skipped, p.full)
	}
}

func TestChooseLeavesOut(t *testing.T) {
	s := siteOf(t, "up", "cow", "cow")
	s.vm.Disks[0].Unprotectable = "it is shareable"
	p := choose(hypervisors.FreezeRequest{Exclude: []string{diskB, "none"}}, s)
	if len(p.disks) != 0 || len(p.skipped) != 2 || p.skipped[0].Reason != "it is shareable" || p.skipped[1].Reason != "it is excluded" {
		t.Errorf("disks %+v, skipped %+v", p.disks, p.skipped)
	}
	if !slices.ContainsFunc(p.warnings, func(w string) bool { return strings.Contains(w, "no such disk") }) {
		t.Errorf("warnings %q do not name the disk that is not there", p.warnings)
	}
}

func TestBusy(t *testing.T) {
	snapshot := func(kind, status, description string) func(*testing.T, *survey) {
		return func(t *testing.T, s *survey) {
			s.snapshots = append(s.snapshots, parsed(t, fmt.Sprintf("<snapshot><snapshot_type>%s</snapshot_type><snapshot_status>%s</snapshot_status><description>%s</description></snapshot>",
				kind, status, description), "snapshot", sdk.XMLSnapshotReadOne))
		}
	}
	backup := func(phase string) func(*testing.T, *survey) {
		return func(t *testing.T, s *survey) {
			s.backups = append(s.backups, parsed(t, "<backup><phase>"+phase+"</phase><description>x</description></backup>", "backup", sdk.XMLBackupReadOne))
		}
	}
	for name, tt := range map[string]struct {
		status string
		change func(*testing.T, *survey)
		want   string // part of the error; "" is none
	}{
		"at rest":                  {"up", nil, ""},
		"off":                      {"down", nil, ""},
		"paused":                   {"paused", nil, ""},
		"somebody's snapshot":      {"up", snapshot("regular", "ok", "before the update"), ""},
		"the active one":           {"up", snapshot("active", "ok", "Active VM"), ""},
		"a snapshot being merged":  {"up", snapshot("regular", "locked", "before"), "made or removed"},
		"a preview":                {"up", snapshot("preview", "in_preview", "before"), "preview"},
		"a snapshot of ours":       {"up", snapshot("regular", "ok", "cairn-t"), "earlier backup"},
		"a backup that has ended":  {"up", backup("succeeded"), ""},
		"a backup that has failed": {"up", backup("failed"), ""},
		"another backup":           {"up", backup("ready"), "has a backup"},
		"one that is ending":       {"up", backup("finalizing"), "has a backup"},
		"migrating":                {"migrating", nil, "status"},
		"locked":                   {"image_locked", nil, "status"},
		"the hosted engine":        {"up", func(_ *testing.T, s *survey) { s.vm.Unprotectable = "it is the engine's" }, "it is the engine's"},
	} {
		s := siteOf(t, tt.status, "cow", "cow")
		if tt.change != nil {
			tt.change(t, &s)
		}
		err := busy(s)
		if (err == nil) != (tt.want == "") || err != nil && (fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want a Conflict with %q", name, err, tt.want)
		}
		if err != nil {
			if meaning, advice := fault.Explanation(err); meaning == "" || advice == "" {
				t.Errorf("%s: %v is not explained", name, err)
			}
		}
	}
}

func TestMarksInOrder(t *testing.T) {
	got := inOrder([]mark{{id: "c", parent: "b"}, {id: "a"}, {id: "b", parent: "a"}})
	var ids []string
	for _, m := range got {
		ids = append(ids, m.id)
	}
	if !slices.Equal(ids, []string{"a", "b", "c"}) {
		t.Errorf("order %q", ids)
	}
	inOrder([]mark{{id: "a", parent: "b"}, {id: "b", parent: "a"}}) // a ring ends
}

func TestIdleTellsTags(t *testing.T) {
	seen := map[int64]bool{}
	for i := range 1000 {
		idle := idleOf(fmt.Sprintf("tag-%d", i))
		if idle <= int64(leastIdle.Seconds()) || idle > int64(leastIdle.Seconds())+idleSpan {
			t.Fatalf("%d seconds", idle)
		}
		seen[idle] = true
	}
	if len(seen) < idleSpan/2 {
		t.Errorf("only %d different time-outs of %d tags", len(seen), 1000)
	}
	if idleOf("a") == idleOf("b") {
		t.Error("tags a and b have one time-out")
	}
}

func TestEncodedDocumentsAreXML(t *testing.T) {
	for name, make := range map[string]func() ([]byte, error){
		"backup":    func() ([]byte, error) { return backupDocument(hostile[2], []string{diskA}, "cp") },
		"download":  func() ([]byte, error) { return transferDocument(transferSpec{disk: diskA, image: diskB}, 301) },
		"in backup": func() ([]byte, error) { return transferDocument(transferSpec{disk: diskA, backup: "b"}, 301) },
		"upload":    func() ([]byte, error) { return transferDocument(transferSpec{disk: diskA, upload: true}, 301) },
		"attachment": func() ([]byte, error) {
			return attachmentDocument(attachmentSpec{disk: diskA, snapshot: "s", readOnly: true, active: true, bus: "virtio_scsi"})
		},
	} {
		doc, err := make()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var any struct{ XMLName xml.Name }
		if err := xml.Unmarshal(doc, &any); err != nil {
			t.Errorf("%s: %s: %v", name, doc, err)
		}
		t.Logf("%s: %s", name, doc)
	}
}
