package catalog

import (
	"context"
	"errors"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Manager is a cairnd at work on this catalog, or one that was. A process is a manager of its own each time it starts.
type Manager struct {
	ID        string     `gorm:"primaryKey" json:"id"`
	Name      string     `json:"name"`    // of its machine
	Address   string     `json:"address"` // of its API, "" until it listens
	Version   string     `json:"version"`
	StartedAt time.Time  `json:"started_at"`
	SeenAt    time.Time  `json:"seen_at"`            // by the database's clock
	EndedAt   *time.Time `json:"ended_at,omitempty"` // it left, or was not seen for too long; it never comes back
	Settled   bool       `json:"-"`                  // what it left in the queue is queued again
}

// ErrBuried is in the chain of errors of a manager that the others have taken for dead: what it was at is theirs now.
var ErrBuried = errors.New("this manager was taken for dead")

func buried(op string) error {
	return fault.Wrap(fault.Conflict, op, "", ErrBuried).Explain(
		"This manager was not seen in the database for too long (a lost link, a machine that stood still), so the others have taken over what it was at.",
		"It ends by itself and can be started again. Look at the link between it and the database.")
}

// databaseNow is the time by the one clock that all managers share.
func databaseNow(tx *gorm.DB, shared bool) (time.Time, error) {
	if !shared {
		return time.Now().UTC(), nil
	}
	var now time.Time
	err := tx.Raw("SELECT clock_timestamp()").Scan(&now).Error
	return now, err
}

// Join makes this process one of the catalog's managers and fills in id and times. Where no others can be, any before it
// has ended. From now on what only a living manager may do is refused when this one was taken for dead.
func (c *Catalog) Join(ctx context.Context, m *Manager) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		now, err := databaseNow(tx, c.Shared())
		if err != nil {
			return err
		}
		if !c.Shared() {
			if err := tx.Where("1 = 1").Delete(&Manager{}).Error; err != nil {
				return err
			}
		}
		m.ID, m.StartedAt, m.SeenAt, m.EndedAt = NewID(PrefixManager), now, now, nil
		return tx.Create(m).Error
	})
	if err != nil {
		return failure("join the managers", m.Name, err)
	}
	c.manager = m.ID
	return nil
}

// ManagerID is the id of this process among the managers; "" before Join.
func (c *Catalog) ManagerID() string { return c.manager }

// Beat says that this manager is alive. An error that matches ErrBuried means that the others hold it for dead. It waits
// for no lock and no other statement of this process.
func (c *Catalog) Beat(ctx context.Context) error {
	res, err := c.side.ExecContext(ctx, "UPDATE managers SET seen_at = clock_timestamp() WHERE id = $1 AND ended_at IS NULL", c.manager)
	if err != nil {
		return failure("show that this manager is alive", "", err)
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(buried("show that this manager is alive"), err)
	}
	return nil
}

// Leave ends this manager's part, so that others need not wait until they miss it.
func (c *Catalog) Leave(ctx context.Context) error {
	if c.manager == "" {
		return nil
	}
	err := c.transaction(ctx, func(tx *gorm.DB) error { return endManagers(tx, time.Now().UTC(), "id = ?", c.manager) })
	if err != nil {
		return failure("leave the managers", "", err)
	}
	return nil
}

// endManagers ends managers, what they held of VMs, and what they were asked for.
func endManagers(tx *gorm.DB, now time.Time, where string, args ...any) error {
	if err := tx.Model(&Manager{}).Where("ended_at IS NULL").Where(where, args...).Update("ended_at", now).Error; err != nil {
		return err
	}
	for _, of := range []any{&VMHold{}, &MaintenanceRequest{}} {
		if err := tx.Where("manager_id NOT IN (?)", living(tx).Select("id")).Delete(of).Error; err != nil {
			return err
		}
	}
	return nil
}

func living(tx *gorm.DB) *gorm.DB {
	return tx.Session(&gorm.Session{NewDB: true}).Model(&Manager{}).Where("ended_at IS NULL")
}

// SetManagerAddress stores where this manager's API is.
func (c *Catalog) SetManagerAddress(ctx context.Context, address string) error {
	if err := c.db.WithContext(ctx).Model(&Manager{}).Where("id = ?", c.manager).Update("address", address).Error; err != nil {
		return failure("store address of manager", "", err)
	}
	return nil
}

// Managers returns the managers that are alive, the oldest first.
func (c *Catalog) Managers(ctx context.Context) ([]Manager, error) {
	var out []Manager
	if err := living(c.db.WithContext(ctx)).Order("id").Find(&out).Error; err != nil {
		return nil, failure("list managers", "", err)
	}
	return out, nil
}

// alive is an error when this process has joined and was taken for dead since. Burying is a transaction, too, so the
// answer holds until this one ends.
func (c *Catalog) alive(tx *gorm.DB) error {
	if c.manager == "" {
		return nil
	}
	var n int64
	if err := living(tx).Where("id = ?", c.manager).Count(&n).Error; err != nil {
		return err
	}
	if n == 0 {
		return buried("")
	}
	return nil
}

// aliveFor is how long ago a manager may have been seen that is taken for one at work, when the tables are to be changed.
const aliveFor = time.Minute

// nobodyElse is an error while managers are at work, which know only the tables as they are.
func (c *Catalog) nobodyElse(tx *gorm.DB) error {
	if !c.Shared() || !tx.Migrator().HasTable(&Manager{}) {
		return nil
	}
	now, err := databaseNow(tx, true)
	if err != nil {
		return err
	}
	var names []string
	if err := living(tx).Where("seen_at > ?", now.Add(-aliveFor)).Pluck("name", &names).Error; err != nil || len(names) == 0 {
		return err
	}
	return fault.New(fault.Conflict, "", "", "managers of an older version are at work: %s", strings.Join(names, ", ")).Explain(
		"This version changes the tables of the catalog, and the managers that are at work know only the present ones.",
		"Stop them, start this one, then start the others in the same version.")
}

// mine is an error when a running task is not, or not any more, this process's.
func (c *Catalog) mine(tx *gorm.DB, t Task) error {
	if c.manager == "" {
		return nil
	}
	if t.ManagerID != c.manager {
		return fault.New(fault.Conflict, "", "", "another manager has the task")
	}
	return c.alive(tx)
}

// VMHold keeps other managers from changing a VM on its platform.
type VMHold struct {
	Key       string `gorm:"primaryKey"` // connection and VM
	ManagerID string `gorm:"not null"`
	Token     string // of who holds it there
}

// HoldVM takes a VM for this manager, which lets only one in it have it at a time; false means that another manager has it.
// The token ends the hold.
func (c *Catalog) HoldVM(ctx context.Context, key, token string) (held bool, err error) {
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		if err := c.alive(tx); err != nil {
			return err
		}
		var row VMHold
		if err := tx.Where("key = ?", key).Limit(1).Find(&row).Error; err != nil {
			return err
		}
		if held = row.Key == "" || row.ManagerID == c.manager; !held {
			return nil
		}
		return tx.Save(&VMHold{Key: key, ManagerID: c.manager, Token: token}).Error
	})
	if err != nil {
		return false, failure("hold VM", key, err)
	}
	return held, nil
}

// ReleaseVM ends a hold; one that was taken anew since stays.
func (c *Catalog) ReleaseVM(ctx context.Context, key, token string) error {
	err := c.db.WithContext(ctx).Where("key = ? AND token = ?", key, token).Delete(&VMHold{}).Error
	if err != nil {
		return failure("let go of VM", key, err)
	}
	return nil
}
