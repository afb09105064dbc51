package catalog

import (
	"context"
	"time"
)

// AddEvent appends to a run's own list and fills in the sequence number and time.
func (c *Catalog) AddEvent(ctx context.Context, e *Event) error {
	e.Seq, e.Time = 0, time.Now().UTC()
	if err := c.db.WithContext(ctx).Create(e).Error; err != nil {
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
