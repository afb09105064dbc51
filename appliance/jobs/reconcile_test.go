package jobs

import (
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
)

// orphan makes a task that a dead manager was running, with a checkpoint that it owes.
func orphan(t *testing.T, f *fixture, kind catalog.RunKind) *catalog.Task {
	t.Helper()
	task := f.submit(kind, "vm_1")
	if _, err := f.catalog.MoveTask(t.Context(), task.ID, catalog.Running, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.makeCheckpoint(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	return task
}

func TestOrphanIsCleanedUpAndFails(t *testing.T) {
	f := newFixture(t, nil)
	task := orphan(t, f, catalog.KindBackup)
	if err := f.catalog.SetProgress(t.Context(), task.ID, "transferring", catalog.Progress{}); err != nil {
		t.Fatal(err)
	}
	f.crash()
	f.start()
	got := f.task(task.ID) // Start has ended it
	if got.State != catalog.Failed || !strings.Contains(got.Error.What, "manager stopped while the task was under way (transferring)") {
		t.Errorf("task = %s, %+v", got.State, got.Error)
	}
	if f.hasCheckpoint(task.ID) || f.owed() != 0 {
		t.Error("something of the dead task is left")
	}
	if err := f.queue.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.crash()
	f.start()
	if again := f.task(task.ID); again.State != catalog.Failed {
		t.Errorf("after another restart: %s", again.State)
	}
}

func TestOrphanWhoseRestorePointIsDurable(t *testing.T) {
	f := newFixture(t, nil)
	task := orphan(t, f, catalog.KindBackup)
	vm, err := f.catalog.SeeVM(t.Context(), f.conn, f.vm)
	if err != nil {
		t.Fatal(err)
	}
	point := catalog.RestorePoint{
		ID: "rp_1", RepositoryID: "repo_1", VMID: vm.ID, TaskID: task.ID, Checkpoint: "cairn-" + Tag(task.ID),
	}
	if err := f.catalog.AddRestorePoint(t.Context(), point); err != nil {
		t.Fatal(err)
	}
	f.crash()
	f.start()
	got := f.task(task.ID)
	if got.State != catalog.Warning || got.Result == nil || got.RestorePointID != "rp_1" {
		t.Errorf("task = %s, %+v", got.State, got.Result)
	}
	if !f.hasCheckpoint(task.ID) {
		t.Error("the recorded checkpoint was removed")
	}
	if f.owed() != 0 {
		t.Error("the recorded checkpoint is still owed")
	}
}

func TestOrphanWhoseVMIsMade(t *testing.T) {
	f := newFixture(t, nil)
	task := orphan(t, f, catalog.KindRestore)
	if err := f.catalog.SetResult(t.Context(), task.ID, catalog.Result{VMPlatformID: "new"}); err != nil {
		t.Fatal(err)
	}
	// What the journal holds would remove the VM: a volume, say. A checkpoint stands for it, another one for what the
	// VM's restore replaced, of a kind this platform refuses to clean up.
	replaced := hypervisors.Owed{Kind: hypervisors.OwedReplaced, VM: f.vm.ID, Name: "cairn-" + Tag(task.ID)}
	if err := f.journal.Owe(f.conn, task.ID)(t.Context(), replaced); err != nil {
		t.Fatal(err)
	}
	f.crash()
	if err := f.queue.reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.task(task.ID); got.State != catalog.Warning {
		t.Errorf("task = %s, want warning", got.State)
	}
	if !f.hasCheckpoint(task.ID) {
		t.Error("what belongs to the restored VM was removed")
	}
	rows, err := f.catalog.OpenCleanups(t.Context(), task.ID)
	if err != nil || len(rows) != 1 || rows[0].Owed.Kind != hypervisors.OwedReplaced || rows[0].Attempts != 1 {
		t.Errorf("owed = %+v, %v, want the replaced disk, tried once", rows, err)
	}
}

func TestSweepTellsLeftoversFromTheRest(t *testing.T) {
	f := newFixture(t, nil)
	vm, err := f.catalog.SeeVM(t.Context(), f.conn, f.vm)
	if err != nil {
		t.Fatal(err)
	}
	id := func(state catalog.State) string { // of a task in a state, with a checkpoint nobody owes
		task := f.submit(catalog.KindBackup, "")
		if state != catalog.Queued {
			if _, err := f.catalog.MoveTask(t.Context(), task.ID, catalog.Running, nil); err != nil {
				t.Fatal(err)
			}
		}
		if state.Final() {
			if _, err := f.catalog.MoveTask(t.Context(), task.ID, state, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.platform.AddCheckpoint(f.vm.ID, "cairn-"+Tag(task.ID)); err != nil {
			t.Fatal(err)
		}
		return task.ID
	}
	failed, old, newest, running := id(catalog.Failed), id(catalog.Succeeded), id(catalog.Succeeded), id(catalog.Running)
	foreign := catalog.NewID(catalog.PrefixTask)
	for _, name := range []string{"cairn-" + Tag(foreign), "someone-else"} {
		if err := f.platform.AddCheckpoint(f.vm.ID, name); err != nil {
			t.Fatal(err)
		}
	}
	for i, task := range []string{old, newest} {
		p := catalog.RestorePoint{ID: "rp_" + string(rune('1'+i)), RepositoryID: "r", VMID: vm.ID, Checkpoint: "cairn-" + Tag(task)}
		if err := f.catalog.AddRestorePoint(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	release, err := f.journal.Hold(t.Context(), f.conn, f.vm.ID)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.queue.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !f.hasCheckpoint(failed) {
		t.Error("the sweep changed a VM that a task holds")
	}
	release()
	if _, err := f.queue.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		checkpoint string
		want       bool
	}{
		"of a failed task":            {"cairn-" + Tag(failed), false},
		"of an older restore point":   {"cairn-" + Tag(old), false},
		"of the newest restore point": {"cairn-" + Tag(newest), true},
		"of a running task":           {"cairn-" + Tag(running), true},
		"of another Cairn":            {"cairn-" + Tag(foreign), true},
		"of another tool":             {"someone-else", true},
	} {
		if got := f.platform.HasCheckpoint(f.vm.ID, tt.checkpoint); got != tt.want {
			t.Errorf("checkpoint %s is there: %v, want %v", name, got, tt.want)
		}
	}
}

func TestRecordedNeedsTheSameVM(t *testing.T) {
	f := newFixture(t, nil)
	vm, err := f.catalog.SeeVM(t.Context(), f.conn, f.vm)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.catalog.AddRestorePoint(t.Context(), catalog.RestorePoint{ID: "rp_1", VMID: vm.ID, RepositoryID: "r", Checkpoint: "c"}); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		owed hypervisors.Owed
		want bool
	}{
		"same":         {hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: f.vm.ID, Name: "c"}, true},
		"another VM":   {hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: "x", Name: "c"}, false},
		"another name": {hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: f.vm.ID, Name: "d"}, false},
		"another kind": {hypervisors.Owed{Kind: "job", VM: f.vm.ID, Name: "c"}, false},
		"no name":      {hypervisors.Owed{Kind: hypervisors.OwedCheckpoint, VM: "x"}, false},
	} {
		got, err := f.journal.recorded(t.Context(), f.conn, tt.owed)
		if err != nil || got != tt.want {
			t.Errorf("%s: %v, %v, want %v", name, got, err, tt.want)
		}
	}
}
