package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/hypervisors"
)

// storedVM is a VM's row as it is stored: most rows need not be understood to see that nothing has changed.
type storedVM struct {
	ID, PlatformID      string
	FirstSeen, LastSeen time.Time
	GoneAt              *time.Time
	Description, Facts  []byte
}

// SyncVMs makes the VMs of a connection those of its inventory: new ones are added, changed ones updated, vanished
// ones marked as gone. A VM that comes back is the same VM. What has not changed is not written: the connection says when it was seen.
func (c *Catalog) SyncVMs(ctx context.Context, connectionID string, found []hypervisors.VM) (InventoryReport, error) {
	now := time.Now().UTC()
	report := InventoryReport{VMs: len(found)}
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		var conn Connection
		if err := tx.Select("id", "last_inventory").Where("id = ?", connectionID).Find(&conn).Error; err != nil {
			return err
		}
		known, err := storedVMs(tx, connectionID, "")
		if err != nil {
			return err
		}
		var fresh []VM
		seen := make(map[string]bool, len(found))
		for _, f := range found {
			if f.ID == "" || seen[f.ID] {
				continue
			}
			seen[f.ID] = true
			row, there := known[f.ID]
			delete(known, f.ID)
			switch {
			case !there:
				report.Added++
				fresh = append(fresh, seenVM(VM{}, connectionID, f, now))
				continue
			case row.GoneAt != nil:
				report.Added++
			case row.is(connectionID, f):
				continue
			default:
				report.Changed++
			}
			err := upsertVM(tx, VM{ID: row.ID, ConnectionID: connectionID, PlatformID: row.PlatformID, FirstSeen: row.FirstSeen}, connectionID, f, now)
			if err != nil {
				return err
			}
		}
		if len(fresh) > 0 {
			if err := tx.CreateInBatches(fresh, batch).Error; err != nil {
				return err
			}
		}
		report.Gone, err = markGone(tx, known, conn.LastInventory, now)
		if err != nil {
			return err
		}
		return tx.Model(&Connection{}).Where("id = ?", connectionID).Update("last_inventory", now).Error
	})
	if err != nil {
		return InventoryReport{}, failure("store inventory of", connectionID, err)
	}
	return report, nil
}

// storedVMs returns the rows of a connection by what the platform calls them, or of one VM.
func storedVMs(tx *gorm.DB, connectionID, platformID string) (map[string]storedVM, error) {
	var rows []storedVM
	q := tx.Table("vms").Select("id", "platform_id", "first_seen", "last_seen", "gone_at", "description", "facts").Where("connection_id = ?", connectionID)
	if platformID != "" {
		q = q.Where("platform_id = ?", platformID)
	}
	err := q.Find(&rows).Error
	known := make(map[string]storedVM, len(rows))
	for _, v := range rows {
		known[v.PlatformID] = v
	}
	return known, err
}

// markGone marks VMs that an inventory has not found; they were last seen by the one before it.
func markGone(tx *gorm.DB, vanished map[string]storedVM, before *time.Time, now time.Time) (n int, err error) {
	for _, v := range vanished {
		if v.GoneAt != nil {
			continue
		}
		n++
		last := v.LastSeen
		if before != nil && before.After(last) {
			last = *before
		}
		if err := tx.Model(&VM{}).Where("id = ?", v.ID).Updates(map[string]any{"gone_at": now, "last_seen": last}).Error; err != nil {
			return n, err
		}
	}
	return n, nil
}

// is reports whether a row says already what a platform says of a VM.
func (s storedVM) is(connectionID string, v hypervisors.VM) bool {
	description, err := json.Marshal(v)
	if err != nil || !bytes.Equal(description, s.Description) {
		return false
	}
	facts, err := json.Marshal(factsOf(s.ID, connectionID, v))
	return err == nil && bytes.Equal(facts, s.Facts)
}

// LastInventories returns when the VMs of each connection were last read.
func (c *Catalog) LastInventories(ctx context.Context) (map[string]time.Time, error) {
	var rows []Connection
	if err := c.db.WithContext(ctx).Select("id", "last_inventory").Find(&rows).Error; err != nil {
		return nil, failure("list connections", "", err)
	}
	out := make(map[string]time.Time, len(rows))
	for _, r := range rows {
		if r.LastInventory != nil {
			out[r.ID] = *r.LastInventory
		}
	}
	return out, nil
}
