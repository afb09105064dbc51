package schedule

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/appliance/policy/policytest"
	"github.com/cairn-backup/cairn/internal/fault"
)

// world is 30 days of an appliance with two managers on virtual time: platforms that are slow or do not answer, managers that are
// off, a wall clock that is put forward and back, VMs that come, go and move, and people who pause, exclude and change.
type world struct {
	t    *testing.T
	seed uint64
	r    *rand.Rand
	*memory
	managers [2]*Scheduler
	now      time.Time     // real
	skew     time.Duration // of the wall clock
	off      time.Time     // until when no manager runs
	down     map[string]time.Time
	slow     map[string]time.Time
	ends     map[string]time.Time // of running tasks
	queue    []string
	turnOf   map[string]string // by task
	points   map[string][]policy.Point
	last     time.Time // the newest wall time at which somebody looked
	rules    map[string]policy.Rules
	far      bool // the clock has been far ahead
	calmly   bool // no backup fails, and no restore point is damaged
	swift    bool // somebody looks each minute, and a backup takes one

	begun, good, failed, offs, jumps, outages, races, pruned, waits int
}

const (
	vmsAtFirst = 24
	workers    = 4
	keepEvery  = 8 // points after which the oracle is asked
)

func newWorld(t *testing.T, seed uint64) *world {
	r := rand.New(rand.NewPCG(seed, 3))
	w := &world{
		t: t, seed: seed, r: r, memory: newMemory(), now: time.Date(2026, time.Month(1+r.IntN(12)), 1+r.IntN(28), r.IntN(24), 0, 0, 0, time.UTC),
		down: map[string]time.Time{}, slow: map[string]time.Time{}, ends: map[string]time.Time{}, turnOf: map[string]string{},
		points: map[string][]policy.Point{}, rules: map[string]policy.Rules{},
	}
	if r.IntN(2) == 0 { // the clocks change in the middle of it
		w.now = []time.Time{time.Date(2026, 3, 14, 0, 0, 0, 0, time.UTC), time.Date(2026, 10, 11, 0, 0, 0, 0, time.UTC)}[r.IntN(2)]
	}
	for i := range w.managers {
		w.managers[i] = New(w, w.begin, slog.New(slog.DiscardHandler))
	}
	w.last = w.now
	for range vmsAtFirst {
		w.addVM()
	}
	specs := []policy.Spec{
		{Filter: "cluster = c0", Schedule: "22:30", TimeZone: "Europe/Zurich", Missed: policy.MissedRun, Retries: 2, Windows: []string{"22:00-06:00"}, Retention: policy.Retention{Last: 2, Daily: 7, Weekly: 2}},
		{Filter: "cluster = c1 or tag = gold", Schedule: "*:0/30", TimeZone: "America/New_York", Missed: policy.MissedSkip, Within: 900, Retries: 1, Backoff: 60, Priority: 5, Limits: policy.Limits{Connection: 3, Host: 2}, Retention: policy.Retention{Last: 3, Hourly: 12, Daily: 3}},
		{Filter: "all", Schedule: "Mon..Fri 02:30", TimeZone: "Europe/Zurich", Missed: policy.MissedSkip, Within: 4 * 3600, Retries: 3, Limits: policy.Limits{Datastore: 4}, Retention: policy.Retention{Weekly: 3}},
	}
	for i, s := range specs {
		p := catalog.Policy{ID: fmt.Sprintf("pol_%d", i), Name: fmt.Sprintf("p%d", i), Spec: s, OpenedUntil: w.now}
		w.policies[p.ID] = p
		rules, err := policy.Understand(s)
		if err != nil {
			t.Fatal(err)
		}
		w.rules[p.ID] = rules
	}
	return w
}

func (w *world) addVM() {
	v := policy.VM{ID: w.id("vm"), Name: "vm", ConnectionID: fmt.Sprintf("conn_%d", w.r.IntN(2)), State: "on"}
	w.vms = append(w.vms, w.move(v))
}

