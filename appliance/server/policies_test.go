package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// stillBench is a bench whose schedule looks at nothing by itself.
func stillBench(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.ticks = make(chan time.Time)
	b.start()
	return b
}

// policyDueAt makes a policy that is due at an instant of each day, beginning with it.
func (b *bench) policyDueAt(at time.Time, s policy.Spec) catalog.Policy {
	b.t.Helper()
	s.Schedule, s.RepositoryID = at.UTC().Format("15:04"), b.repo
	if s.Filter == "" {
		s.Filter = "all"
	}
	p := catalog.Policy{Name: "gold", Spec: s}
	if err := b.catalog.CreatePolicy(b.t.Context(), &p, at.Add(-time.Minute)); err != nil {
		b.t.Fatal(err)
	}
	return p
}

// turn lets the scheduler look at an instant, waits for the task that begins, lets it look again, and returns the VM's newest turn.
func (b *bench) turn(now time.Time) catalog.Turn {
	b.t.Helper()
	for range 2 {
		if err := b.scheduler.Tick(b.t.Context(), now); err != nil {
			b.t.Fatal(err)
		}
		b.idle()
	}
	turns, err := b.catalog.Turns(b.t.Context(), catalog.TurnFilter{VMID: b.vmID}, catalog.Page{})
	if err != nil || len(turns.Items) == 0 {
		b.t.Fatalf("turns = %+v, %v", turns, err)
	}
	return turns.Items[0]
}

// idle waits until no task is under way.
func (b *bench) idle() {
	b.t.Helper()
	active, err := b.catalog.ActiveTasks(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	for _, task := range active {
		b.await(b.watch.end(task.ID))
	}
}

func TestAPolicyProtectsByItself(t *testing.T) {
	b := stillBench(t)
	first := time.Now().UTC().Truncate(time.Minute).Add(48 * time.Hour)
	p := b.policyDueAt(first, policy.Spec{Retention: policy.Retention{Last: 2}, ExcludeDisks: []string{"disk1", "no such disk"}})
	var points []string
	for day := range 4 {
		b.write("disk0", 4096, int64(day)*4096)
		turn := b.turn(first.AddDate(0, 0, day))
		if turn.State != catalog.TurnDone || turn.Attempt != 1 || !turn.Due.Equal(first.AddDate(0, 0, day)) {
			t.Fatalf("day %d: turn = %+v", day, turn)
		}
		task, err := b.GetTask(t.Context(), turn.TaskID)
		if err != nil || task.Result == nil {
			t.Fatalf("task = %+v, %v", task, err)
		}
		points = append(points, task.Result.RestorePointID)
		run, err := b.GetRun(t.Context(), turn.RunID)
		if err != nil || run.PolicyID != p.ID || run.Trigger != catalog.TriggerScheduled {
			t.Errorf("run = %+v, %v", run.Run, err)
		}
	}
	left, err := b.ListRestorePoints(t.Context(), catalog.PointFilter{}, catalog.Page{})
	if err != nil || len(left.Items) != 2 || left.Items[0].ID != points[3] || left.Items[1].ID != points[2] || len(left.Items[0].Disks) != 1 {
		t.Errorf("after 4 days with the last 2 kept: %+v, %v", left, err)
	}
	repo, err := b.repository(t.Context(), b.repo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.RestorePoint(t.Context(), points[0]); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a pruned restore point is in the repository: %v", err)
	}
}

func TestHeldAndNeededRestorePointsAreNotPruned(t *testing.T) {
	b := stillBench(t)
	held := b.backup()
	if err := b.catalog.SetHold(t.Context(), catalog.Hold{RestorePointID: held.ID, Reason: "before the upgrade"}); err != nil {
		t.Fatal(err)
	}
	if err := b.PruneRestorePoint(t.Context(), held.ID); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "before the upgrade") {
		t.Errorf("a person prunes what is held: %v", err)
	}
	gone := b.backup()
	first := time.Now().UTC().Truncate(time.Minute).Add(48 * time.Hour)
	b.policyDueAt(first, policy.Spec{Retention: policy.Retention{Last: 1}})
	if turn := b.turn(first); turn.State != catalog.TurnDone {
		t.Fatalf("turn = %+v", turn)
	}
	left, err := b.catalog.RestorePointIDs(t.Context(), b.repo)
	if err != nil || len(left) != 2 || !left[held.ID] || left[gone.ID] {
		t.Errorf("left: %v, %v; want %s and the newest", left, err, held.ID)
	}
	verdicts, err := b.protector.PlanRetention(t.Context(), policy.Retention{Last: 1}, time.UTC, b.vmID, b.repo, "")
	if err != nil || len(verdicts) != 2 {
		t.Fatalf("verdicts %+v, %v", verdicts, err)
	}
	if text := strings.Join(verdicts[0].Reasons, "; "); !strings.Contains(text, "next incremental builds on it") || !strings.Contains(text, "last 1 of 1") {
		t.Errorf("the newest stays for: %s", text)
	}
}

