package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// KeptTask is what a running task needs to be taken up by the next process, in the task's own words, sealed: it has
// documents of the VM in it. It goes when the task ends.
type KeptTask struct {
	TaskID string `gorm:"primaryKey"`
	Sealed []byte
}

// Keep stores what a running task needs to be taken up by the next process; what was kept before is replaced.
func (c *Catalog) Keep(ctx context.Context, taskID string, what Secret) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		t, err := runningTask(tx, taskID)
		if err == nil {
			err = c.mine(tx, t)
		}
		if err != nil {
			return err
		}
		return tx.Save(&KeptTask{TaskID: taskID, Sealed: c.seal.seal(taskID, what)}).Error
	})
	if err != nil {
		return failure("keep task", taskID, err)
	}
	return nil
}

// Kept returns what was kept of a task, or NotFound.
func (c *Catalog) Kept(ctx context.Context, taskID string) (Secret, error) {
	row, err := first[KeptTask](ctx, c, "take up task", taskID, "task_id = ?", taskID)
	if err != nil {
		return "", err
	}
	return c.seal.open(taskID, row.Sealed)
}

// TakeUp begins another attempt of a task that was running when a process ended.
func (c *Catalog) TakeUp(ctx context.Context, id string) (Task, error) {
	var t Task
	err := c.transaction(ctx, func(tx *gorm.DB) (err error) {
		if t, err = runningTask(tx, id); err == nil {
			err = c.mine(tx, t)
		}
		if err != nil {
			return err
		}
		t.Attempt++
		if err := tx.Model(&Task{}).Where("id = ?", id).Update("attempt", t.Attempt).Error; err != nil {
			return err
		}
		return refreshRun(tx, &t, time.Now().UTC())
	})
	if err != nil {
		return Task{}, failure("take up task", id, err)
	}
	return t, nil
}

// runningTask returns a task, which must be running: Conflict if it is not.
func runningTask(tx *gorm.DB, id string) (t Task, err error) {
	if err := tx.Where("id = ?", id).Take(&t).Error; err != nil {
		return t, err
	}
	if t.State != Running {
		return t, fault.New(fault.Conflict, "", "", "the task is %s", t.State)
	}
	return t, nil
}
