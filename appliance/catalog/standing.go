package catalog

import (
	"context"
	"errors"
	"time"

	"gorm.io/gorm"
)

// PrefixAppliance is that of an appliance's own id.
const PrefixAppliance = "app"

// Standing is which appliance this is, and whether it works by itself. An appliance that is recovered keeps its id; its incarnation is
// one more, which is how the one before, if it still lives, learns that it is not the appliance any more.
type Standing struct {
	ID          int        `gorm:"primaryKey;autoIncrement:false"`
	Appliance   string     `gorm:"not null"`
	Incarnation int        `gorm:"not null"`
	RecoveredAt *time.Time // into this catalog
	From        string     `gorm:"column:recovered_from"` // which version of which repository, in words
	Held        bool       // nothing begins by itself until somebody says so
	// SupersededAt is when this one learned that it was recovered elsewhere; By says where.
	SupersededAt *time.Time
	By           string `gorm:"column:superseded_by"`
}

// Idle reports whether nothing is to begin by itself.
func (s Standing) Idle() bool { return s.Held || s.SupersededAt != nil }

// Standing returns which appliance this is; one that has no identity yet is given one.
func (c *Catalog) Standing(ctx context.Context) (Standing, error) {
	var s Standing
	err := c.db.WithContext(ctx).Take(&s).Error
	if errors.Is(err, gorm.ErrRecordNotFound) {
		err = c.transaction(ctx, func(tx *gorm.DB) error {
			err := tx.Take(&s).Error // another manager may have been faster
			if errors.Is(err, gorm.ErrRecordNotFound) {
				s = Standing{ID: 1, Appliance: NewID(PrefixAppliance), Incarnation: 1}
				err = tx.Create(&s).Error
			}
			return err
		})
	}
	if err != nil {
		return Standing{}, failure("look up this appliance", "", err)
	}
	return s, nil
}

// Resume lets things begin by themselves again. Nothing that was due before now is due.
func (c *Catalog) Resume(ctx context.Context, now time.Time) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Model(&Standing{}).Where("id = 1").Update("held", false).Error; err != nil {
			return err
		}
		return tx.Model(&Policy{}).Where("opened_until < ?", now.UTC()).UpdateColumn("opened_until", now.UTC()).Error
	})
	if err != nil {
		return failure("resume", "", err)
	}
	return nil
}

// Supersede notes that the appliance was recovered elsewhere. The first time counts.
func (c *Catalog) Supersede(ctx context.Context, by string, now time.Time) error {
	err := c.db.WithContext(ctx).Model(&Standing{}).Where("id = 1 AND superseded_at IS NULL").
		Updates(map[string]any{"superseded_at": now.UTC(), "superseded_by": by}).Error
	if err != nil {
		return failure("note that the appliance was recovered elsewhere", "", err)
	}
	return nil
}