// TestAFailedTurnIsTriedAgain has the platform refuse once, for which the policy has another attempt, and then for ever.
func TestAFailedTurnIsTriedAgain(t *testing.T) {
	b := stillBench(t)
	first := time.Now().UTC().Truncate(time.Minute).Add(48 * time.Hour)
	b.policyDueAt(first, policy.Spec{Retries: 1, Backoff: 600})
	f := b.platform.Inject("Freeze", &memplatform.Fault{Times: 1, Err: fault.New(fault.Transient, "freeze", "", "planted")})
	turn := b.turn(first)
	if turn.State != catalog.TurnWaiting || turn.Attempt != 1 || !strings.Contains(turn.Reason, "planted") || !turn.NotBefore.Equal(first.Add(10*time.Minute)) || f.Fired() != 1 {
		t.Fatalf("after the first attempt: %+v; the fault fired %d times", turn, f.Fired())
	}
	if turn = b.turn(first.Add(9 * time.Minute)); turn.Attempt != 1 {
		t.Fatalf("it is tried again too soon: %+v", turn)
	}
	if turn = b.turn(first.Add(10 * time.Minute)); turn.State != catalog.TurnDone || turn.Attempt != 2 {
		t.Fatalf("after the second attempt: %+v", turn)
	}
}

// TestReasonsSayEachThingOnce: what a platform calls a VM by its identity is said by its name, and an inventory that fails once.
func TestReasonsSayEachThingOnce(t *testing.T) {
	b := stillBench(t)
	first := time.Now().UTC().Truncate(time.Minute).Add(48 * time.Hour)
	b.policyDueAt(first, policy.Spec{Retries: 1, Backoff: 600})
	b.platform.Inject(memplatform.OpVM, &memplatform.Fault{Times: 1, Err: fault.New(fault.Transient, "look up", "VM "+b.vm.ID, "planted")})
	turn := b.turn(first)
	breakers, err := b.catalog.Breakers(t.Context())
	if want := "look up VM web: planted"; turn.Reason != want || breakers[b.conn].Reason != want || err != nil {
		t.Errorf("turn: %q, breaker: %+v, %v", turn.Reason, breakers[b.conn], err)
	}
	b.platform.Inject(memplatform.OpVMs, &memplatform.Fault{Times: 1, Err: fault.New(fault.Transient, "list VMs", "", "planted")})
	_, err = b.maintainInventory(t.Context(), catalog.Maintenance{}, first)
	if want := "read inventory of lab: list VMs: planted"; err == nil || err.Error() != want {
		t.Errorf("inventory: %v, want %s", err, want)
	}
}

// TestATurnSurvivesTheManager kills the manager while a policy's backup is under way: the turn goes on after the start.
func TestATurnSurvivesTheManager(t *testing.T) {
	b := stillBench(t)
	first := time.Now().UTC().Truncate(time.Minute).Add(48 * time.Hour)
	b.policyDueAt(first, policy.Spec{Retries: 1, Backoff: 60})
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.start()
	if turn := b.turn(first.Add(3 * time.Hour)); turn.State != catalog.TurnDone || !turn.Due.Equal(first) {
		t.Errorf("what was due while the manager was off: %+v", turn)
	}
}

// TestWhatEndsMakesRoom: more VMs are due than may wait in the queue, and nothing but the ends of backups tells that there is room.
func TestWhatEndsMakesRoom(t *testing.T) {
	b := stillBench(t)
	const vms = 25
	for i := range vms - 1 {
		b.platform.AddVM(memplatform.VMSpec{Name: fmt.Sprintf("vm%d", i), Disks: []int64{1 << 20}})
	}
	if _, err := b.RefreshConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	first := time.Now().UTC().Truncate(time.Minute).Add(48 * time.Hour)
	b.policyDueAt(first, policy.Spec{Retention: policy.Retention{Last: 1}})
	b.ticks <- first
	b.holds("all have been backed up", func() bool {
		turns, err := b.catalog.Turns(t.Context(), catalog.TurnFilter{}, catalog.Page{Limit: catalog.MaxLimit})
		if err != nil {
			t.Fatal(err)
		}
		done := 0
		for _, turn := range turns.Items {
			if turn.State == catalog.TurnDone {
				done++
			}
		}
		return done == vms
	})
}