func (w *world) move(v policy.VM) policy.VM {
	v.Cluster, v.Host = fmt.Sprintf("c%d", w.r.IntN(3)), fmt.Sprintf("h%d", w.r.IntN(3))
	v.Tags, v.Datastores = nil, []string{fmt.Sprintf("d%d", w.r.IntN(2))}
	if w.r.IntN(5) == 0 {
		v.Tags = []string{"gold"}
	}
	return v
}

func (w *world) wall() time.Time { return w.now.Add(w.skew) }

func (w *world) fatalf(format string, args ...any) {
	w.t.Helper()
	w.t.Fatalf("seed %d, %s (wall %s): %s", w.seed, w.now.Format(time.RFC3339), w.wall().Format(time.RFC3339), fmt.Sprintf(format, args...))
}

// live goes through some time; wild adds what goes wrong.
func (w *world) live(until time.Time, wild bool) {
	for w.now.Before(until) {
		step := time.Duration(60+w.r.IntN(12*60)) * time.Second
		if w.swift {
			step = time.Minute
		}
		w.now = w.now.Add(step)
		if wild {
			w.trouble()
		}
		w.work()
		if w.now.Before(w.off) {
			continue
		}
		w.look()
	}
}

func (w *world) trouble() {
	hours := func(n int) time.Duration { return time.Duration(1+w.r.IntN(n*60)) * time.Minute }
	switch w.r.IntN(220) {
	case 0:
		w.off = w.now.Add(hours(30))
		w.offs++
		for _, id := range slices.Sorted(maps.Keys(w.ends)) { // killed: the next manager ends them
			w.finish(id, catalog.Failed, &catalog.Failure{Kind: fault.Transient.String(), What: "the manager stopped"}, true)
		}
	case 1:
		w.skew += time.Duration(1+w.r.IntN(3*3600)) * time.Second
		w.jumps++
	case 2:
		w.skew -= time.Duration(1+w.r.IntN(3*3600)) * time.Second
		w.jumps++
	case 3:
		w.down[fmt.Sprintf("conn_%d", w.r.IntN(2))] = w.now.Add(hours(20))
		w.outages++
	case 4:
		w.slow[fmt.Sprintf("conn_%d", w.r.IntN(2))] = w.now.Add(hours(12))
	case 5:
		w.addVM()
	case 6:
		if len(w.vms) > vmsAtFirst/2 {
			i := w.r.IntN(len(w.vms))
			w.vms = slices.Delete(w.vms, i, i+1)
		}
	case 7, 8:
		i := w.r.IntN(len(w.vms))
		w.vms[i] = w.move(w.vms[i])
	case 9:
		end := w.wall().Add(hours(40))
		w.exclusions = append(w.exclusions, catalog.Exclusion{ID: w.id("excl"), Filter: fmt.Sprintf("cluster = c%d", w.r.IntN(3)), Reason: "a test", Until: &end})
	}
}

// work lets tasks begin and end.
func (w *world) work() {
	for _, id := range slices.Sorted(maps.Keys(w.ends)) {
		if !w.now.Before(w.ends[id]) {
			w.result(id)
		}
	}
	if w.now.Before(w.off) {
		return
	}
	for len(w.queue) > 0 && len(w.ends) < workers {
		id := w.queue[0]
		w.queue = w.queue[1:]
		t := w.tasks[id]
		t.State = catalog.Running
		w.tasks[id] = t
		last := time.Duration(60+w.r.IntN(400)) * time.Second
		if w.swift {
			last = time.Minute
		}
		if w.now.Before(w.slow[t.ConnectionID]) {
			last *= 20
		}
		w.ends[id] = w.now.Add(last)
	}
}

