package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Opening is what a policy's schedule has made due.
type Opening struct {
	PolicyID string
	Before   time.Time // OpenedUntil as it was read
	Until    time.Time // as it becomes
	Rows     []Occurrence
	Due      time.Time // of the turns
	VMs      []string  // whose turn it is; by id
}

// Open stores what became due, once: when another manager was faster nothing happens, and the answer is false.
func (c *Catalog) Open(ctx context.Context, o Opening) (bool, error) {
	won := false
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		var p Policy
		if err := tx.Where("id = ?", o.PolicyID).Take(&p).Error; err != nil {
			return err
		}
		if p.Paused || !p.OpenedUntil.Equal(o.Before) {
			return nil
		}
		if err := tx.Model(&Policy{}).Where("id = ?", p.ID).UpdateColumn("opened_until", o.Until.UTC()).Error; err != nil {
			return err
		}
		won = true
		if err := tx.Clauses(clause.OnConflict{DoNothing: true}).CreateInBatches(o.Rows, 200).Error; err != nil {
			return err
		}
		return createTurns(tx, p.ID, o.Due, o.VMs)
	})
	if err != nil {
		return false, failure("open turns of policy", o.PolicyID, err)
	}
	return won, nil
}

// OpenNow makes a policy due at an instant, whatever its schedule says, for some VMs.
func (c *Catalog) OpenNow(ctx context.Context, policyID string, now time.Time, vms []string) error {
	now = now.UTC().Truncate(time.Millisecond)
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", policyID).Take(&Policy{}).Error; err != nil {
			return err
		}
		row := Occurrence{PolicyID: policyID, Due: now, VMs: len(vms), At: now}
		if err := tx.Clauses(clause.OnConflict{DoNothing: true}).Create(&row).Error; err != nil {
			return err
		}
		return createTurns(tx, policyID, now, vms)
	})
	if err != nil {
		return failure("run policy", policyID, err)
	}
	return nil
}

func createTurns(tx *gorm.DB, policyID string, due time.Time, vms []string) error {
	if len(vms) == 0 {
		return nil
	}
	turns := make([]Turn, len(vms))
	for i, vm := range vms {
		turns[i] = Turn{ID: NewID(PrefixTurn), PolicyID: policyID, VMID: vm, Due: due.UTC(), State: TurnWaiting, NotBefore: due.UTC()}
	}
	return tx.Clauses(clause.OnConflict{DoNothing: true}).CreateInBatches(turns, 200).Error
}

// RewindPolicy makes a policy due again from an instant that lies far before its OpenedUntil: the clock was wrong and has been put
// right. What became due in a future that is none is forgotten, unless it has begun.
func (c *Catalog) RewindPolicy(ctx context.Context, id string, before, to time.Time) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		var p Policy
		if err := tx.Where("id = ?", id).Take(&p).Error; err != nil || !p.OpenedUntil.Equal(before) {
			return err
		}
		to = to.UTC()
		if err := tx.Where("policy_id = ? AND due > ?", id, to).Delete(&Occurrence{}).Error; err != nil {
			return err
		}
		if err := tx.Where("policy_id = ? AND due > ? AND state <> ?", id, to, TurnRunning).Delete(&Turn{}).Error; err != nil {
			return err
		}
		return tx.Model(&Policy{}).Where("id = ?", id).UpdateColumn("opened_until", to).Error
	})
	if err != nil {
		return failure("put back policy", id, err)
	}
	return nil
}

// OpenTurns returns the turns that are not over, the earliest first.
func (c *Catalog) OpenTurns(ctx context.Context) ([]Turn, error) {
	var out []Turn
	err := c.db.WithContext(ctx).Where("state IN ?", []TurnState{TurnWaiting, TurnRunning}).Order("due, id").Find(&out).Error
	if err != nil {
		return nil, failure("list turns", "", err)
	}
	return out, nil
}

// claimTurn makes a waiting turn that of a run's first task. Of two managers that try it, one gets Conflict.
func claimTurn(tx *gorm.DB, run *Run, task *Task) error {
	res := tx.Model(&Turn{}).Where("id = ? AND state = ?", run.TurnID, TurnWaiting).
		Updates(map[string]any{
			"state": TurnRunning, "run_id": run.ID, "task_id": task.ID, "attempt": gorm.Expr("attempt + 1"), "reason": "",
		})
	if res.Error != nil {
		return res.Error
	}
	if res.RowsAffected == 0 {
		return fault.New(fault.Conflict, "begin turn", run.TurnID, "it has begun, or is over")
	}
	return nil
}

// TurnChange says what becomes of a turn.
type TurnChange struct {
	Turn      Turn // as it was read
	State     TurnState
	Attempt   int
	NotBefore time.Time
	Reason    string
	At        time.Time // when
	// Breaker is the breaker of the VM's connection as it becomes; nil leaves it.
	Breaker *Breaker
}

