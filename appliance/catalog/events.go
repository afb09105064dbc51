package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"
)

// AddEvent appends to a run's own list and fills in the sequence number and time.
func (c *Catalog) AddEvent(ctx context.Context, e *Event) error {
	e.Seq, e.Time, e.ManagerID = 0, time.Now().UTC(), c.manager
	// In a transaction of its own, so that events become visible in the order of their numbers.
	if err := c.transaction(ctx, func(tx *gorm.DB) error { return tx.Create(e).Error }); err != nil {
		return failure("store event of", e.RunID, err)
	}
	return nil
}

// Events returns up to limit events after a sequence number, of one run or, for "", of all, the oldest first.
func (c *Catalog) Events(ctx context.Context, runID string, after int64, limit int) ([]Event, error) {
	if limit <= 0 || limit > MaxLimit {
		limit = MaxLimit
	}
	q := c.db.WithContext(ctx).Where("seq > ?", after)
	if runID != "" {
		q = q.Where("run_id = ?", runID)
	}
	var out []Event
	if err := q.Order("seq").Limit(limit).Find(&out).Error; err != nil {
		return nil, failure("list events of", runID, err)
	}
	return out, nil
}

// EventsElsewhere returns what other managers have added to the runs' lists after a sequence number, the oldest first, and the
// number after which to ask next.
func (c *Catalog) EventsElsewhere(ctx context.Context, after int64) (out []Event, next int64, err error) {
	if next, err = c.LastEvent(ctx); err != nil || next <= after {
		return nil, after, err
	}
	err = c.db.WithContext(ctx).Where("seq > ? AND manager_id <> ?", after, c.manager).Order("seq").Limit(MaxLimit).Find(&out).Error
	if err != nil {
		return nil, after, failure("list events of other managers", "", err)
	}
	if len(out) > 0 {
		next = max(next, out[len(out)-1].Seq)
	}
	if len(out) == MaxLimit {
		next = out[len(out)-1].Seq
	}
	return out, next, nil
}

// LastEvent is the greatest sequence number.
func (c *Catalog) LastEvent(ctx context.Context) (int64, error) {
	var last int64
	if err := c.db.WithContext(ctx).Model(&Event{}).Select("COALESCE(MAX(seq), 0)").Scan(&last).Error; err != nil {
		return 0, failure("look up last event", "", err)
	}
	return last, nil
}