func (w *world) result(id string) {
	t := w.tasks[id]
	n := w.r.IntN(60)
	if w.calmly {
		n = 59
	}
	switch {
	case w.now.Before(w.down[t.ConnectionID]):
		w.finish(id, catalog.Failed, &catalog.Failure{Kind: fault.Transient.String(), What: "the platform does not answer"}, false)
	case n < 3:
		w.finish(id, catalog.Failed, &catalog.Failure{Kind: fault.Transient.String(), What: "the link broke"}, true)
	case n == 3:
		w.finish(id, catalog.Failed, &catalog.Failure{Kind: fault.Invalid.String(), What: "it has no disk"}, false)
	case n == 4:
		w.finish(id, catalog.Cancelled, nil, true)
	default:
		w.finish(id, catalog.Succeeded, nil, true)
		w.good++
		w.retain(t.VMID, w.turns[w.turnOf[id]])
	}
}

func (w *world) finish(id string, s catalog.State, f *catalog.Failure, began bool) {
	delete(w.ends, id)
	if s == catalog.Failed {
		w.failed++
	}
	w.memory.end(id, s, f, began)
}

// retain is the retention after a backup that succeeded.
func (w *world) retain(vm string, t catalog.Turn) {
	p := policy.Point{ID: w.id("rp"), Time: w.wall(), Damaged: w.r.IntN(30) == 0 && !w.calmly}
	if w.r.IntN(40) == 0 {
		p.Held = "for a test"
	}
	all := append(w.points[vm], p)
	rules, ok := w.rules[t.PolicyID]
	if !ok {
		w.fatalf("turn %+v has no policy", t)
	}
	var left []policy.Point
	for _, v := range rules.Spec.Retention.Apply(all, rules.Zone) {
		if v.Keep() {
			left = append(left, v.Point)
		}
	}
	w.pruned += len(all) - len(left)
	if w.good%keepEvery == 0 {
		want := policytest.Keeps(rules.Spec.Retention, all, rules.Zone)
		var got []string
		for _, p := range left {
			got = append(got, p.ID)
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			w.fatalf("retention keeps %v, and the oracle %v", got, want)
		}
	}
	w.points[vm] = left
	if !p.Damaged {
		w.newest[vm] = catalog.NewestPoint{ID: p.ID, Time: p.Time}
	}
}

// look is a tick of one manager; sometimes that of another one falls between what it reads and what it does.
func (w *world) look() {
	s := w.managers[w.r.IntN(2)]
	if w.wall().After(w.last) {
		w.last = w.wall()
	}
	if w.r.IntN(3) == 0 {
		state, err := s.Read(w.t.Context(), w.wall())
		if err != nil {
			w.fatalf("read: %v", err)
		}
		plan := Decide(state)
		other := w.managers[w.r.IntN(2)]
		if err := other.Tick(w.t.Context(), w.wall().Add(time.Duration(w.r.IntN(50))*time.Second)); err != nil {
			w.fatalf("tick of the other manager: %v", err)
		}
		if len(plan.Opens)+len(plan.Begins) > 0 {
			w.races++
		}
		if err := s.carryOut(w.t.Context(), plan, w.wall()); err != nil {
			w.fatalf("carry out: %v", err)
		}
	}
	if err := s.Tick(w.t.Context(), w.wall()); err != nil {
		w.fatalf("tick: %v", err)
	}
	if w.r.IntN(50) == 0 {
		w.readOf(s)
	}
}

// readOf compares why the turns of VMs wait with what is said when each VM is looked at alone.
func (w *world) readOf(s *Scheduler) {
	all, err := s.Look(w.t.Context(), w.wall())
	if err != nil {
		w.fatalf("look: %v", err)
	}
	for _, vm := range w.vms {
		state, err := s.ReadOf(w.t.Context(), w.wall(), vm.ID)
		if err != nil {
			w.fatalf("read of %s: %v", vm.ID, err)
		}
		if state.Newest[vm.ID] != w.newest[vm.ID] || !slices.ContainsFunc(state.VMs, func(v policy.VM) bool { return v.ID == vm.ID }) {
			w.fatalf("%s alone: newest restore point %v, VMs %v", vm.ID, state.Newest, state.VMs)
		}
		alone := Decide(state)
		for _, t := range w.turns {
			if t.VMID != vm.ID || !w.open[t.ID] {
				continue
			}
			if alone.Waits[t.ID] != all.Waits[t.ID] {
				w.fatalf("turn %+v waits because %q, looked at alone because %q", t, all.Waits[t.ID], alone.Waits[t.ID])
			}
			if all.Waits[t.ID] != "" {
				w.waits++
			}
		}
	}
}

