package server

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

var admin = fleet.Who{User: "admin", Source: "192.0.2.1"}

// more adds VMs to the platform and reads its inventory.
func (b *bench) more(names ...string) {
	b.t.Helper()
	for _, n := range names {
		b.platform.AddVM(memplatform.VMSpec{Name: n, Disks: []int64{1 << 20}})
	}
	if _, err := b.RefreshConnection(b.t.Context(), b.conn); err != nil {
		b.t.Fatal(err)
	}
}

// standing returns how each VM is protected, by name.
func (b *bench) standing() map[string]string {
	b.t.Helper()
	list, err := b.ListCoverage(b.t.Context(), httpapi.CoverageFilter{}, catalog.Page{})
	if err != nil {
		b.t.Fatal(err)
	}
	out := map[string]string{}
	for _, c := range list.Items {
		out[c.VM.Name] = strings.TrimSpace(string(c.Protection) + " " + c.Policy)
	}
	return out
}

func (b *bench) change(s policy.Spec) httpapi.PolicyChange {
	s.RepositoryID = b.repo
	if s.Schedule == "" {
		s.Schedule = "22:00"
	}
	return httpapi.PolicyChange{Name: "gold", Spec: s}
}

func TestCoverageFollowsPoliciesAndInventory(t *testing.T) {
	b := stillBench(t)
	b.more("db", "tmp-1")
	if diff := cmp.Diff(b.standing(), map[string]string{"web": "unprotected", "db": "unprotected", "tmp-1": "unprotected"}); diff != "" {
		t.Errorf("without policies: %s", diff)
	}
	gold, err := b.CreatePolicy(t.Context(), admin, b.change(policy.Spec{Filter: "name !~ db*", RPO: 3600}))
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().Add(time.Hour)
	excl, err := b.AddExclusion(t.Context(), admin, catalog.Exclusion{Filter: "name ~ tmp-*", Reason: "made anew", Until: &end})
	if err != nil || excl.VMs != 1 || !excl.Holds {
		t.Fatalf("exclusion = %+v, %v", excl, err)
	}
	b.backup()
	b.more("web2") // appears later
	want := map[string]string{"web": "protected gold", "web2": "never_ran gold", "db": "unprotected", "tmp-1": "excluded"}
	if diff := cmp.Diff(b.standing(), want); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
	vm, err := b.GetVM(t.Context(), b.vmID)
	if err != nil || vm.Coverage == nil || !strings.Contains(vm.Coverage.Why, "Policy gold covers it") || vm.Coverage.Target != time.Hour || vm.Coverage.Newest.ID == "" {
		t.Errorf("VM = %+v, %v", vm.Coverage, err)
	}
	list, err := b.ListVMs(t.Context(), catalog.VMFilter{Filter: "name ~ web* and connection = lab"}, catalog.Page{Limit: 1, Total: true})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "web" || list.Next == "" || *list.Total != 2 {
		t.Errorf("filtered VMs: %+v, %v", list, err)
	}
	if _, err := b.ListVMs(t.Context(), catalog.VMFilter{Filter: "nam = web"}, catalog.Page{}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a filter with a mistake: %v", err)
	}
	if err := b.RemoveExclusion(t.Context(), admin, excl.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.RemovePolicy(t.Context(), admin, gold.ID); err != nil {
		t.Fatal(err)
	}
	if got := b.standing(); got["web"] != "unprotected" || got["tmp-1"] != "unprotected" {
		t.Errorf("after all was taken back: %v", got)
	}
}

// TestUnprotectable: what the platform cannot freeze is said with the reason, is no VM that somebody has forgotten, and is refused
// before there is a run.
func TestUnprotectable(t *testing.T) {
	b := stillBench(t)
	b.platform.AddVM(memplatform.VMSpec{Name: "engine", Disks: []int64{1 << 20}, Unprotectable: "it is the engine's own VM"})
	b.platform.AddVM(memplatform.VMSpec{Name: "cluster", Disks: []int64{1 << 20, 1 << 20}, LUNs: true})
	b.more()
	if diff := cmp.Diff(b.standing(), map[string]string{"web": "unprotected", "engine": "unprotectable", "cluster": "unprotectable"}); diff != "" {
		t.Errorf("without policies: %s", diff)
	}
	if _, err := b.CreatePolicy(t.Context(), admin, b.change(policy.Spec{Filter: "all"})); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.standing(), map[string]string{"web": "never_ran gold", "engine": "unprotectable", "cluster": "never_ran gold"}); diff != "" {
		t.Errorf("with a policy for all: %s", diff)
	}
	list, err := b.ListCoverage(t.Context(), httpapi.CoverageFilter{}, catalog.Page{})
	if err != nil {
		t.Fatal(err)
	}
	if list.Counts[policy.Unprotectable] != 1 || list.Counts[policy.NeverRan] != 2 {
		t.Errorf("counts: %v", list.Counts)
	}
	for _, c := range list.Items {
		want := map[string]string{"web": "Policy gold covers it", "engine": "it is the engine's own VM", "cluster": "disk1: It is a direct LUN."}[c.VM.Name]
		if !strings.Contains(c.Why, want) {
			t.Errorf("%s: %s, want %q in it", c.VM.Name, c.Why, want)
		}
		_, err := b.StartBackup(t.Context(), httpapi.Start{}, httpapi.BackupRequest{VMID: c.VM.ID, RepositoryID: b.repo})
		switch kind := fault.KindOf(err); {
		case c.VM.Name == "web":
			if err != nil {
				t.Error(err)
			}
		case c.VM.Name == "engine" && (kind != fault.Conflict || !strings.Contains(err.Error(), want)):
			t.Errorf("back up %s: %v", c.VM.Name, err)
		case c.VM.Name == "cluster" && kind != fault.Invalid:
			t.Errorf("back up %s: %v", c.VM.Name, err)
		}
	}
}

