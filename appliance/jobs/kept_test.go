package jobs

import (
	"context"
	"errors"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// note is what the tests' tasks keep.
type note struct{ Text string }

// TestTaskIsTakenUp stops and kills the manager while a task is under way that has kept something: the next one goes on
// with it, and nothing that it owes is removed meanwhile.
func TestTaskIsTakenUp(t *testing.T) {
	for name, stop := range map[string]bool{"stopped": true, "killed": false} {
		t.Run(name, func(t *testing.T) {
			var f *fixture
			reached := make(chan struct{})
			f = newFixture(t, func(ctx context.Context, task *Task) error {
				var n note
				again, err := task.TakenUp(&n)
				if err != nil {
					return err
				}
				if again {
					if n.Text != "here" || task.Attempt != 2 {
						return errors.New("taken up with " + n.Text)
					}
					if !f.hasCheckpoint(task.ID) {
						return errors.New("what it owes was removed")
					}
					return task.Journal().StrikeOff(ctx, task.ID)
				}
				if err := f.makeCheckpoint(ctx, task.ID); err != nil {
					return err
				}
				if err := task.Keep(ctx, note{"here"}); err != nil {
					return err
				}
				close(reached)
				<-ctx.Done()
				err, _ = task.Leave(ctx, ctx.Err())
				return err
			})
			f.start()
			task := f.submit(catalog.KindBackup, "vm_1")
			<-reached
			q := f.queue
			if stop {
				if err := q.Stop(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			f.crash()
			if got := f.task(task.ID); got.State != catalog.Running {
				t.Fatalf("the task is %s between the two managers", got.State)
			}
			f.start()
			got := f.wait(task.ID)
			if got.State != catalog.Succeeded {
				t.Errorf("task = %s, %+v", got.State, got.Error)
			}
			if _, err := f.catalog.Kept(t.Context(), task.ID); kindOf(err) != "not-found" {
				t.Errorf("what was kept is there after the end: %v", err)
			}
		})
	}
}

// TestTaskIsNotTakenUp has kept something of tasks that end all the same when the manager is started again.
func TestTaskIsNotTakenUp(t *testing.T) {
	tests := map[string]func(f *fixture, task *catalog.Task) error{
		"cancelled": func(f *fixture, task *catalog.Task) error {
			_, err := f.catalog.RequestCancel(t.Context(), task.ID)
			return err
		},
		"begun too often": func(f *fixture, task *catalog.Task) error {
			for range maxAttempts {
				if _, err := f.catalog.TakeUp(t.Context(), task.ID); err != nil {
					return err
				}
			}
			return nil
		},
		"with a result": func(f *fixture, task *catalog.Task) error {
			return f.catalog.SetResult(t.Context(), task.ID, catalog.Result{})
		},
		"with a restore point": func(f *fixture, task *catalog.Task) error {
			vm, err := f.catalog.SeeVM(t.Context(), f.conn, f.vm)
			if err != nil {
				return err
			}
			return f.catalog.AddRestorePoint(t.Context(), catalog.RestorePoint{ID: "rp_1", RepositoryID: "repo_1", VMID: vm.ID, TaskID: task.ID})
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, func(context.Context, *Task) error { return errors.New("it was taken up") })
			task := orphan(t, f, catalog.KindBackup)
			if err := f.catalog.Keep(t.Context(), task.ID, "{}"); err != nil {
				t.Fatal(err)
			}
			if err := change(f, task); err != nil {
				t.Fatal(err)
			}
			f.crash()
			f.start()
			if got := f.task(task.ID); !got.State.Final() {
				t.Errorf("the task is %s", got.State)
			}
			if f.owed() != 0 {
				t.Error("something of the task is left")
			}
		})
	}
}