// begin checks what must hold when a run begins.
func (w *world) begin(_ context.Context, b Begin) error {
	id, err := w.submit(b)
	if err != nil {
		return err
	}
	w.begun++
	rules := w.rules[b.Turn.PolicyID]
	t := w.turns[b.Turn.ID]
	if t.Attempt > rules.Spec.Retries+1 {
		w.fatalf("turn %+v is in attempt %d", t, t.Attempt)
	}
	// The other manager's clock may be a minute ahead.
	if !rules.Windows.Open(w.wall(), rules.Zone) && !rules.Windows.Open(w.wall().Add(time.Minute), rules.Zone) {
		w.fatalf("turn %+v began while the windows %v are closed", t, rules.Windows)
	}
	w.turnOf[id] = t.ID
	w.queue = append(w.queue, id)
	return nil
}

// judge looks at the end whether anything was lost or doubled.
func (w *world) judge(begin time.Time) {
	done, perDue := map[string]int{}, map[string]int{}
	for _, t := range w.turns {
		perDue[dueKey(t.PolicyID, "", t.Due)]++
		done[dueKey(t.PolicyID, t.VMID, t.Due)]++
		if t.State.Final() && t.State != catalog.TurnDone && t.Reason == "" {
			w.fatalf("nobody knows why turn %+v ended so", t)
		}
		if !t.State.Final() && w.wall().Sub(t.Due) > 80*time.Hour {
			w.fatalf("turn %+v never ends", t)
		}
	}
	for key, n := range done {
		if n != 1 {
			w.fatalf("%s: %d turns", key, n)
		}
	}
	successes := map[string]int{}
	for task, turn := range w.turnOf {
		if w.tasks[task].State == catalog.Succeeded {
			successes[turn]++
		}
	}
	for turn, n := range successes {
		if n > 1 {
			w.fatalf("turn %s succeeded %d times", turn, n)
		}
	}
	for id, rules := range w.rules {
		for _, due := range rules.Calendar.Between(begin, w.last, rules.Zone, 100_000) {
			o, ok := w.occurrences[dueKey(id, "", due)]
			if !ok && !w.far {
				w.fatalf("policy %s: nobody noticed %s", id, due)
			}
			turns := perDue[dueKey(id, "", due)]
			if ok && o.Missed == "" && turns != o.VMs || o.Missed != "" && turns != 0 {
				w.fatalf("policy %s at %s: %d turns of %+v", id, due, turns, o)
			}
		}
	}
}

// calm goes through some days on which nothing goes wrong, after which every VM must be as well protected as was promised. In its last hours
// a backup takes a minute: with as many VMs as some worlds have, the limits do not let longer ones through within the half hour of a policy.
func (w *world) calm() {
	w.calmly = true
	w.off, w.exclusions = time.Time{}, nil
	clear(w.down)
	clear(w.slow)
	w.live(w.now.Add(4*24*time.Hour+18*time.Hour), false)
	w.swift = true
	w.live(w.now.Add(6*time.Hour), false)
	var candidates []policy.Candidate
	for id, rules := range w.rules {
		candidates = append(candidates, policy.Candidate{ID: id, Name: id, Rules: rules})
	}
	covers := policy.NewCovers(candidates, nil, w.wall())
	for _, vm := range w.vms {
		c := covers.Of(vm)
		var newest time.Time
		for _, p := range w.points[vm.ID] {
			if !p.Damaged && p.Time.After(newest) {
				newest = p.Time
			}
		}
		target := w.rules[c.PolicyID].RPO(w.wall())
		if s := policy.Stand(c, target, newest, w.wall()); s.Protection != policy.Protected {
			w.fatalf("after the calm VM %+v is %s: %s old, %s promised. %s", vm, s.Protection, s.Age, s.Target, c.Why)
		}
	}
}