// TestPlanIsWhatHappens compares what a change was said to change with what is different afterwards: cover at once, restore points
// after the next backup.
func TestPlanIsWhatHappens(t *testing.T) {
	b := stillBench(t)
	b.more("db")
	for range 4 {
		b.backup()
	}
	wide := b.change(policy.Spec{Filter: "all"})
	plan, err := b.PlanPolicy(t.Context(), "", wide)
	if err != nil || len(plan.Changed) != 2 || len(plan.Pruned) != 0 {
		t.Fatalf("plan of a new policy: %+v, %v", plan, err)
	}
	if b.standing()["web"] != "unprotected" {
		t.Error("planning has made a policy")
	}
	p, err := b.CreatePolicy(t.Context(), admin, wide)
	if err != nil {
		t.Fatal(err)
	}
	narrow := b.change(policy.Spec{Filter: "name = web", Retention: policy.Retention{Last: 2}, Schedule: time.Now().UTC().Format("15:04")})
	plan, err = b.PlanPolicy(t.Context(), p.ID, narrow)
	if err != nil {
		t.Fatal(err)
	}
	before := b.standing()
	got, err := b.ReplacePolicy(t.Context(), admin, p.ID, narrow)
	if err != nil || got.Policy.Version != 2 || len(got.Changed) != len(plan.Changed) || len(got.Pruned) != len(plan.Pruned) {
		t.Fatalf("change = %+v, %v; planned %+v", got, err, plan)
	}
	after := b.standing()
	var differs []string
	for name := range after {
		if before[name] != after[name] {
			differs = append(differs, name)
		}
	}
	if len(plan.Changed) != 1 || !slices.Equal(differs, []string{plan.Changed[0].Name}) || plan.Changed[0].Before != "gold" || plan.Changed[0].After != "" {
		t.Errorf("planned %+v, and %v differ", plan.Changed, differs)
	}
	preview, err := b.PreviewPolicy(t.Context(), p.ID, httpapi.PreviewRequest{})
	if err != nil || preview.VMs != 1 || preview.Pruned != len(plan.Pruned) || preview.Kept != 4-len(plan.Pruned) {
		t.Errorf("preview = %+v, %v", preview, err)
	}
	old := b.points()
	if n, err := b.RunPolicy(t.Context(), admin, p.ID); n != 1 || err != nil {
		t.Fatalf("%d VMs have their turn, %v", n, err)
	}
	if turn := b.turn(time.Now()); turn.State != catalog.TurnDone {
		t.Fatalf("turn = %+v", turn)
	}
	left := b.points()
	for _, v := range plan.Pruned {
		if left[v.ID] {
			t.Errorf("%s was to be pruned, and is there", v.ID)
		}
	}
	// The backup adds a restore point, so one more goes than was planned without it; nothing else does.
	if want := len(old) - len(plan.Pruned); len(left) != want {
		t.Errorf("%d restore points are left, want %d", len(left), want)
	}
}

func (b *bench) points() map[string]bool {
	b.t.Helper()
	ids, err := b.catalog.RestorePointIDs(b.t.Context(), b.repo)
	if err != nil {
		b.t.Fatal(err)
	}
	return ids
}

