package catalog

import (
	"context"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// SharedFile is a small secret file of the data directory that all managers need, sealed: the key of a repository, the
// certificate authority.
type SharedFile struct {
	Name   string `gorm:"primaryKey"` // its path in the data directory
	Sealed []byte
}

// ShareFile stores a file; what was stored before is replaced.
func (c *Catalog) ShareFile(ctx context.Context, name string, content Secret) error {
	if err := c.db.WithContext(ctx).Save(&SharedFile{Name: name, Sealed: c.seal.seal(name, content)}).Error; err != nil {
		return failure("share file", name, err)
	}
	return nil
}

// ShareFirst stores a file unless there is one, and returns the one that counts.
func (c *Catalog) ShareFirst(ctx context.Context, name string, content Secret) (Secret, error) {
	var row SharedFile
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		mine := SharedFile{Name: name, Sealed: c.seal.seal(name, content)}
		if err := tx.Clauses(clause.OnConflict{DoNothing: true}).Create(&mine).Error; err != nil {
			return err
		}
		return tx.Where("name = ?", name).Take(&row).Error
	})
	if err != nil {
		return "", failure("share file", name, err)
	}
	return c.seal.open(name, row.Sealed)
}

// FileShared returns a file that was shared, or NotFound.
func (c *Catalog) FileShared(ctx context.Context, name string) (Secret, error) {
	row, err := first[SharedFile](ctx, c, "look up shared file", name, "name = ?", name)
	if err != nil {
		return "", err
	}
	return c.seal.open(name, row.Sealed)
}

// UnshareFile forgets a file; one that is not there is no error.
func (c *Catalog) UnshareFile(ctx context.Context, name string) error {
	if err := c.db.WithContext(ctx).Where("name = ?", name).Delete(&SharedFile{}).Error; err != nil {
		return failure("forget shared file", name, err)
	}
	return nil
}
