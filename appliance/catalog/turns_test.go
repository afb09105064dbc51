package catalog

import (
	"context"
	"database/sql"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
)

var due = time.Date(2026, 3, 4, 22, 0, 0, 0, time.UTC)

// newPolicy stores a policy that was looked at until an hour before it is due.
func newPolicy(t *testing.T, c *Catalog, name string) Policy {
	t.Helper()
	p := Policy{Name: name, Spec: policy.Spec{Filter: "all", Schedule: "22:00", Windows: []string{"20:00-06:00"}, Retries: 2}}
	if err := c.CreatePolicy(t.Context(), &p, due.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	p, err := c.Policy(t.Context(), p.ID)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func opening(p Policy, vms ...string) Opening {
	return Opening{
		PolicyID: p.ID, Before: p.OpenedUntil, Until: due, Due: due, VMs: vms,
		Rows: []Occurrence{{PolicyID: p.ID, Due: due, VMs: len(vms), At: due}},
	}
}

func TestPoliciesChange(t *testing.T) { onEach(t, testPoliciesChange) }

func testPoliciesChange(t *testing.T, dir string) {
	c := open(t, dir)
	p := newPolicy(t, c, "gold")
	if err := c.CreatePolicy(t.Context(), &Policy{Name: "gold"}, due); kindOf(err) != "exists" {
		t.Errorf("a second policy of the name: %v", err)
	}
	now := due.Add(24 * time.Hour)
	rename := func(p *Policy) { p.Name = "golden" }
	got, err := c.UpdatePolicy(t.Context(), p.ID, now, rename)
	if err != nil || got.Name != "golden" || got.Version != 2 || !got.OpenedUntil.Equal(p.OpenedUntil) {
		t.Errorf("renamed: %+v, %v", got, err)
	}
	got, err = c.UpdatePolicy(t.Context(), p.ID, now, func(p *Policy) { p.Spec.Schedule = "21:00" })
	if err != nil || !got.OpenedUntil.Equal(now) {
		t.Errorf("after the schedule changed what was due before is due: %+v, %v", got, err)
	}
	if diff := cmp.Diff(got.Spec.Windows, []string{"20:00-06:00"}); diff != "" {
		t.Errorf("windows -got +want: %s", diff)
	}
	if _, err := c.UpdatePolicy(t.Context(), "pol_x", now, rename); kindOf(err) != "not-found" {
		t.Errorf("change of what is not there: %v", err)
	}
}

func TestWhatIsDueIsNoticedOnce(t *testing.T) { onEach(t, testWhatIsDueIsNoticedOnce) }

func testWhatIsDueIsNoticedOnce(t *testing.T, dir string) {
	c := open(t, dir)
	p := newPolicy(t, c, "gold")
	var won atomic.Int32
	var managers sync.WaitGroup
	for range 4 {
		managers.Go(func() {
			ok, err := c.Open(t.Context(), opening(p, "vm_1", "vm_2"))
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Add(1)
			}
		})
	}
	managers.Wait()
	turns, err := c.OpenTurns(t.Context())
	if err != nil || len(turns) != 2 || won.Load() != 1 {
		t.Fatalf("%d managers noticed it, %d turns, %v", won.Load(), len(turns), err)
	}
	rows, err := c.Occurrences(t.Context(), p.ID, 10)
	if err != nil || len(rows) != 1 || rows[0].VMs != 2 || !rows[0].Due.Equal(due) {
		t.Errorf("occurrences: %+v, %v", rows, err)
	}
	if _, err := c.UpdatePolicy(t.Context(), p.ID, due, func(p *Policy) { p.Paused = true }); err != nil {
		t.Fatal(err)
	}
	late := opening(p, "vm_3")
	late.Before = due
	if ok, err := c.Open(t.Context(), late); ok || err != nil {
		t.Errorf("a paused policy was opened: %v, %v", ok, err)
	}
}

// TestATurnBeginsOnce has several managers submit the run of one turn.
func TestATurnBeginsOnce(t *testing.T) { onEach(t, testATurnBeginsOnce) }

func testATurnBeginsOnce(t *testing.T, dir string) {
	c := open(t, dir)
	p := newPolicy(t, c, "gold")
	if _, err := c.Open(t.Context(), opening(p, "vm_1")); err != nil {
		t.Fatal(err)
	}
	turns, err := c.OpenTurns(t.Context())
	if err != nil || len(turns) != 1 {
		t.Fatal(turns, err)
	}
	begin := func() (Run, error) {
		run := Run{Kind: KindBackup, Trigger: TriggerScheduled, PolicyID: p.ID, TurnID: turns[0].ID}
		_, err := c.CreateRun(t.Context(), &run, []*Task{{VMID: "vm_1", Subject: "vm_1"}}, noQueue)
		return run, err
	}
	var begun atomic.Int32
	var managers sync.WaitGroup
	for range 4 {
		managers.Go(func() {
			if _, err := begin(); err == nil {
				begun.Add(1)
			} else if kindOf(err) != "conflict" {
				t.Error(err)
			}
		})
	}
	managers.Wait()
	if begun.Load() != 1 {
		t.Fatalf("%d runs began", begun.Load())
	}
	turns, _ = c.OpenTurns(t.Context())
	if turn := turns[0]; turn.State != TurnRunning || turn.Attempt != 1 || turn.TaskID == "" {
		t.Fatalf("turn = %+v", turn)
	}
	if _, err := c.MoveTask(t.Context(), turns[0].TaskID, Running, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.MoveTask(t.Context(), turns[0].TaskID, Failed, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := begin(); kindOf(err) != "conflict" { // the VM is free, but the turn is not waiting
		t.Errorf("a second run of a turn that runs: %v", err)
	}
	runs, err := c.Runs(t.Context(), RunFilter{PolicyID: p.ID}, Page{})
	if err != nil || len(runs.Items) != 1 {
		t.Errorf("%d runs of the policy, %v", len(runs.Items), err)
	}
}

func TestARunThatCannotBeQueuedLeavesItsTurn(t *testing.T) {
	onEach(t, testARunThatCannotBeQueuedLeavesItsTurn)
}

func testARunThatCannotBeQueuedLeavesItsTurn(t *testing.T, dir string) {
	c := open(t, dir)
	p := newPolicy(t, c, "gold")
	if _, err := c.Open(t.Context(), opening(p, "vm_1")); err != nil {
		t.Fatal(err)
	}
	turns, _ := c.OpenTurns(t.Context())
	run := Run{Kind: KindBackup, TurnID: turns[0].ID}
	_, err := c.CreateRun(t.Context(), &run, []*Task{{VMID: "vm_1", Subject: "vm_1"}}, func(context.Context, *sql.Tx, Task) (int64, error) {
		return 0, errors.New("the queue is broken")
	})
	again, _ := c.OpenTurns(t.Context())
	if err == nil || again[0].State != TurnWaiting || again[0].Attempt != 0 {
		t.Errorf("error %v, turn %+v", err, again[0])
	}
}

func TestTurnsChangeOnlyAsTheyWereRead(t *testing.T) { onEach(t, testTurnsChangeOnlyAsTheyWereRead) }

func testTurnsChangeOnlyAsTheyWereRead(t *testing.T, dir string) {
	c := open(t, dir)
	p := newPolicy(t, c, "gold")
	if _, err := c.Open(t.Context(), opening(p, "vm_1", "vm_2")); err != nil {
		t.Fatal(err)
	}
	turns, _ := c.OpenTurns(t.Context())
	change := TurnChange{
		Turn: turns[0], State: TurnWaiting, Attempt: 1, NotBefore: due.Add(time.Hour), Reason: "it failed", At: due,
		Breaker: &Breaker{ConnectionID: "conn_1", Failures: 1},
	}
	for i, want := range []bool{true, false} { // the second is by a manager that has read the same
		if ok, err := c.ChangeTurn(t.Context(), change); ok != want || err != nil {
			t.Errorf("change %d: %v, %v", i, ok, err)
		}
		change.Breaker.Failures = 2
	}
	if b, err := c.Breakers(t.Context()); err != nil || b["conn_1"].Failures != 1 {
		t.Errorf("the breaker counted a failure twice: %+v, %v", b, err)
	}
	if ok, err := c.ChangeTurn(t.Context(), TurnChange{Turn: turns[1], State: TurnMissed, Reason: "r", At: due}); !ok || err != nil {
		t.Errorf("end: %v, %v", ok, err)
	}
	ended, err := c.Turns(t.Context(), TurnFilter{VMID: turns[1].VMID, PolicyID: p.ID, States: []TurnState{TurnMissed}}, Page{})
	if err != nil || len(ended.Items) != 1 || ended.Items[0].EndedAt == nil {
		t.Errorf("ended: %+v, %v", ended, err)
	}
	if err := c.DeletePolicy(t.Context(), p.ID, due); err != nil {
		t.Fatal(err)
	}
	if left, err := c.OpenTurns(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("turns of a policy that is no more: %+v, %v", left, err)
	}
	if err := c.PurgeTurns(t.Context(), due.Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if all, err := c.Turns(t.Context(), TurnFilter{}, Page{}); err != nil || len(all.Items) != 0 {
		t.Errorf("after forgetting: %+v, %v", all, err)
	}
}

func TestRewind(t *testing.T) { onEach(t, testRewind) }

func testRewind(t *testing.T, dir string) {
	c := open(t, dir)
	p := newPolicy(t, c, "gold")
	if _, err := c.Open(t.Context(), opening(p, "vm_1")); err != nil {
		t.Fatal(err)
	}
	to := due.Add(-48 * time.Hour)
	for range 2 { // the second manager comes too late
		if err := c.RewindPolicy(t.Context(), p.ID, due, to); err != nil {
			t.Fatal(err)
		}
	}
	got, _ := c.Policy(t.Context(), p.ID)
	turns, err := c.OpenTurns(t.Context())
	rows, _ := c.Occurrences(t.Context(), p.ID, 10)
	if !got.OpenedUntil.Equal(to) || len(turns)+len(rows) != 0 || err != nil {
		t.Errorf("policy %+v, turns %+v, occurrences %+v, %v", got, turns, rows, err)
	}
}

func TestHoldsAndExclusions(t *testing.T) { onEach(t, testHoldsAndExclusions) }

func testHoldsAndExclusions(t *testing.T, dir string) {
	c := open(t, dir)
	ctx := t.Context()
	if err := c.SetHold(ctx, Hold{RestorePointID: "rp_1", Reason: "r"}); kindOf(err) != "not-found" {
		t.Errorf("hold of what is not there: %v", err)
	}
	if err := c.AddRestorePoint(ctx, RestorePoint{ID: "rp_1", RepositoryID: "repo", VMID: "vm_1", Time: due}); err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{"one", "two"} {
		if err := c.SetHold(ctx, Hold{RestorePointID: "rp_1", Reason: reason, Until: &due}); err != nil {
			t.Fatal(err)
		}
	}
	holds, err := c.Holds(ctx, []string{"rp_1", "rp_2"})
	if err != nil || len(holds) != 1 || holds["rp_1"].Reason != "two" || holds["rp_1"].Holds(due) || !holds["rp_1"].Holds(due.Add(-1)) {
		t.Errorf("holds = %+v, %v", holds, err)
	}
	if err := c.ReleaseHold(ctx, "rp_1"); err != nil {
		t.Error(err)
	}
	if err := c.ReleaseHold(ctx, "rp_1"); kindOf(err) != "not-found" {
		t.Errorf("released twice: %v", err)
	}
	e := Exclusion{Filter: "all", Reason: "r", Until: &due}
	if err := c.AddExclusion(ctx, &e); err != nil {
		t.Fatal(err)
	}
	if all, err := c.Exclusions(ctx); err != nil || len(all) != 1 || !all[0].Until.Equal(due) {
		t.Errorf("exclusions = %+v, %v", all, err)
	}
	if err := c.RemoveExclusion(ctx, e.ID); err != nil {
		t.Error(err)
	}
	if err := c.RemoveExclusion(ctx, e.ID); kindOf(err) != "not-found" {
		t.Errorf("removed twice: %v", err)
	}
}

// TestFactsFollowTheInventory: a VM that is renamed and moved is the same VM, a clone another one, and one that is gone is not looked at.
func TestFactsFollowTheInventory(t *testing.T) { onEach(t, testFactsFollowTheInventory) }

func testFactsFollowTheInventory(t *testing.T, dir string) {
	c := open(t, dir)
	conn := Connection{Name: "lab", Platform: hypervisors.KVM}
	if err := c.CreateConnection(t.Context(), &conn, ""); err != nil {
		t.Fatal(err)
	}
	disk := func(ds string) hypervisors.Disk {
		return hypervisors.Disk{ID: ds, Kind: hypervisors.KindDisk, Datastore: ds}
	}
	sync := func(vms ...hypervisors.VM) []policy.VM {
		t.Helper()
		if _, err := c.SyncVMs(t.Context(), conn.ID, vms); err != nil {
			t.Fatal(err)
		}
		facts, err := c.VMFacts(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return facts
	}
	someOf := func(ids ...string) []policy.VM {
		t.Helper()
		facts, err := c.VMFactsOf(t.Context(), ids)
		if err != nil {
			t.Fatal(err)
		}
		return facts
	}
	before := sync(hypervisors.VM{ID: "u1", Name: "web", Cluster: "a", Power: hypervisors.PowerOn, Disks: []hypervisors.Disk{disk("fast"), disk("fast"), disk("slow")}}, hypervisors.VM{ID: "u2", Name: "old"})
	after := sync(hypervisors.VM{ID: "u1", Name: "www", Cluster: "b", Host: "h", Folder: "x/y", Tags: []string{"gold"}, Labels: []string{"l"}}, hypervisors.VM{ID: "u3", Name: "www-clone", Cluster: "b"})
	want := []policy.VM{
		{ID: before[1].ID, Name: "www", Connection: "lab", ConnectionID: conn.ID, Platform: "kvm", Cluster: "b", Host: "h", Folder: "x/y", Tags: []string{"gold"}, Labels: []string{"l"}},
		{ID: after[1].ID, Name: "www-clone", Connection: "lab", ConnectionID: conn.ID, Platform: "kvm", Cluster: "b"},
	}
	if diff := cmp.Diff(after, want); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
	if diff := cmp.Diff(someOf(after[1].ID, before[0].ID, "vm_x"), want[1:]); diff != "" {
		t.Errorf("of some: -got +want:\n%s", diff)
	}
	if got := someOf(make([]string, idsAtOnce+1)...); len(got) != len(want) || len(someOf()) != 0 {
		t.Errorf("of many: %+v, of none: %+v", got, someOf())
	}
	if diff := cmp.Diff(before[1].Datastores, []string{"fast", "slow"}); diff != "" || before[1].Name != "web" {
		t.Errorf("before: %+v, %s", before, diff)
	}
	for _, vm := range before {
		if after[1].ID == vm.ID {
			t.Error("the clone took an id that was another VM's")
		}
	}
}

// TestNewestGood: a damaged restore point protects nothing.
func TestNewestGood(t *testing.T) { onEach(t, testNewestGood) }

func testNewestGood(t *testing.T, dir string) {
	c := open(t, dir)
	for _, p := range []RestorePoint{
		{ID: "rp_1", VMID: "vm_1", Time: due}, {ID: "rp_2", VMID: "vm_1", Time: due.Add(time.Hour), VerifyResult: VerifyDamaged}, {ID: "rp_3", VMID: "vm_2", Time: due, VerifyResult: VerifyGood},
		{ID: "rp_4", VMID: "vm_3", Time: due, VerifyResult: VerifyDamaged},
	} {
		if err := c.AddRestorePoint(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"vm_1", "vm_2", "vm_3"} {
		if err := c.db.Create(&VM{ID: id, ConnectionID: "conn_1", PlatformID: id}).Error; err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.NewestGood(t.Context())
	if err != nil || len(got) != 2 || got["vm_1"].ID != "rp_1" || got["vm_2"].ID != "rp_3" {
		t.Errorf("newest good = %+v, %v", got, err)
	}
	for _, id := range []string{"vm_1", "vm_2", "vm_3", "vm_gone"} {
		if p, err := c.NewestGoodOf(t.Context(), id); err != nil || p != got[id] {
			t.Errorf("newest good of %s = %+v, %v", id, p, err)
		}
	}
}

// TestPolicyOrDetached: of a policy that is made and its repository that is detached at the same time one is refused, whichever.
func TestPolicyOrDetached(t *testing.T) { onEach(t, testPolicyOrDetached) }

func testPolicyOrDetached(t *testing.T, dir string) {
	c := open(t, dir)
	for i := range 20 {
		repo := Repository{Name: "r" + strconv.Itoa(i), Path: "/r" + strconv.Itoa(i)}
		if err := c.CreateRepository(t.Context(), &repo); err != nil {
			t.Fatal(err)
		}
		made := make(chan error)
		go func() {
			made <- c.CreatePolicy(t.Context(), &Policy{Name: repo.Name, Spec: policy.Spec{Filter: "all", Schedule: "22:00", RepositoryID: repo.ID}}, due)
		}()
		detached := c.DeleteRepository(t.Context(), repo.ID)
		if policyErr := <-made; kindOf(policyErr)+kindOf(detached) != "nilconflict" && kindOf(policyErr)+kindOf(detached) != "conflictnil" {
			t.Errorf("the policy: %v, the detaching: %v", policyErr, detached)
		}
	}
	p := newPolicy(t, c, "moves")
	if _, err := c.UpdatePolicy(t.Context(), p.ID, due, func(p *Policy) { p.Spec.RepositoryID = "repo_gone" }); kindOf(err) != "conflict" {
		t.Errorf("changed to a repository that is gone: %v", err)
	}
}
