package schedule

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

// memory is a Store with the rules of the catalog's tables: unique keys, and changes only of what is still as it was read. That the
// catalog has the same rules is tested there.
type memory struct {
	policies    map[string]catalog.Policy
	exclusions  []catalog.Exclusion
	vms         []policy.VM
	turns       map[string]catalog.Turn
	open        map[string]bool // turns that are not over
	newest      map[string]catalog.NewestPoint
	byDue       map[string]bool // policy, VM and instant
	tasks       map[string]catalog.Task
	active      map[string]string // task of a VM
	breakers    map[string]catalog.Breaker
	occurrences map[string]catalog.Occurrence
	ids         int
}

func newMemory() *memory {
	return &memory{
		policies: map[string]catalog.Policy{}, turns: map[string]catalog.Turn{}, open: map[string]bool{}, newest: map[string]catalog.NewestPoint{}, byDue: map[string]bool{}, tasks: map[string]catalog.Task{},
		active: map[string]string{}, breakers: map[string]catalog.Breaker{}, occurrences: map[string]catalog.Occurrence{},
	}
}

func (m *memory) id(prefix string) string {
	m.ids++
	return fmt.Sprintf("%s_%08d", prefix, m.ids)
}

func (m *memory) Policies(context.Context) ([]catalog.Policy, error) {
	return slices.SortedFunc(maps.Values(m.policies), func(a, b catalog.Policy) int { return compare(a.Name, b.Name) }), nil
}

func compare(a, b string) int {
	if a < b {
		return -1
	}
	return 1
}

func (m *memory) Exclusions(context.Context) ([]catalog.Exclusion, error) { return m.exclusions, nil }
func (m *memory) VMFacts(context.Context) ([]policy.VM, error)            { return slices.Clone(m.vms), nil }

func (m *memory) VMFactsOf(_ context.Context, ids []string) ([]policy.VM, error) {
	return slices.DeleteFunc(slices.Clone(m.vms), func(v policy.VM) bool { return !slices.Contains(ids, v.ID) }), nil
}

func (m *memory) OpenTurns(context.Context) ([]catalog.Turn, error) {
	var out []catalog.Turn
	for _, id := range slices.Sorted(maps.Keys(m.open)) {
		out = append(out, m.turns[id])
	}
	return out, nil
}

func (m *memory) ActiveTasks(context.Context) ([]catalog.Task, error) {
	var out []catalog.Task
	for _, id := range slices.Sorted(maps.Values(m.active)) {
		out = append(out, m.tasks[id])
	}
	return out, nil
}

func (m *memory) TasksByID(_ context.Context, ids []string) (map[string]catalog.Task, error) {
	out := map[string]catalog.Task{}
	for _, id := range ids {
		if t, ok := m.tasks[id]; ok {
			out[id] = t
		}
	}
	return out, nil
}

func (m *memory) Breakers(context.Context) (map[string]catalog.Breaker, error) {
	return maps.Clone(m.breakers), nil
}

func (m *memory) NewestGood(context.Context) (map[string]catalog.NewestPoint, error) {
	return m.newest, nil
}

func (m *memory) NewestGoodOf(_ context.Context, vmID string) (catalog.NewestPoint, error) {
	return m.newest[vmID], nil
}

func dueKey(policyID, vm string, due time.Time) string {
	return policyID + " " + vm + " " + due.UTC().Format(time.RFC3339)
}

func (m *memory) Open(_ context.Context, o catalog.Opening) (bool, error) {
	p, ok := m.policies[o.PolicyID]
	if !ok || p.Paused || !p.OpenedUntil.Equal(o.Before) {
		return false, nil
	}
	p.OpenedUntil = o.Until
	m.policies[p.ID] = p
	for _, row := range o.Rows {
		if key := dueKey(p.ID, "", row.Due); m.occurrences[key].PolicyID == "" {
			m.occurrences[key] = row
		}
	}
	for _, vm := range o.VMs {
		if key := dueKey(p.ID, vm, o.Due); !m.byDue[key] {
			m.byDue[key] = true
			id := m.id("turn")
			m.open[id] = true
			m.turns[id] = catalog.Turn{ID: id, PolicyID: p.ID, VMID: vm, Due: o.Due, State: catalog.TurnWaiting, NotBefore: o.Due}
		}
	}
	return true, nil
}

func (m *memory) RewindPolicy(_ context.Context, id string, before, to time.Time) error {
	p := m.policies[id]
	if !p.OpenedUntil.Equal(before) {
		return nil
	}
	p.OpenedUntil = to
	m.policies[id] = p
	maps.DeleteFunc(m.occurrences, func(_ string, o catalog.Occurrence) bool { return o.PolicyID == id && o.Due.After(to) })
	maps.DeleteFunc(m.turns, func(_ string, t catalog.Turn) bool {
		gone := t.PolicyID == id && t.Due.After(to) && t.State != catalog.TurnRunning
		if gone {
			delete(m.byDue, dueKey(id, t.VMID, t.Due))
			delete(m.open, t.ID)
		}
		return gone
	})
	return nil
}

func (m *memory) ChangeTurn(_ context.Context, ch catalog.TurnChange) (bool, error) {
	t, ok := m.turns[ch.Turn.ID]
	if !ok || t.State != ch.Turn.State || t.Attempt != ch.Turn.Attempt {
		return false, nil
	}
	t.State, t.Attempt, t.NotBefore, t.Reason = ch.State, ch.Attempt, ch.NotBefore, ch.Reason
	if t.State.Final() {
		t.EndedAt = &ch.At
		delete(m.open, t.ID)
	}
	m.turns[t.ID] = t
	if ch.Breaker != nil {
		m.breakers[ch.Breaker.ConnectionID] = *ch.Breaker
	}
	return true, nil
}

// submit does what the queue does: it claims the turn and queues a task, or neither.
func (m *memory) submit(b Begin) (string, error) {
	t := m.turns[b.Turn.ID]
	if m.active[t.VMID] != "" || t.State != catalog.TurnWaiting {
		return "", fault.New(fault.Conflict, "submit", t.ID, "busy")
	}
	id := m.id("task")
	m.tasks[id] = catalog.Task{ID: id, VMID: t.VMID, ConnectionID: b.VM.ConnectionID, State: catalog.Queued}
	m.active[t.VMID] = id
	t.State, t.TaskID, t.Attempt, t.Reason = catalog.TurnRunning, id, t.Attempt+1, ""
	m.turns[t.ID] = t
	return id, nil
}

// end ends a task.
func (m *memory) end(id string, state catalog.State, f *catalog.Failure, began bool) {
	t := m.tasks[id]
	t.State, t.Error = state, f
	if began {
		t.Progress.Disks = []catalog.DiskProgress{{BytesScanned: 1}}
	}
	m.tasks[id] = t
	delete(m.active, t.VMID)
}