func TestPoliciesThatMeanNothing(t *testing.T) {
	b := stillBench(t)
	good := b.change(policy.Spec{Filter: "all"})
	if _, err := b.CreatePolicy(t.Context(), admin, good); err != nil {
		t.Fatal(err)
	}
	other := good
	other.Name = "silver"
	silver, err := b.CreatePolicy(t.Context(), admin, other)
	if err != nil {
		t.Fatal(err)
	}
	bad := func(f func(*httpapi.PolicyChange)) error {
		c := good
		c.Name = "new"
		f(&c)
		_, err := b.CreatePolicy(t.Context(), admin, c)
		return err
	}
	past := time.Now().Add(-time.Hour)
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"name taken":         {bad(func(c *httpapi.PolicyChange) { c.Name = "gold" }), "exists"},
		"repository unknown": {bad(func(c *httpapi.PolicyChange) { c.Spec.RepositoryID = "repo_x" }), "invalid"},
		"filter":             {bad(func(c *httpapi.PolicyChange) { c.Spec.Filter = "(" }), "invalid"},
		"schedule":           {bad(func(c *httpapi.PolicyChange) { c.Spec.Schedule = "25:00" }), "invalid"},
		"renamed to another": {func() error { _, err := b.ReplacePolicy(t.Context(), admin, silver.ID, good); return err }(), "exists"},
		"unknown":            {func() error { _, err := b.ReplacePolicy(t.Context(), admin, "pol_x", good); return err }(), "not-found"},
		"remove unknown":     {b.RemovePolicy(t.Context(), admin, "pol_x"), "not-found"},
		"exclusion":          {func() error { _, err := b.AddExclusion(t.Context(), admin, catalog.Exclusion{Filter: "x"}); return err }(), "invalid"},
		"exclusion is over": {func() error {
			_, err := b.AddExclusion(t.Context(), admin, catalog.Exclusion{Filter: "all", Until: &past})
			return err
		}(), "invalid"},
		"hold of unknown": {b.HoldRestorePoint(t.Context(), admin, catalog.Hold{RestorePointID: "rp_x", Reason: "r"}), "not-found"},
		"turns of unknown": {func() error {
			_, err := b.ListTurns(t.Context(), catalog.TurnFilter{PolicyID: "pol_x"}, catalog.Page{})
			return err
		}(), "not-found"},
		"preview of unknown": {func() error { _, err := b.PreviewPolicy(t.Context(), "pol_x", httpapi.PreviewRequest{}); return err }(), "not-found"},
	} {
		if kindOf(tt.err) != tt.want {
			t.Errorf("%s: %v, want %s", name, tt.err, tt.want)
		}
	}
	paused := other
	paused.Paused = true
	if _, err := b.ReplacePolicy(t.Context(), admin, silver.ID, paused); err != nil {
		t.Fatal(err)
	}
	if _, err := b.RunPolicy(t.Context(), admin, silver.ID); kindOf(err) != "conflict" {
		t.Errorf("a paused policy runs: %v", err)
	}
}

// TestWaitingTurnsSayWhy has a closed window.
func TestWaitingTurnsSayWhy(t *testing.T) {
	b := stillBench(t)
	shut := time.Now().UTC().Add(6 * time.Hour)
	window := fmt.Sprintf("%s-%s", shut.Format("15:04"), shut.Add(time.Hour).Format("15:04"))
	p, err := b.CreatePolicy(t.Context(), admin, b.change(policy.Spec{Filter: "all", Windows: []string{window}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.RunPolicy(t.Context(), admin, p.ID); err != nil {
		t.Fatal(err)
	}
	if turn := b.turn(time.Now()); turn.State != catalog.TurnWaiting {
		t.Fatalf("turn = %+v", turn)
	}
	turns, err := b.ListTurns(t.Context(), catalog.TurnFilter{PolicyID: p.ID}, catalog.Page{})
	want := "the window " + window + " is closed"
	if err != nil || len(turns.Items) != 1 || turns.Items[0].Reason != want || turns.Items[0].VMName != "web" {
		t.Errorf("turns = %+v, %v", turns, err)
	}
	vm, err := b.GetVM(t.Context(), b.vmID)
	if err != nil || vm.Coverage.Waits != want {
		t.Errorf("VM = %+v, %v", vm.Coverage, err)
	}
	info, err := b.GetPolicy(t.Context(), p.ID)
	if err != nil || info.Waiting != 1 || info.VMs != 1 || len(info.NextDue) != 5 {
		t.Errorf("policy = %+v, %v", info, err)
	}
}

func TestHoldsAreShown(t *testing.T) {
	b := stillBench(t)
	point := b.backup()
	if err := b.HoldRestorePoint(t.Context(), admin, catalog.Hold{RestorePointID: point.ID, Reason: "r"}); err != nil {
		t.Fatal(err)
	}
	list, err := b.ListRestorePoints(t.Context(), catalog.PointFilter{}, catalog.Page{})
	if err != nil || list.Items[0].Hold == nil || list.Items[0].Hold.CreatedBy != "admin" {
		t.Errorf("list = %+v, %v", list, err)
	}
	if err := b.ReleaseRestorePoint(t.Context(), admin, point.ID); err != nil {
		t.Fatal(err)
	}
	if p := b.point(point.ID); p.Hold != nil {
		t.Errorf("released: %+v", p.Hold)
	}
	if err := b.PruneRestorePoint(t.Context(), point.ID); err != nil {
		t.Errorf("prune of what was released: %v", err)
	}
}
