package schedule

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Store is what the scheduler needs of the catalog.
type Store interface {
	Policies(ctx context.Context) ([]catalog.Policy, error)
	Exclusions(ctx context.Context) ([]catalog.Exclusion, error)
	VMFacts(ctx context.Context) ([]policy.VM, error)
	VMFactsOf(ctx context.Context, ids []string) ([]policy.VM, error)
	OpenTurns(ctx context.Context) ([]catalog.Turn, error)
	ActiveTasks(ctx context.Context) ([]catalog.Task, error)
	TasksByID(ctx context.Context, ids []string) (map[string]catalog.Task, error)
	Breakers(ctx context.Context) (map[string]catalog.Breaker, error)
	NewestGood(ctx context.Context) (map[string]catalog.NewestPoint, error)
	NewestGoodOf(ctx context.Context, vmID string) (catalog.NewestPoint, error)
	Open(ctx context.Context, o catalog.Opening) (bool, error)
	RewindPolicy(ctx context.Context, id string, before, to time.Time) error
	ChangeTurn(ctx context.Context, ch catalog.TurnChange) (bool, error)
}

// Submit queues the run of a turn. A Conflict means that the turn or its VM is somebody else's now.
type Submit func(ctx context.Context, b Begin) error

// Scheduler carries out what Decide says. Its methods may be called by several goroutines, and by several managers.
type Scheduler struct {
	store  Store
	submit Submit
	log    *slog.Logger

	mu    sync.Mutex
	known map[string]known // policies that were understood, by id
}

type known struct {
	version   int
	candidate policy.Candidate
}

// New makes a scheduler.
func New(store Store, submit Submit, log *slog.Logger) *Scheduler {
	return &Scheduler{store: store, submit: submit, log: log, known: map[string]known{}}
}

// steps bounds how often one tick looks again.
const steps = 1000

// Tick does what is to be done at an instant. An error is that of the catalog; what was not done is done at the next tick.
func (s *Scheduler) Tick(ctx context.Context, now time.Time) error {
	for range steps {
		state, idle, err := s.look(ctx, now)
		if err != nil || idle {
			return err
		}
		plan := Decide(state)
		if err := s.carryOut(ctx, plan, now); err != nil || !plan.More {
			return err
		}
	}
	return nil
}

// Look returns what the scheduler would do and why turns wait, and does nothing.
func (s *Scheduler) Look(ctx context.Context, now time.Time) (Plan, error) {
	state, err := s.Read(ctx, now)
	return Decide(state), err
}

// look settles the turns whose tasks have ended, and reads the rest of the state unless there is nothing to decide.
func (s *Scheduler) look(ctx context.Context, now time.Time) (State, bool, error) {
	state := State{Now: now}
	if err := s.readTurns(ctx, &state); err != nil {
		return state, false, err
	}
	settled, err := s.settle(ctx, state, now)
	if err != nil {
		return state, false, err
	}
	if settled {
		if err := s.readTurns(ctx, &state); err != nil {
			return state, false, err
		}
	}
	due := anyDue(state.Policies, now)
	if len(state.Turns) == 0 && !due {
		return state, true, nil
	}
	if due {
		if state.Newest, err = s.store.NewestGood(ctx); err != nil {
			return state, false, err
		}
	}
	return state, false, s.readRest(ctx, &state, nil)
}

// Read reads all that Decide needs.
func (s *Scheduler) Read(ctx context.Context, now time.Time) (state State, err error) {
	state.Now = now
	if err := s.readTurns(ctx, &state); err != nil {
		return state, err
	}
	if state.Newest, err = s.store.NewestGood(ctx); err != nil {
		return state, err
	}
	return state, s.readRest(ctx, &state, nil)
}

