package server

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// planWorld is an appliance with a random catalog: VMs, of which some are off, in two repositories with restore points of the last
// months, some of them damaged or held, and policies and exclusions.
type planWorld struct {
	*bench
	rnd   *rand.Rand
	repos []string
	vms   map[string]string // names, by id
}

func newPlanWorld(t *testing.T, seed uint64) *planWorld {
	t.Helper()
	w := &planWorld{bench: stillBench(t), rnd: rand.New(rand.NewPCG(seed, 17)), vms: map[string]string{}}
	for i := range 4 {
		w.platform.AddVM(memplatform.VMSpec{Name: fmt.Sprintf("vm%d", i), Disks: []int64{1 << 20}, Off: w.rnd.IntN(3) == 0})
	}
	if _, err := w.RefreshConnection(t.Context(), w.conn); err != nil {
		t.Fatal(err)
	}
	other, err := w.AddRepository(t.Context(), httpapi.NewRepository{Name: "other", Path: filepath.Join(w.root, "other")})
	if err != nil {
		t.Fatal(err)
	}
	w.repos = []string{w.repo, other.ID}
	list, err := w.ListVMs(t.Context(), catalog.VMFilter{}, catalog.Page{})
	if err != nil {
		t.Fatal(err)
	}
	for _, vm := range list.Items {
		w.vms[vm.ID] = vm.Name
		for range w.rnd.IntN(4) {
			w.pointOf(vm.ID)
		}
	}
	return w
}

// pointOf makes a restore point of some time in the last hundred days.
func (w *planWorld) pointOf(vm string) {
	w.t.Helper()
	ctx := w.t.Context()
	task := w.ended(w.StartBackup(ctx, startOf("ann"), httpapi.BackupRequest{VMID: vm, RepositoryID: w.repos[w.rnd.IntN(2)]}))
	if task.State != catalog.Succeeded {
		w.t.Fatalf("backup = %s, %+v", task.State, task.Error)
	}
	at := time.Now().UTC().Add(-time.Duration(w.rnd.Int64N(int64(100 * 24 * time.Hour))))
	if _, err := w.catalog.DB().ExecContext(ctx, "UPDATE restore_points SET time = ? WHERE id = ?", at, task.RestorePointID); err != nil {
		w.t.Fatal(err)
	}
	var err error
	switch w.rnd.IntN(6) {
	case 0:
		err = w.catalog.SetVerified(ctx, task.RestorePointID, errKilled)
	case 1:
		err = w.catalog.SetHold(ctx, catalog.Hold{RestorePointID: task.RestorePointID, Reason: "evidence"})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *planWorld) filter() string {
	return []string{"all", "name ~ vm*", "name = web", "name in (vm0, vm1)", "not name = vm2", "state = on", "name = vm3 or name = web"}[w.rnd.IntN(7)]
}

func (w *planWorld) randomPolicy(name string) httpapi.PolicyChange {
	c := w.change(policy.Spec{Filter: w.filter(), Priority: w.rnd.IntN(3), TimeZone: []string{"", "Europe/Zurich", "America/New_York"}[w.rnd.IntN(3)]})
	c.Name, c.Paused, c.Spec.RepositoryID = name, w.rnd.IntN(5) == 0, w.repos[w.rnd.IntN(2)]
	if w.rnd.IntN(4) > 0 {
		c.Spec.Retention = policy.Retention{Last: w.rnd.IntN(3), Daily: w.rnd.IntN(3), Weekly: w.rnd.IntN(2), Monthly: w.rnd.IntN(3)}
	}
	return c
}

func (w *planWorld) randomExclusions() (out []catalog.Exclusion) {
	for range w.rnd.IntN(3) {
		out = append(out, catalog.Exclusion{Filter: fmt.Sprintf("name = vm%d", w.rnd.IntN(4)), Reason: "r"})
	}
	return out
}

// covered returns which policy covers each VM, by name; "" for none.
func (w *planWorld) covered() map[string]string {
	w.t.Helper()
	list, err := w.ListCoverage(w.t.Context(), httpapi.CoverageFilter{}, catalog.Page{})
	if err != nil {
		w.t.Fatal(err)
	}
	out := map[string]string{}
	for _, c := range list.Items {
		out[c.VM.ID] = c.Policy
	}
	return out
}

func (w *planWorld) allPoints() map[string]bool {
	w.t.Helper()
	out := map[string]bool{}
	for _, repo := range w.repos {
		ids, err := w.catalog.RestorePointIDs(w.t.Context(), repo)
		if err != nil {
			w.t.Fatal(err)
		}
		for id := range ids {
			out[id] = true
		}
	}
	return out
}

// After a change and the next backup of every VM, exactly the VMs are covered otherwise and exactly the restore points are gone that the
// plan has named, but for those that go anyway.
func TestPlanAgainstReality(t *testing.T) {
	seeds := uint64(6)
	if os.Getenv("CAIRN_SOAK") == "1" {
		seeds = 200
	}
	var changed, pruned atomic.Int64
	for seed := range seeds {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Logf("seed %d", seed)
			w := newPlanWorld(t, seed)
			c, p := w.planAndDo()
			changed.Add(int64(c))
			pruned.Add(int64(p))
		})
	}
	t.Cleanup(func() { // the subtests run side by side, after this function
		t.Logf("%d VMs were covered otherwise, %d restore points were pruned by changes", changed.Load(), pruned.Load())
		if changed.Load() == 0 || pruned.Load() == 0 {
			t.Error("nothing was changed: these seeds prove nothing")
		}
	})
}

