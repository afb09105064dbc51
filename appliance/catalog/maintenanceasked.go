package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// MaintenanceRequest asks one of several managers for maintenance of its repositories. It is there until that is done, or its manager
// is no more.
type MaintenanceRequest struct {
	Kind      MaintenanceKind `gorm:"primaryKey"`
	ManagerID string          `gorm:"primaryKey"`
	ID        string          `gorm:"not null"`
	AskedAt   time.Time       `gorm:"not null"`
}

// AskMaintenance asks the other managers that work with repositories, and returns how many there are. An earlier request is replaced: what
// its manager is at then is done once more.
func (c *Catalog) AskMaintenance(ctx context.Context, kind MaintenanceKind, now time.Time) (asked int, err error) {
	if !c.Shared() {
		return 0, nil
	}
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		if err := c.alive(tx); err != nil {
			return err
		}
		var others []string
		q := tx.Model(&RepositoryOwner{}).Where("manager_id <> ? AND manager_id IN (?)", c.manager, living(tx).Select("id"))
		if err := q.Distinct().Order("manager_id").Pluck("manager_id", &others).Error; err != nil {
			return err
		}
		asked = len(others)
		for _, id := range others {
			row := MaintenanceRequest{Kind: kind, ManagerID: id, ID: NewID(PrefixRequest), AskedAt: now.UTC()}
			if err := tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error; err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, failure("ask for maintenance", string(kind), err)
	}
	return asked, nil
}

// MaintenanceRequests returns what managers were asked for and have not done yet.
func (c *Catalog) MaintenanceRequests(ctx context.Context) (out []MaintenanceRequest, err error) {
	if !c.Shared() {
		return nil, nil
	}
	db := c.db.WithContext(ctx)
	if err := db.Where("manager_id IN (?)", living(db).Select("id")).Order("id").Find(&out).Error; err != nil {
		return nil, failure("list requests for maintenance", "", err)
	}
	return out, nil
}

// EndMaintenanceRequest forgets a request that was answered.
func (c *Catalog) EndMaintenanceRequest(ctx context.Context, id string) error {
	if err := c.db.WithContext(ctx).Where("id = ?", id).Delete(&MaintenanceRequest{}).Error; err != nil {
		return failure("end request for maintenance", id, err)
	}
	return nil
}