// ReadOf reads what is needed to judge one VM: of the others only those that have turns, if it waits for one itself, or tasks. What Decide
// says of that state is true of the turns in it; what became due is not.
func (s *Scheduler) ReadOf(ctx context.Context, now time.Time, vmID string) (state State, err error) {
	state.Now = now
	if err := s.readTurns(ctx, &state); err != nil {
		return state, err
	}
	point, err := s.store.NewestGoodOf(ctx, vmID)
	if err != nil {
		return state, err
	}
	state.Newest = map[string]catalog.NewestPoint{vmID: point}
	if !slices.ContainsFunc(state.Turns, func(t catalog.Turn) bool { return t.VMID == vmID }) {
		state.Turns = nil
	}
	ids := []string{vmID}
	for _, t := range state.Turns { // it may wait for any of the others
		ids = append(ids, t.VMID)
	}
	return state, s.readRest(ctx, &state, ids)
}

// readTurns reads the policies, and then the turns that are not over. A turn of a policy that is not among them may be of one that was made
// in between, so they are read once more.
func (s *Scheduler) readTurns(ctx context.Context, state *State) (err error) {
	if state.Policies, err = s.policies(ctx); err != nil {
		return err
	}
	if state.Turns, err = s.store.OpenTurns(ctx); err != nil {
		return err
	}
	there := map[string]bool{}
	for _, p := range state.Policies {
		there[p.ID] = true
	}
	if slices.ContainsFunc(state.Turns, func(t catalog.Turn) bool { return !there[t.PolicyID] }) {
		state.Policies, err = s.policies(ctx)
	}
	return err
}

// policies reads the policies; the texts of one that has not changed are not read again.
func (s *Scheduler) policies(ctx context.Context) ([]Policy, error) {
	rows, err := s.store.Policies(ctx)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Policy, len(rows))
	for i, row := range rows {
		k, ok := s.known[row.ID]
		if !ok || k.version != row.Version {
			rules, err := policy.Stored(row.Spec)
			if err != nil {
				return nil, fault.Context("read policy", row.Name, err)
			}
			k = known{row.Version, policy.Candidate{ID: row.ID, Name: row.Name, Paused: row.Paused, Rules: rules}}
			s.known[row.ID] = k
		}
		out[i] = Policy{k.candidate, row.OpenedUntil}
	}
	return out, nil
}

// Exclusions reads the texts of exclusions as they are kept.
func Exclusions(rows []catalog.Exclusion) ([]policy.Exclusion, error) {
	out := make([]policy.Exclusion, len(rows))
	for i, row := range rows {
		f, err := policy.StoredFilter(row.Filter)
		if err != nil {
			return nil, fault.Context("read exclusion", row.ID, err)
		}
		out[i] = policy.Exclusion{ID: row.ID, Filter: f, Reason: row.Reason, By: row.CreatedBy}
		if row.Until != nil {
			out[i].Until = *row.Until
		}
	}
	return out, nil
}

func anyDue(policies []Policy, now time.Time) bool {
	for _, p := range policies {
		if p.Paused {
			continue
		}
		if next, ok := p.Rules.Calendar.Next(p.OpenedUntil, p.Rules.Zone); ok && !next.After(now) || p.OpenedUntil.After(now.Add(slack)) {
			return true
		}
	}
	return false
}

// readRest reads what every decision needs: of all VMs, or of some and of those that tasks are under way for.
func (s *Scheduler) readRest(ctx context.Context, state *State, some []string) error {
	rows, err := s.store.Exclusions(ctx)
	if err != nil {
		return err
	}
	if state.Exclusions, err = Exclusions(rows); err != nil {
		return err
	}
	if state.Breakers, err = s.store.Breakers(ctx); err != nil {
		return err
	}
	tasks, err := s.store.ActiveTasks(ctx)
	if err != nil {
		return err
	}
	if some == nil {
		state.VMs, err = s.store.VMFacts(ctx)
	} else {
		for _, t := range tasks {
			some = append(some, t.VMID)
		}
		slices.Sort(some)
		state.VMs, err = s.store.VMFactsOf(ctx, slices.Compact(some))
	}
	state.Uses = uses(tasks, state.VMs)
	return err
}

// uses says what the tasks under way take, as far as limits go.
func uses(tasks []catalog.Task, vms []policy.VM) []Use {
	places := make(map[string]Place, len(vms))
	for _, vm := range vms {
		places[vm.ID] = placeOf(vm)
	}
	var out []Use
	for _, t := range tasks {
		if t.ConnectionID == "" {
			continue // work on repositories takes nothing of a platform
		}
		at := places[t.VMID]
		at.Connection = t.ConnectionID
		out = append(out, Use{VMID: t.VMID, Queued: t.State == catalog.Queued, At: at})
	}
	return out
}