func (w *planWorld) planAndDo() (changed, pruned int) {
	t, ctx := w.t, w.t.Context()
	w.t.Helper()
	ids := map[string]string{}
	for _, name := range []string{"gold", "silver"} {
		p, err := w.CreatePolicy(ctx, admin, w.randomPolicy(name))
		if err != nil {
			t.Fatal(err)
		}
		ids[name] = p.ID
	}
	for _, e := range w.randomExclusions() {
		if _, err := w.AddExclusion(ctx, admin, e); err != nil {
			t.Fatal(err)
		}
	}

	// Another world: gold changed or not, silver changed or gone, bronze new; other exclusions.
	proposal := httpapi.CoverageProposal{Exclusions: w.randomExclusions()}
	was, err := w.GetPolicy(ctx, ids["gold"])
	if err != nil {
		t.Fatal(err)
	}
	gold := httpapi.PolicyChange{Name: "gold", Paused: was.Paused, Spec: was.Spec}
	if w.rnd.IntN(3) > 0 {
		gold.Spec.Retention = policy.Retention{Last: 1 + w.rnd.IntN(2)}
		gold.Paused = false
	}
	proposal.Policies = []httpapi.ProposedPolicy{{ID: ids["gold"], PolicyChange: gold}}
	if w.rnd.IntN(2) == 0 {
		proposal.Policies = append(proposal.Policies, httpapi.ProposedPolicy{ID: ids["silver"], PolicyChange: w.randomPolicy("silver")})
	}
	if w.rnd.IntN(2) == 0 {
		proposal.Policies = append(proposal.Policies, httpapi.ProposedPolicy{PolicyChange: w.randomPolicy("bronze")})
	}
	before, points := w.covered(), w.allPoints()
	plan, err := w.PlanCoverage(ctx, proposal)
	if err != nil {
		t.Fatal(err)
	}
	anyway := w.goesAnyway(proposal)
	judged := w.judged(proposal)
	if diff := cmp.Diff(w.covered(), before); diff != "" || len(w.allPoints()) != len(points) {
		t.Fatalf("planning has changed something: %s", diff)
	}

	w.realize(proposal, ids)
	after := w.covered()
	named := map[string][2]string{}
	for _, v := range plan.Changed {
		named[v.ID] = [2]string{v.Before, v.After}
	}
	differs := map[string][2]string{}
	for id := range after {
		if before[id] != after[id] {
			differs[id] = [2]string{before[id], after[id]}
		}
	}
	if diff := cmp.Diff(named, differs); diff != "" {
		t.Errorf("VMs: -planned +are\n%s", diff)
	}
	if again, err := w.PlanCoverage(ctx, w.asItIs()); err != nil || len(again.Policies)+len(again.Changed)+len(again.Pruned) > 0 {
		t.Errorf("a plan of what is: %+v, %v", again, err)
	}

	w.everyPolicyRuns()
	left := w.allPoints()
	var gone, planned []string
	for id := range points {
		if !left[id] && !anyway[id] {
			gone = append(gone, id)
		}
		if left[id] && anyway[id] {
			t.Errorf("%s was to go anyway, and is there", id)
		}
	}
	for _, v := range plan.Pruned {
		planned = append(planned, v.ID)
	}
	slices.Sort(gone)
	slices.Sort(planned)
	if diff := cmp.Diff(planned, gone); diff != "" {
		t.Errorf("restore points: -planned +gone\n%s", diff)
		t.Logf("judged before: %s", judged)
	}
	if plan.Anyway != len(anyway) {
		t.Errorf("%d go anyway, planned %d", len(anyway), plan.Anyway)
	}
	return len(differs), len(gone)
}

