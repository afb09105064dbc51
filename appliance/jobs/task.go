package jobs

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// How often a task's progress is told and stored.
const (
	tellEvery  = 250 * time.Millisecond
	storeEvery = time.Second
)

// Task is a running task in the hands of its handler. Its methods may be called from several goroutines; what they
// store is stored also after ctx was cancelled.
type Task struct {
	catalog.Task // as it was claimed

	q        *Queue
	before   catalog.Secret // what an earlier process kept
	mu       sync.Mutex
	kept     bool // for the next process
	phase    string
	disks    []catalog.DiskProgress
	warnings []string
	result   *catalog.Result
	told     time.Time
	stored   time.Time
}

// Journal is where the task's owed clean-ups go.
func (t *Task) Journal() *Journal { return t.q.journal }

// ReadSpec reads what was asked for into v.
func (t *Task) ReadSpec(v any) error {
	if err := json.Unmarshal(t.Spec, v); err != nil {
		return fault.Wrap(fault.Internal, "read task", t.ID, err)
	}
	return nil
}

// SetPhase says what the task is doing now.
func (t *Task) SetPhase(ctx context.Context, phase string) {
	t.mu.Lock()
	t.phase = phase
	t.told, t.stored = time.Time{}, time.Time{}
	t.mu.Unlock()
	t.flush(ctx)
}

// SetProgress says how far the transfer of a disk is.
func (t *Task) SetProgress(ctx context.Context, p catalog.DiskProgress) {
	t.mu.Lock()
	i := slices.IndexFunc(t.disks, func(d catalog.DiskProgress) bool { return d.Disk == p.Disk })
	if i < 0 {
		t.disks = append(t.disks, p)
	} else {
		t.disks[i] = p
	}
	t.mu.Unlock()
	t.flush(ctx)
}

// flush tells and stores the progress when it is time to.
func (t *Task) flush(ctx context.Context) {
	now := time.Now()
	t.mu.Lock()
	row := t.row()
	tell, store := now.Sub(t.told) >= tellEvery, now.Sub(t.stored) >= storeEvery
	if tell {
		t.told = now
	}
	if store {
		t.stored = now
	}
	t.mu.Unlock()
	if store {
		err := t.q.catalog.SetProgress(context.WithoutCancel(ctx), t.ID, row.Phase, row.Progress)
		t.q.complain(ctx, "progress was not stored", t.ID, err)
	}
	if tell {
		t.q.publish.PublishTask(row)
	}
}

// row is the task as it is now. t.mu is held.
func (t *Task) row() catalog.Task {
	row := t.Task
	row.Phase = t.phase
	row.Progress = catalog.Progress{Disks: slices.Clone(t.disks)}
	row.Warnings = slices.Clone(t.warnings)
	row.Result = t.result
	return row
}

// Event adds a line to the run's list; fields are pairs of a name and a value.
func (t *Task) Event(ctx context.Context, message string, fields ...string) {
	t.q.event(ctx, catalog.Event{
		RunID: t.RunID, TaskID: t.ID, Level: catalog.LevelInfo, Message: message, Fields: pairs(fields),
	})
}

// Warn adds a warning to the run's list and to the task, which then ends no better than in the state warning.
func (t *Task) Warn(ctx context.Context, message string, fields ...string) {
	t.mu.Lock()
	t.warnings = append(t.warnings, message)
	t.mu.Unlock()
	t.q.event(ctx, catalog.Event{
		RunID: t.RunID, TaskID: t.ID, Level: catalog.LevelWarning, Message: message, Fields: pairs(fields),
	})
}

// SetResult records, durably, what the task has made. From then on it has been made, whatever happens.
func (t *Task) SetResult(ctx context.Context, r catalog.Result) error {
	if err := t.q.catalog.SetResult(context.WithoutCancel(ctx), t.ID, r); err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.result = &r
	return nil
}

func pairs(fields []string) map[string]string {
	if len(fields) < 2 {
		return nil
	}
	m := make(map[string]string, len(fields)/2)
	for i := 0; i+1 < len(fields); i += 2 {
		m[fields[i]] = fields[i+1]
	}
	return m
}
