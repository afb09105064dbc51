package catalog

import (
	"context"
	"time"
)

// LimitKind says what a MoverLimit is of.
type LimitKind string

// The kinds.
const (
	LimitMover     LimitKind = "mover"
	LimitHost      LimitKind = "host"      // of a platform
	LimitDatastore LimitKind = "datastore" // of a platform
	LimitLink      LimitKind = "link"      // movers whose addresses are in one network, together
)

// MoverLimit bounds what transfers use.
type MoverLimit struct {
	ID   string    `gorm:"primaryKey" json:"id"`
	Kind LimitKind `gorm:"not null" json:"kind"`
	// Name of the mover, the host or the datastore, or "*" for each that no other limit of the kind names; of a link, the
	// network, "192.0.2.0/24".
	Name    string `gorm:"not null" json:"name"`
	Slots   int    `json:"slots,omitempty"`   // transfers at once; 0 says nothing. Not of links
	Read    int64  `json:"read,omitempty"`    // bytes a second from and to the platform's disks; 0 says nothing. Of movers and links
	Network int64  `json:"network,omitempty"` // bytes a second between movers and the appliance; 0 says nothing. Of movers and links
	// From and To are minutes of the appliance's day between which it holds, over midnight if To is less; equal: always.
	From      int       `json:"from"`
	To        int       `json:"to"`
	Days      string    `json:"days,omitempty"` // on which From lies, "mon,tue"; "" is all
	CreatedAt time.Time `json:"created_at"`
	CreatedBy string    `json:"created_by"`
}

// AddMoverLimit stores a limit and fills in the id and time.
func (c *Catalog) AddMoverLimit(ctx context.Context, l *MoverLimit) error {
	l.ID, l.CreatedAt = NewID(PrefixLimit), time.Now().UTC()
	if err := c.db.WithContext(ctx).Create(l).Error; err != nil {
		return failure("create limit", l.Name, err)
	}
	return nil
}

// MoverLimits returns all limits, by kind and name.
func (c *Catalog) MoverLimits(ctx context.Context) ([]MoverLimit, error) {
	var out []MoverLimit
	if err := c.db.WithContext(ctx).Order("kind, name, created_at").Find(&out).Error; err != nil {
		return nil, failure("list limits", "", err)
	}
	return out, nil
}

// RemoveMoverLimit removes a limit.
func (c *Catalog) RemoveMoverLimit(ctx context.Context, id string) error {
	res := c.db.WithContext(ctx).Where("id = ?", id).Delete(&MoverLimit{})
	if res.Error != nil {
		return failure("remove limit", id, res.Error)
	}
	if res.RowsAffected == 0 {
		return notFound("remove limit", id)
	}
	return nil
}
