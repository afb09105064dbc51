package catalog

import (
	"context"
	"strings"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
)

// VMFilter selects VMs; empty fields select all.
type VMFilter struct {
	ConnectionID string
	Name         string // "*" stands for anything
	Power        hypervisors.Power
	Gone         bool   // include VMs that vanished
	Filter       string // of package policy; selects none that vanished
}

// InventoryReport says what a reading of the inventory changed.
type InventoryReport struct{ VMs, Added, Changed, Gone int }

// VM returns one VM by its id.
func (c *Catalog) VM(ctx context.Context, id string) (VM, error) {
	return first[VM](ctx, c, "look up VM", id, "id = ?", id)
}

// VMByPlatformID returns one VM by what the platform calls it.
func (c *Catalog) VMByPlatformID(ctx context.Context, connectionID, platformID string) (VM, error) {
	return first[VM](ctx, c, "look up VM", platformID, "connection_id = ? AND platform_id = ?", connectionID, platformID)
}

// VMs lists VMs by name, or by power.
func (c *Catalog) VMs(ctx context.Context, f VMFilter, p Page) (List[VM], error) {
	q := c.db.WithContext(ctx)
	if f.Filter != "" {
		var err error
		if q, err = c.selected(ctx, q, f.Filter); err != nil {
			return List[VM]{}, err
		}
		f.Gone = false
	}
	if f.ConnectionID != "" {
		q = q.Where("connection_id = ?", f.ConnectionID)
	}
	if f.Name != "" {
		q = q.Where("name "+c.like()+` ? ESCAPE '\'`, likeEscaper.Replace(f.Name))
	}
	if f.Power != "" {
		q = q.Where("power = ?", f.Power)
	}
	if !f.Gone {
		q = q.Where("gone_at IS NULL")
	}
	return page(q, p, byName(func(v VM) string { return v.Name }, func(v VM) string { return v.ID }, map[string]order[VM]{
		"power": by("power", func(v VM) hypervisors.Power { return v.Power }),
	}))
}

// selected restricts a query to the VMs that a filter of package policy selects. It names those, or the others where they are fewer.
func (c *Catalog) selected(ctx context.Context, q *gorm.DB, text string) (*gorm.DB, error) {
	filter, err := policy.ParseFilter(text)
	if err != nil {
		return nil, err
	}
	facts, err := c.VMFacts(ctx)
	if err != nil {
		return nil, err
	}
	var in, out []string
	for _, v := range facts {
		if filter.Match(v) {
			in = append(in, v.ID)
		} else {
			out = append(out, v.ID)
		}
	}
	if len(in) <= len(out) {
		return q.Where("id IN ?", in), nil
	}
	if len(out) == 0 {
		return q, nil
	}
	return q.Where("id NOT IN ?", out), nil
}

var likeEscaper = strings.NewReplacer(`\`, `\\`, "%", `\%`, "_", `\_`, "*", "%")

// EnsureVM returns the catalog's VM for one of a platform, which is made, as gone, when it is not there: restore
// points found in a repository can be of VMs that are no more.
func (c *Catalog) EnsureVM(ctx context.Context, connectionID string, v hypervisors.VM) (VM, error) {
	row, err := first[VM](ctx, c, "look up VM", v.ID, "connection_id = ? AND platform_id = ?", connectionID, v.ID)
	if !isNotFound(err) {
		return row, err
	}
	now := time.Now().UTC()
	row = VM{
		ID: NewID(PrefixVM), ConnectionID: connectionID, PlatformID: v.ID, Name: cleanText(v.Name), Power: hypervisors.PowerOther,
		Description: v, FirstSeen: now, LastSeen: now, GoneAt: &now,
	}
	if err := c.db.WithContext(ctx).Create(&row).Error; err != nil {
		return VM{}, failure("store VM", v.Name, err)
	}
	return row, nil
}

// SeeVM stores what a platform says about one VM now.
func (c *Catalog) SeeVM(ctx context.Context, connectionID string, v hypervisors.VM) (VM, error) {
	if _, err := c.NoteVM(ctx, connectionID, v); err != nil {
		return VM{}, err
	}
	return c.VMByPlatformID(ctx, connectionID, v.ID)
}

// NoteVM stores what a platform says about one VM now, and reports whether that is something new.
func (c *Catalog) NoteVM(ctx context.Context, connectionID string, v hypervisors.VM) (changed bool, err error) {
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		known, err := storedVMs(tx, connectionID, v.ID)
		if err != nil {
			return err
		}
		row, there := known[v.ID]
		if there && row.GoneAt == nil && row.is(connectionID, v) {
			return nil
		}
		changed = true
		vm := VM{}
		if there {
			vm = VM{ID: row.ID, ConnectionID: connectionID, PlatformID: v.ID, FirstSeen: row.FirstSeen}
		}
		return upsertVM(tx, vm, connectionID, v, time.Now().UTC())
	})
	if err != nil {
		return false, failure("store VM", v.Name, err)
	}
	return changed, nil
}

// NoteGone marks a VM as gone that its platform does not have any more, and reports whether it was there.
func (c *Catalog) NoteGone(ctx context.Context, connectionID, platformID string) (bool, error) {
	now := time.Now().UTC()
	res := c.db.WithContext(ctx).Model(&VM{}).Where("connection_id = ? AND platform_id = ? AND gone_at IS NULL", connectionID, platformID).
		Updates(map[string]any{"gone_at": now, "last_seen": now})
	if res.Error != nil {
		return false, failure("store that VM is gone", platformID, res.Error)
	}
	return res.RowsAffected > 0, nil
}

func upsertVM(tx *gorm.DB, row VM, connectionID string, v hypervisors.VM, now time.Time) error {
	row = seenVM(row, connectionID, v, now)
	return tx.Save(&row).Error
}

// seenVM is the row of a VM as a platform describes it now; a row without an id is a new one.
func seenVM(row VM, connectionID string, v hypervisors.VM, now time.Time) VM {
	if row.ID == "" {
		row = VM{ID: NewID(PrefixVM), ConnectionID: connectionID, PlatformID: v.ID, FirstSeen: now}
	}
	row.Name, row.Power, row.Description, row.LastSeen, row.GoneAt = cleanText(v.Name), v.Power, v, now, nil
	row.Facts = factsOf(row.ID, connectionID, v)
	return row
}

// CountVMs returns how many VMs a connection has, those that vanished not counted.
func (c *Catalog) CountVMs(ctx context.Context, connectionID string) (int, error) {
	var n int64
	err := c.db.WithContext(ctx).Model(&VM{}).Where("connection_id = ? AND gone_at IS NULL", connectionID).Count(&n).Error
	if err != nil {
		return 0, failure("count VMs of", connectionID, err)
	}
	return int(n), nil
}

// VMOfMachine returns the VM that a platform knows by this id, which is what the VM's own firmware says; a NotFound
// error when none has it, or more than one.
func (c *Catalog) VMOfMachine(ctx context.Context, platformID string) (VM, error) {
	var rows []VM
	err := c.db.WithContext(ctx).Where("platform_id = ? AND gone_at IS NULL", platformID).Limit(2).Find(&rows).Error
	if err != nil {
		return VM{}, failure("look up VM of machine", platformID, err)
	}
	if len(rows) != 1 {
		return VM{}, notFound("look up VM of machine", platformID)
	}
	return rows[0], nil
}
