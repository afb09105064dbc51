package jobs

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestTasksEndOnce(t *testing.T) {
	var cases = map[string]struct {
		handle Handler
		want   catalog.State
		what   string // part of the error
	}{
		"succeeded": {func(context.Context, *Task) error { return nil }, catalog.Succeeded, ""},
		"warned": {func(ctx context.Context, task *Task) error {
			task.Warn(ctx, "a disk was skipped")
			return nil
		}, catalog.Warning, ""},
		"failed": {func(context.Context, *Task) error {
			return fault.New(fault.Transient, "reach host", "a", "no answer").Explain("It is off.", "Switch it on.")
		}, catalog.Failed, "no answer"},
		"panicked": {func(context.Context, *Task) error { panic("ouch") }, catalog.Failed, "ouch"},
	}
	for name, tt := range cases {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, tt.handle)
			f.start()
			task := f.wait(f.submit(catalog.KindBackup, "vm_1").ID)
			if task.State != tt.want || task.FinishedAt == nil || task.Attempt != 1 {
				t.Errorf("task = %s, attempt %d, want %s", task.State, task.Attempt, tt.want)
			}
			if (task.Error != nil) != (tt.what != "") || (task.Error != nil && !strings.Contains(task.Error.What, tt.what)) {
				t.Errorf("error = %+v, want %q", task.Error, tt.what)
			}
			run, err := f.catalog.Run(t.Context(), task.RunID)
			if err != nil || run.State != tt.want {
				t.Errorf("run = %s, %v, want %s", run.State, err, tt.want)
			}
			events, err := f.catalog.Events(t.Context(), task.RunID, 0, 0)
			if err != nil || len(events) == 0 {
				t.Errorf("events = %d, %v", len(events), err)
			}
		})
	}
}

func TestSecondTaskForAVMIsRefused(t *testing.T) {
	hold := make(chan struct{})
	f := newFixture(t, func(context.Context, *Task) error { <-hold; return nil })
	f.start()
	one := f.submit(catalog.KindBackup, "vm_1")
	_, err := f.queue.Submit(t.Context(), &catalog.Run{Kind: catalog.KindRestore}, &catalog.Task{Subject: "vm_1"})
	if kindOf(err) != "conflict" {
		t.Errorf("second task: %v, want conflict", err)
	}
	close(hold)
	f.wait(one.ID)
	f.wait(f.submit(catalog.KindBackup, "vm_1").ID)
}

func TestCancelQueued(t *testing.T) {
	hold := make(chan struct{})
	var ran atomic.Int32
	f := newFixture(t, func(context.Context, *Task) error { ran.Add(1); <-hold; return nil })
	busy := []*catalog.Task{f.submit(catalog.KindBackup, "vm_1"), f.submit(catalog.KindBackup, "vm_2")} // all workers
	f.start()
	last := f.submit(catalog.KindBackup, "vm_3")
	got, err := f.queue.Cancel(t.Context(), last.ID)
	if err != nil || got.State != catalog.Cancelled {
		t.Errorf("cancel = %s, %v, want cancelled at once", got.State, err)
	}
	f.wait(last.ID)
	close(hold)
	for _, b := range busy {
		f.wait(b.ID)
	}
	after := f.wait(f.submit(catalog.KindBackup, "vm_3").ID)
	if n := ran.Load(); n != 3 || after.State != catalog.Succeeded {
		t.Errorf("%d tasks ran, the last one is %s, want 3 and succeeded", n, after.State)
	}
	if _, err := f.queue.Cancel(t.Context(), last.ID); kindOf(err) != "conflict" {
		t.Errorf("cancel again: %v, want conflict", err)
	}
}

func TestCancelRunningCleansUp(t *testing.T) {
	made := make(chan string, 1)
	var f *fixture
	f = newFixture(t, func(ctx context.Context, task *Task) error {
		if err := f.makeCheckpoint(ctx, task.ID); err != nil {
			return err
		}
		made <- task.ID
		<-ctx.Done()
		return fault.Context("read disk", "vda", ctx.Err())
	})
	f.start()
	task := f.submit(catalog.KindBackup, "vm_1")
	if id := <-made; !f.hasCheckpoint(id) {
		t.Fatal("nothing was made")
	}
	if _, err := f.queue.Cancel(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	got := f.wait(task.ID)
	if got.State != catalog.Cancelled || got.Error != nil || !got.CancelRequested {
		t.Errorf("task = %s, %+v", got.State, got.Error)
	}
	if f.hasCheckpoint(task.ID) || f.owed() != 0 {
		t.Error("something of the cancelled task is left")
	}
}

func TestCancelThatComesTooLate(t *testing.T) {
	begun, hold := make(chan struct{}), make(chan struct{})
	f := newFixture(t, func(context.Context, *Task) error { close(begun); <-hold; return nil })
	f.start()
	task := f.submit(catalog.KindBackup, "vm_1")
	<-begun
	if _, err := f.queue.Cancel(t.Context(), task.ID); err != nil {
		t.Fatal(err)
	}
	close(hold)
	if got := f.wait(task.ID); got.State != catalog.Succeeded {
		t.Errorf("task that succeeded all the same is %s", got.State)
	}
}

func TestStopEndsWhatRunsAndKeepsWhatWaits(t *testing.T) {
	begun := make(chan struct{}, 3)
	handler := func(ctx context.Context, _ *Task) error {
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	f := newFixture(t, handler)
	f.start()
	running := []string{f.submit(catalog.KindBackup, "vm_1").ID, f.submit(catalog.KindBackup, "vm_2").ID}
	<-begun
	<-begun
	waiting := f.submit(catalog.KindBackup, "vm_3").ID
	if err := f.queue.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, id := range running {
		got := f.task(id)
		if got.State != catalog.Failed || !strings.Contains(got.Error.Meaning, "manager was stopped") {
			t.Errorf("task = %s, %+v", got.State, got.Error)
		}
	}
	if got := f.task(waiting); got.State != catalog.Queued {
		t.Errorf("waiting task is %s, want queued", got.State)
	}
	f.handlers[catalog.KindBackup] = func(context.Context, *Task) error { return nil }
	f.crash()
	f.start()
	if got := f.wait(waiting); got.State != catalog.Succeeded {
		t.Errorf("after the restart it is %s, want succeeded", got.State)
	}
}

func TestWhatCannotBeRemovedStaysOwed(t *testing.T) {
	var f *fixture
	f = newFixture(t, func(ctx context.Context, task *Task) error {
		return errors.Join(f.makeCheckpoint(ctx, task.ID), errors.New("broke"))
	})
	cut := f.platform.Inject(memplatform.OpCleanUp, &memplatform.Fault{Err: fault.New(fault.Transient, "reach host", "", "gone")})
	f.start()
	task := f.wait(f.submit(catalog.KindBackup, "vm_1").ID)
	if cut.Fired() == 0 {
		t.Fatal("the fault did not fire")
	}
	if task.State != catalog.Failed || len(task.Warnings) != 1 || f.owed() != 1 {
		t.Errorf("task = %s, warnings %v, owed %d", task.State, task.Warnings, f.owed())
	}
	f.platform.Heal()
	if _, err := f.queue.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if f.hasCheckpoint(task.ID) || f.owed() != 0 {
		t.Error("the sweep has left something")
	}
}

func TestOwingFailsWithTheCatalog(t *testing.T) {
	f := newFixture(t, nil)
	if err := f.catalog.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.makeCheckpoint(t.Context(), "task_1"); err == nil {
		t.Error("owing succeeded without a catalog")
	}
	if f.hasCheckpoint("task_1") {
		t.Error("something was made although it could not be owed")
	}
}
