package catalog

import (
	"context"

	"gorm.io/gorm"
)

// writeLock is the number of the advisory lock under which the transactions of all managers on one PostgreSQL write.
const writeLock = 0x636169726e // "cairn"

// transaction calls do in a transaction that is alone: no other of this catalog runs meanwhile, in whichever process.
// What do has read is therefore still so when it writes, and numbers that are counted up become visible in their order.
// SQLite has one writer at a time anyway; PostgreSQL gets it from a lock that ends with the transaction.
func (c *Catalog) transaction(ctx context.Context, do func(tx *gorm.DB) error) error {
	return c.db.WithContext(ctx).Transaction(func(tx *gorm.DB) error {
		if c.Shared() {
			// READ COMMITTED: each statement after this one sees what the transaction before has committed.
			if err := tx.Exec("SELECT pg_advisory_xact_lock(?)", writeLock).Error; err != nil {
				return err
			}
		}
		return do(tx)
	})
}