// ChangeTurn changes a turn that is still as it was read, with the breaker in the same transaction; false when it is not any more.
func (c *Catalog) ChangeTurn(ctx context.Context, ch TurnChange) (bool, error) {
	done := false
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		row := Turn{State: ch.State, Attempt: ch.Attempt, NotBefore: ch.NotBefore.UTC(), Reason: ch.Reason}
		if ch.State.Final() {
			at := ch.At.UTC()
			row.EndedAt = &at
		}
		res := tx.Model(&Turn{}).Where("id = ? AND state = ? AND attempt = ?", ch.Turn.ID, ch.Turn.State, ch.Turn.Attempt).
			Select("state", "attempt", "not_before", "reason", "ended_at").Updates(&row)
		if res.Error != nil || res.RowsAffected == 0 {
			return res.Error
		}
		done = true
		if ch.Breaker == nil {
			return nil
		}
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(ch.Breaker).Error
	})
	if err != nil {
		return false, failure("change turn", ch.Turn.ID, err)
	}
	return done, nil
}

// Breakers returns the breakers of connections, by the connection's id.
func (c *Catalog) Breakers(ctx context.Context) (map[string]Breaker, error) {
	var rows []Breaker
	if err := c.db.WithContext(ctx).Find(&rows).Error; err != nil {
		return nil, failure("list breakers", "", err)
	}
	out := make(map[string]Breaker, len(rows))
	for _, b := range rows {
		out[b.ConnectionID] = b
	}
	return out, nil
}

// TryAgain lets a connection's breaker wait no longer: one backup tries the platform as soon as it may begin.
func (c *Catalog) TryAgain(ctx context.Context, connectionID string, now time.Time) error {
	err := c.db.WithContext(ctx).Model(&Breaker{}).Where("connection_id = ? AND open_until > ?", connectionID, now.UTC()).Update("open_until", now.UTC()).Error
	if err != nil {
		return failure("try connection again", connectionID, err)
	}
	return nil
}

// TasksByID returns some tasks, by their ids.
func (c *Catalog) TasksByID(ctx context.Context, ids []string) (map[string]Task, error) {
	var rows []Task
	if err := c.db.WithContext(ctx).Where("id IN ?", ids).Find(&rows).Error; err != nil {
		return nil, failure("list tasks", "", err)
	}
	out := make(map[string]Task, len(rows))
	for _, t := range rows {
		out[t.ID] = t
	}
	return out, nil
}

// TurnFilter selects turns; empty fields select all.
type TurnFilter struct {
	PolicyID string
	VMID     string
	States   []TurnState
}

// Turns lists turns, the newest first.
func (c *Catalog) Turns(ctx context.Context, f TurnFilter, p Page) (List[Turn], error) {
	q := c.db.WithContext(ctx)
	if f.PolicyID != "" {
		q = q.Where("policy_id = ?", f.PolicyID)
	}
	if f.VMID != "" {
		q = q.Where("vm_id = ?", f.VMID)
	}
	if len(f.States) > 0 {
		q = q.Where("state IN ?", f.States)
	}
	return page(q, p, byAge(func(t Turn) string { return t.ID }, nil))
}

// Occurrences returns the newest instants at which a policy was due, the newest first.
func (c *Catalog) Occurrences(ctx context.Context, policyID string, limit int) ([]Occurrence, error) {
	var out []Occurrence
	err := c.db.WithContext(ctx).Where("policy_id = ?", policyID).Order("due DESC").Limit(limit).Find(&out).Error
	if err != nil {
		return nil, failure("list occurrences of", policyID, err)
	}
	return out, nil
}

// LastMissed returns the newest instant at which nobody noticed that a policy was due; nil for none.
func (c *Catalog) LastMissed(ctx context.Context, policyID string) (*Occurrence, error) {
	var rows []Occurrence
	err := c.db.WithContext(ctx).Where("policy_id = ? AND missed <> ''", policyID).Order("due DESC").Limit(1).Find(&rows).Error
	if err != nil {
		return nil, failure("list occurrences of", policyID, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return &rows[0], nil
}

// VMNames returns the names of some VMs, by their ids.
func (c *Catalog) VMNames(ctx context.Context, ids []string) (map[string]string, error) {
	var rows []VM
	if err := c.db.WithContext(ctx).Select("id", "name").Where("id IN ?", ids).Find(&rows).Error; err != nil {
		return nil, failure("list VMs", "", err)
	}
	out := make(map[string]string, len(rows))
	for _, v := range rows {
		out[v.ID] = v.Name
	}
	return out, nil
}

// PurgeTurns forgets turns and occurrences that are long over.
func (c *Catalog) PurgeTurns(ctx context.Context, before time.Time) error {
	before = before.UTC()
	db := c.db.WithContext(ctx)
	err := db.Where("due < ? AND state NOT IN ?", before, []TurnState{TurnWaiting, TurnRunning}).Delete(&Turn{}).Error
	if err == nil {
		err = db.Where("due < ?", before).Delete(&Occurrence{}).Error
	}
	if err != nil {
		return failure("forget old turns", "", err)
	}
	return nil
}
