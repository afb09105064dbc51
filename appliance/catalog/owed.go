package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/hypervisors"
)

// Owe records, durably, a clean-up for something that is about to be made.
func (c *Catalog) Owe(ctx context.Context, connectionID, taskID string, owed hypervisors.Owed) (OwedCleanup, error) {
	row := OwedCleanup{ID: NewID(PrefixOwed), ConnectionID: connectionID, TaskID: taskID, Owed: owed, CreatedAt: time.Now().UTC()}
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := c.alive(tx); err != nil { // nobody makes anything on a platform for a task that others have taken over
			return err
		}
		return tx.Create(&row).Error
	})
	if err != nil {
		return OwedCleanup{}, failure("record owed clean-up", owed.Name, err)
	}
	return row, nil
}

// OpenCleanups returns the clean-ups that are owed, the newest first: things are removed in the opposite order of
// their making. A taskID of "" means those of all tasks.
func (c *Catalog) OpenCleanups(ctx context.Context, taskID string) ([]OwedCleanup, error) {
	q := c.db.WithContext(ctx).Where("done_at IS NULL")
	if taskID != "" {
		q = q.Where("task_id = ?", taskID)
	}
	var out []OwedCleanup
	if err := q.Order("id DESC").Find(&out).Error; err != nil {
		return nil, failure("list owed clean-ups", taskID, err)
	}
	return out, nil
}

// StrikeOff marks a clean-up as done.
func (c *Catalog) StrikeOff(ctx context.Context, id string) error {
	err := c.db.WithContext(ctx).Model(&OwedCleanup{}).Where("id = ?", id).
		Select("done_at", "last_error").Updates(map[string]any{"done_at": time.Now().UTC(), "last_error": nil}).Error
	if err != nil {
		return failure("strike off clean-up", id, err)
	}
	return nil
}

// StrikeOffTask marks every clean-up of a task as done.
func (c *Catalog) StrikeOffTask(ctx context.Context, taskID string) error {
	err := c.db.WithContext(ctx).Model(&OwedCleanup{}).Where("task_id = ? AND done_at IS NULL", taskID).
		Update("done_at", time.Now().UTC()).Error
	if err != nil {
		return failure("strike off clean-ups of", taskID, err)
	}
	return nil
}

// CleanupFailed records that removing something did not work.
func (c *Catalog) CleanupFailed(ctx context.Context, row OwedCleanup, cause error) error {
	err := c.db.WithContext(ctx).Model(&OwedCleanup{}).Where("id = ?", row.ID).Select("attempts", "last_error").
		Updates(&OwedCleanup{Attempts: row.Attempts + 1, LastError: FailureOf(cause)}).Error
	if err != nil {
		return failure("record clean-up", row.ID, err)
	}
	return nil
}

// PurgeCleanups forgets clean-ups that were done before a time.
func (c *Catalog) PurgeCleanups(ctx context.Context, before time.Time) error {
	if err := c.db.WithContext(ctx).Where("done_at < ?", before.UTC()).Delete(&OwedCleanup{}).Error; err != nil {
		return failure("forget old clean-ups", "", err)
	}
	return nil
}