// TestCampaignThirtyDays is the scheduler's proof: no run lost, none doubled, nothing pruned that should stay.
func TestCampaignThirtyDays(t *testing.T) {
	seeds := uint64(8)
	if os.Getenv("CAIRN_SOAK") != "" {
		seeds = 100
	}
	var sum world
	for seed := range seeds {
		w := newWorld(t, seed)
		begin := w.now
		w.live(begin.AddDate(0, 0, 30), true)
		w.calm()
		w.judge(begin)
		sum.begun += w.begun
		sum.good += w.good
		sum.failed += w.failed
		sum.offs += w.offs
		sum.jumps += w.jumps
		sum.outages += w.outages
		sum.races += w.races
		sum.waits += w.waits
		sum.pruned += w.pruned
	}
	t.Logf("%d seeds of 30 days: %d runs, %d good, %d failed; %d times off, %d jumps of the clock, %d outages, %d races of two managers, %d restore points pruned",
		seeds, sum.begun, sum.good, sum.failed, sum.offs, sum.jumps, sum.outages, sum.races, sum.pruned)
	for name, n := range map[string]int{"runs": sum.good, "failures": sum.failed, "managers off": sum.offs, "jumps": sum.jumps, "outages": sum.outages, "races": sum.races, "pruned": sum.pruned, "turns that wait": sum.waits} {
		if n == 0 {
			t.Errorf("%s: none, so nothing was proven", name)
		}
	}
}

// TestClockFarAhead has the clock a year ahead for a day: what is due after it was put right must run.
func TestClockFarAhead(t *testing.T) {
	for seed := range uint64(3) {
		w := newWorld(t, seed)
		begin := w.now
		w.live(begin.AddDate(0, 0, 2), false)
		w.skew, w.far = 365*24*time.Hour, true
		w.live(begin.AddDate(0, 0, 3), false)
		w.skew = 0
		ahead := w.good
		clear(w.points) // those of next year would count as young
		clear(w.newest)
		w.last = w.wall()
		w.calm()
		w.judge(begin)
		if w.good == ahead {
			t.Fatalf("seed %d: nothing ran after the clock was put right", seed)
		}
	}
}

// meanwhile is a Store to which another manager adds a policy with a turn, right before the turns are read.
type meanwhile struct {
	*memory
	policy catalog.Policy
}

func (m meanwhile) OpenTurns(ctx context.Context) ([]catalog.Turn, error) {
	if _, there := m.policies[m.policy.ID]; !there {
		m.policies[m.policy.ID] = m.policy
		m.open["turn"], m.turns["turn"] = true, catalog.Turn{ID: "turn", PolicyID: m.policy.ID, VMID: "vm", Due: m.policy.OpenedUntil, State: catalog.TurnWaiting}
	}
	return m.memory.OpenTurns(ctx)
}

// TestPolicyMadeMeanwhile: a turn of a policy that was made after the policies were read has not lost it.
func TestPolicyMadeMeanwhile(t *testing.T) {
	now := time.Date(2026, 11, 20, 22, 0, 0, 0, time.UTC)
	m := meanwhile{newMemory(), catalog.Policy{ID: "pol", Name: "p", Spec: policy.Spec{Filter: "all", Schedule: "22:00"}, OpenedUntil: now}}
	m.vms = []policy.VM{{ID: "vm", Name: "vm", ConnectionID: "conn"}}
	begun := 0
	submit := func(_ context.Context, b Begin) error {
		begun++
		_, err := m.submit(b)
		return err
	}
	if err := New(m, submit, slog.New(slog.DiscardHandler)).Tick(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	if got := m.turns["turn"]; begun != 1 || got.State != catalog.TurnRunning {
		t.Errorf("the turn is %+v, %d began", got, begun)
	}
}
