package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// AuditEntry is one line of the audit log: who did, or was refused, what. Each carries the hash of the one before, so
// that a line that was changed or taken away in the middle is noticed.
type AuditEntry struct {
	Seq      int64     `gorm:"primaryKey;autoIncrement" json:"seq"`
	Time     time.Time `json:"time"`
	Actor    string    `json:"actor"`  // a user's name, or "mover <name>", or "" for a stranger
	Source   string    `json:"source"` // address it came from
	Action   string    `json:"action"` // "mover.enrol", "mover.revoke", "ticket.use", …
	Subject  string    `json:"subject"`
	Refused  bool      `json:"refused"`
	Detail   string    `json:"detail"`
	Previous string    `json:"previous"` // hash of the entry before, "" in the first
	Hash     string    `json:"hash"`     // SHA-256 of all other fields but Seq
}

func (e AuditEntry) hash() string {
	e.Seq, e.Hash = 0, ""
	b, _ := json.Marshal(e) // strings, a bool and a time always marshal
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// Audit appends to the audit log and fills in what is not the caller's.
func (c *Catalog) Audit(ctx context.Context, e AuditEntry) error {
	err := c.transaction(context.WithoutCancel(ctx), func(tx *gorm.DB) error {
		var last AuditEntry
		if err := tx.Order("seq DESC").Limit(1).Find(&last).Error; err != nil {
			return err
		}
		e.Seq, e.Time, e.Previous = 0, time.Now().UTC().Truncate(time.Microsecond), last.Hash
		e.Hash = e.hash()
		return tx.Create(&e).Error
	})
	if err != nil {
		return failure("write audit log", e.Action, err)
	}
	return nil
}

// AuditLog returns up to limit entries before a sequence number, 0 for the end of the log, the newest first.
func (c *Catalog) AuditLog(ctx context.Context, before int64, limit int) ([]AuditEntry, error) {
	if limit <= 0 || limit > MaxLimit {
		limit = DefaultLimit
	}
	q := c.db.WithContext(ctx)
	if before > 0 {
		q = q.Where("seq < ?", before)
	}
	var out []AuditEntry
	if err := q.Order("seq DESC").Limit(limit).Find(&out).Error; err != nil {
		return nil, failure("read audit log", "", err)
	}
	return out, nil
}

// CheckAudit follows the chain of hashes from the first entry; a Corrupt error names the first that does not fit.
func (c *Catalog) CheckAudit(ctx context.Context) error {
	previous := ""
	for after := int64(0); ; {
		var part []AuditEntry
		if err := c.db.WithContext(ctx).Where("seq > ?", after).Order("seq").Limit(MaxLimit).Find(&part).Error; err != nil {
			return failure("check audit log", "", err)
		}
		for _, e := range part {
			e.Time = e.Time.UTC()
			if e.Previous != previous || e.Hash != e.hash() {
				return fault.New(fault.Corrupt, "check audit log", "", "entry %d does not fit the one before", e.Seq).Explain(
					"An entry was changed or removed since it was written.", "Compare with a copy of the log from elsewhere.")
			}
			previous, after = e.Hash, e.Seq
		}
		if len(part) < MaxLimit {
			return nil
		}
	}
}