// goesAnyway are the restore points that the next backups let go by the policies of now, of the VMs that are backed up into the same
// repository then.
func (w *planWorld) goesAnyway(p httpapi.CoverageProposal) map[string]bool {
	w.t.Helper()
	e, err := w.estate(w.t.Context(), time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	after, err := propose(&httpapi.CoveragePlan{}, e, p)
	if err != nil {
		w.t.Fatal(err)
	}
	var exclusions []policy.Exclusion
	for _, x := range p.Exclusions {
		f, err := policy.ParseFilter(x.Filter)
		if err != nil {
			w.t.Fatal(err)
		}
		exclusions = append(exclusions, policy.Exclusion{Filter: f})
	}
	covers := policy.NewCovers(after, exclusions, e.Now)
	out := map[string]bool{}
	for _, vm := range e.VMs {
		was := e.active(e.covers.Which(vm))
		for _, c := range after {
			if was == nil || c.ID != covers.Which(vm) || c.Paused || c.Rules.Spec.RepositoryID != was.Spec.RepositoryID {
				continue
			}
			now, err := w.prunedNext(w.t.Context(), vm, c.Rules)
			if err != nil {
				w.t.Fatal(err)
			}
			before, err := w.prunedNext(w.t.Context(), vm, *was)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, v := range now {
				if slices.ContainsFunc(before, func(b httpapi.PointVerdict) bool { return b.ID == v.ID }) {
					out[v.ID] = true
				}
			}
		}
	}
	return out
}

// realize makes the world what a proposal says.
func (w *planWorld) realize(p httpapi.CoverageProposal, ids map[string]string) {
	w.t.Helper()
	ctx := w.t.Context()
	check := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	old, err := w.ListExclusions(ctx)
	check(err)
	for _, e := range p.Exclusions {
		_, err := w.AddExclusion(ctx, admin, e)
		check(err)
	}
	for _, e := range old {
		check(w.RemoveExclusion(ctx, admin, e.ID))
	}
	stays := map[string]bool{}
	for _, c := range p.Policies {
		if c.ID == "" {
			_, err := w.CreatePolicy(ctx, admin, c.PolicyChange)
			check(err)
			continue
		}
		stays[c.ID] = true
		_, err := w.ReplacePolicy(ctx, admin, c.ID, c.PolicyChange)
		check(err)
	}
	for _, id := range ids {
		if !stays[id] {
			check(w.RemovePolicy(ctx, admin, id))
		}
	}
}

// asItIs proposes what is there.
func (w *planWorld) asItIs() (p httpapi.CoverageProposal) {
	w.t.Helper()
	policies, err := w.ListPolicies(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, row := range policies {
		p.Policies = append(p.Policies, httpapi.ProposedPolicy{ID: row.ID, PolicyChange: httpapi.PolicyChange{Name: row.Name, Paused: row.Paused, Spec: row.Spec}})
	}
	exclusions, err := w.ListExclusions(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range exclusions {
		p.Exclusions = append(p.Exclusions, e.Exclusion)
	}
	return p
}

// everyPolicyRuns lets each policy that is not paused back up all VMs that it covers, once.
func (w *planWorld) everyPolicyRuns() {
	w.t.Helper()
	policies, err := w.ListPolicies(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	want := 0
	for _, p := range policies {
		if p.Paused {
			continue
		}
		n, err := w.RunPolicy(w.t.Context(), admin, p.ID)
		if err != nil {
			w.t.Fatal(err)
		}
		want += n
	}
	done := func() (n int) {
		for id := range w.vms {
			turns, err := w.catalog.Turns(w.t.Context(), catalog.TurnFilter{VMID: id}, catalog.Page{})
			if err != nil {
				w.t.Fatal(err)
			}
			for _, turn := range turns.Items {
				if turn.State == catalog.TurnDone {
					n++
				} else if turn.State.Final() {
					w.t.Fatalf("turn = %+v", turn)
				}
			}
		}
		return n
	}
	for done() < want {
		if err := w.scheduler.Tick(w.t.Context(), time.Now()); err != nil {
			w.t.Fatal(err)
		}
		w.idle()
	}
}

// A backup that keeps the checkpoint of before keeps the restore point that it was made with, unless that is damaged.
func TestPlanNextRetentionOfAStoppedVM(t *testing.T) {
	b := stillBench(t)
	old, base := b.backup(), b.backup()
	pruned := func(keeps bool) (out []string) {
		t.Helper()
		list, err := b.protector.PlanNextRetention(t.Context(), policy.Retention{Last: 1}, time.UTC, b.vmID, b.repo, keeps)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list {
			if !v.Keep() {
				out = append(out, v.ID)
			}
		}
		slices.Sort(out)
		return out
	}
	both := []string{old.ID, base.ID}
	slices.Sort(both)
	if got := pruned(false); !slices.Equal(got, both) {
		t.Errorf("of a running VM: %v, want %v", got, both)
	}
	if got := pruned(true); !slices.Equal(got, both[:1]) {
		t.Errorf("of a stopped VM: %v, want %v", got, both[:1])
	}
	if err := b.catalog.SetVerified(t.Context(), base.ID, errKilled); err != nil {
		t.Fatal(err)
	}
	if got := pruned(true); !slices.Equal(got, both) {
		t.Errorf("with a damaged base: %v, want %v", got, both)
	}
	if keepsCheckpoint(policy.VM{Platform: "kvm", State: "on"}) || !keepsCheckpoint(policy.VM{Platform: "kvm", State: "off"}) || keepsCheckpoint(policy.VM{Platform: "ovirt", State: "off"}) {
		t.Error("which VMs keep their checkpoint")
	}
}

func TestReplaceConnection(t *testing.T) {
	b := stillBench(t)
	ctx := t.Context()
	same := httpapi.NewConnection{Address: "here"}
	if fields, err := b.ReplaceConnection(ctx, admin, b.conn, same, false); err != nil || len(fields) > 0 {
		t.Errorf("as it is: %v, %v", fields, err)
	}
	other := httpapi.NewConnection{Address: "there", User: "u", Password: "p", Options: map[string]string{"a": "b"}}
	want := []string{"address", "options", "password", "user"}
	if fields, err := b.ReplaceConnection(ctx, admin, b.conn, other, true); err != nil || !slices.Equal(fields, want) {
		t.Errorf("planned: %v, %v", fields, err)
	}
	row, err := b.catalog.Connection(ctx, b.conn)
	if err != nil || row.Address != "here" {
		t.Errorf("planning has changed %+v, %v", row, err)
	}
	if fields, err := b.ReplaceConnection(ctx, admin, b.conn, other, false); err != nil || !slices.Equal(fields, want) {
		t.Errorf("changed: %v, %v", fields, err)
	}
	if secret, err := b.catalog.ConnectionSecret(ctx, b.conn); err != nil || string(secret) != "p" {
		t.Errorf("secret %q, %v", string(secret), err)
	}
	other.Password = "" // stays
	if fields, err := b.ReplaceConnection(ctx, admin, b.conn, other, false); err != nil || len(fields) > 0 {
		t.Errorf("without a password: %v, %v", fields, err)
	}
	b.backup() // by a driver of the new way
	if _, err := b.ReplaceConnection(ctx, admin, "conn_x", same, false); kindOf(err) != "not-found" {
		t.Errorf("unknown: %v", err)
	}
	if _, err := b.catalog.UpdateConnection(ctx, b.conn, func(c *catalog.Connection) { c.HostID = "another" }); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReplaceConnection(ctx, admin, b.conn, same, false); kindOf(err) != "conflict" {
		t.Errorf("to another host: %v", err)
	}
}

// judged says for a failing test what the plan was made of.
func (w *planWorld) judged(p httpapi.CoverageProposal) (out string) {
	w.t.Helper()
	e, err := w.estate(w.t.Context(), time.Now())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, vm := range e.VMs {
		for _, c := range p.Policies {
			rules, err := policy.Understand(c.Spec)
			if err != nil {
				w.t.Fatal(err)
			}
			list, err := w.protector.PlanNextRetention(w.t.Context(), rules.Spec.Retention, rules.Zone, vm.ID, rules.Spec.RepositoryID, keepsCheckpoint(vm))
			if err != nil {
				w.t.Fatal(err)
			}
			for _, v := range list {
				out += fmt.Sprintf("\n%s %s, %s %+v %s: %s %v damaged %v: %q", vm.Name, vm.State, c.Name, rules.Spec.Retention, rules.Zone, v.ID, v.Time, v.Damaged, v.Reasons)
			}
		}
	}
	return out
}