// settle ends the attempts whose tasks have ended.
func (s *Scheduler) settle(ctx context.Context, state State, now time.Time) (settled bool, err error) {
	var ids []string
	for _, t := range state.Turns {
		if t.State == catalog.TurnRunning {
			ids = append(ids, t.TaskID)
		}
	}
	if len(ids) == 0 {
		return false, nil
	}
	tasks, err := s.store.TasksByID(ctx, ids)
	if err != nil {
		return false, err
	}
	rules := map[string]*policy.Rules{}
	for _, p := range state.Policies {
		rules[p.ID] = &p.Rules
	}
	for _, t := range state.Turns {
		task, known := tasks[t.TaskID]
		if t.State != catalog.TurnRunning || known && !task.State.Final() {
			continue
		}
		o := Outcome{State: task.State, Failure: task.Error, Began: task.Progress.Sum().BytesScanned > 0}
		if !known {
			o.Failure = &catalog.Failure{Kind: fault.Internal.String(), What: "its task is not in the catalog any more"}
		}
		if err := s.end(ctx, t, o, rules[t.PolicyID], task.ConnectionID, now); err != nil {
			return settled, err
		}
		settled = true
	}
	return settled, nil
}

// end stores how an attempt ended.
func (s *Scheduler) end(ctx context.Context, t catalog.Turn, o Outcome, rules *policy.Rules, connection string, now time.Time) error {
	breakers, err := s.store.Breakers(ctx)
	if err != nil {
		return err
	}
	ch := settle(t, o, rules, breakers[connection], connection, now)
	return s.change(ctx, ch)
}

func (s *Scheduler) change(ctx context.Context, ch catalog.TurnChange) error {
	done, err := s.store.ChangeTurn(ctx, ch)
	if err != nil || !done {
		return err
	}
	level := slog.LevelInfo
	if ch.State == catalog.TurnFailed || ch.State == catalog.TurnMissed {
		level = slog.LevelWarn
	}
	s.log.Log(ctx, level, "turn changed", "turn", ch.Turn.ID, "policy", ch.Turn.PolicyID, "vm", ch.Turn.VMID, "due", ch.Turn.Due,
		"state", ch.State, "attempt", ch.Attempt, "reason", ch.Reason)
	return nil
}

func (s *Scheduler) carryOut(ctx context.Context, plan Plan, now time.Time) error {
	for _, r := range plan.Rewinds {
		s.log.WarnContext(ctx, "policy was put back: the clock had been far ahead", "policy", r.PolicyID, "opened_until", r.Before)
		if err := s.store.RewindPolicy(ctx, r.PolicyID, r.Before, now); err != nil {
			return err
		}
	}
	for _, o := range plan.Opens {
		if _, err := s.store.Open(ctx, o); err != nil {
			return err
		}
	}
	for _, ch := range plan.Changes {
		if err := s.change(ctx, ch); err != nil {
			return err
		}
	}
	for _, b := range plan.Begins {
		if err := s.begin(ctx, b, now); err != nil {
			return err
		}
	}
	return nil
}

// begin submits a turn's run. What cannot even be submitted is an attempt that has failed.
func (s *Scheduler) begin(ctx context.Context, b Begin, now time.Time) error {
	err := s.submit(ctx, b)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case fault.KindOf(err) == fault.Conflict:
		s.log.DebugContext(ctx, "turn was not begun", "turn", b.Turn.ID, "err", err)
		return nil
	}
	breakers, storeErr := s.store.Breakers(ctx)
	if storeErr != nil {
		return storeErr
	}
	t := b.Turn
	t.Attempt++
	ch := settle(t, Outcome{State: catalog.Failed, Failure: catalog.FailureOf(err)}, &b.Rules, breakers[b.VM.ConnectionID], b.VM.ConnectionID, now)
	ch.Turn = b.Turn
	return s.change(ctx, ch)
}
