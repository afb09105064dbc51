package catalog

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// KeyedRequest is a request with a key of its client's choice, and once it was answered, the answer. Requests that start
// a run are not here: the run itself tells a repetition.
type KeyedRequest struct {
	User        string    `gorm:"primaryKey;column:requested_by"`
	RequestKey  string    `gorm:"primaryKey"`
	Fingerprint string    `gorm:"not null"`
	Sealed      []byte    // the answer, which may hold a secret; empty as long as there is none
	CreatedAt   time.Time `gorm:"index"`
}

// BeginKeyed notes that a request is under way. When the user's key is known already, nothing is noted: the answer is
// the known request and true. Requests older than a day are forgotten.
func (c *Catalog) BeginKeyed(ctx context.Context, user, key, fingerprint string) (known KeyedRequest, found bool, err error) {
	now := time.Now().UTC()
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("created_at < ?", now.Add(-requestKept)).Delete(&KeyedRequest{}).Error; err != nil {
			return err
		}
		err := tx.Where("requested_by = ? AND request_key = ?", user, key).Take(&known).Error
		if found = err == nil; found || !errors.Is(err, gorm.ErrRecordNotFound) {
			return err
		}
		return tx.Create(&KeyedRequest{User: user, RequestKey: key, Fingerprint: fingerprint, CreatedAt: now}).Error
	})
	if errors.Is(err, gorm.ErrDuplicatedKey) { // another manager was faster
		return known, false, fault.New(fault.Conflict, "note request", key, "a request with this key has just begun")
	}
	if err != nil {
		return known, false, failure("note request", key, err)
	}
	return known, found, nil
}

// AnswerKeyed stores the answer to a request, sealed.
func (c *Catalog) AnswerKeyed(ctx context.Context, user, key string, answer Secret) error {
	err := c.db.WithContext(ctx).Model(&KeyedRequest{}).Where("requested_by = ? AND request_key = ?", user, key).
		Update("sealed", c.seal.seal(user+"\n"+key, answer)).Error
	if err != nil {
		return failure("store answer to", key, err)
	}
	return nil
}

// AnswerOf returns the answer to a request; "" when there is none yet.
func (c *Catalog) AnswerOf(r KeyedRequest) (Secret, error) {
	if len(r.Sealed) == 0 {
		return "", nil
	}
	return c.seal.open(r.User+"\n"+r.RequestKey, r.Sealed)
}

// ForgetKeyed forgets a request that came to nothing, so that it can be made again.
func (c *Catalog) ForgetKeyed(ctx context.Context, user, key string) error {
	err := c.db.WithContext(ctx).Where("requested_by = ? AND request_key = ?", user, key).Delete(&KeyedRequest{}).Error
	if err != nil {
		return failure("forget request", key, err)
	}
	return nil
}
