package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// MaintenanceKind is what the appliance does by itself to stay in order.
type MaintenanceKind string

// The kinds.
const (
	MaintainInventory MaintenanceKind = "inventory" // read every connection's VMs
	MaintainVerify    MaintenanceKind = "verify"    // read repositories back, a part at a time
	MaintainPrune     MaintenanceKind = "prune"     // carry out the retention of policies
	MaintainCollect   MaintenanceKind = "collect"   // free what no restore point needs
	MaintainSweep     MaintenanceKind = "sweep"     // remove what tasks have left on platforms
	MaintainReread    MaintenanceKind = "reread"    // make the catalog's restore points those of the repositories
)

// MaintenanceKinds are all, in their order.
var MaintenanceKinds = []MaintenanceKind{MaintainInventory, MaintainVerify, MaintainPrune, MaintainCollect, MaintainSweep, MaintainReread}

// Maintenance says when a kind of maintenance is due, and how the last one went.
type Maintenance struct {
	Kind        MaintenanceKind `gorm:"primaryKey" json:"kind"`
	Schedule    string          `json:"schedule"`
	TimeZone    string          `json:"time_zone"`
	Windows     []string        `gorm:"serializer:json" json:"windows,omitempty"`
	Paused      bool            `json:"paused"`
	BudgetBytes int64           `json:"budget_bytes,omitempty"` // of one verification, prune, collect or reread of a repository
	UpdatedBy   string          `json:"updated_by,omitempty"`
	LastStarted *time.Time      `json:"last_started,omitempty"`
	LastEnded   *time.Time      `json:"last_ended,omitempty"`
	LastResult  string          `json:"last_result,omitempty"`
	LastError   *Failure        `gorm:"serializer:json" json:"last_error,omitempty"`
	// LastParts is how the last one went by repository or connection.
	LastParts []MaintenancePart `gorm:"serializer:json" json:"last_parts,omitempty"`
}

// MaintenancePart is how maintenance of one repository or connection went.
type MaintenancePart struct {
	ID     string    `json:"id"`
	Name   string    `json:"name"`
	At     time.Time `json:"at"`
	RunID  string    `json:"run_id,omitempty"` // that does it
	Result string    `json:"result,omitempty"`
	Error  *Failure  `json:"error,omitempty"`
}

// DefaultBudget is how much one verification reads unless somebody has said otherwise: so a repository is never busy with it for days on
// end, and little is lost when the appliance is stopped.
const DefaultBudget = 256 << 30

// defaultMaintenance is what holds until somebody says otherwise.
func defaultMaintenance(kind MaintenanceKind) Maintenance {
	m := Maintenance{Kind: kind, TimeZone: "UTC", Schedule: "*:0/15"}
	switch kind {
	case MaintainVerify:
		m.Schedule, m.BudgetBytes = "*:00", DefaultBudget
	case MaintainCollect:
		m.Schedule = "05:30"
	case MaintainPrune:
		m.Schedule = "05:00"
	case MaintainSweep:
		m.Schedule = "*:0/5"
	case MaintainReread:
		m.Schedule = "06:30"
	}
	return m
}

// Maintenance returns every kind, with what holds for those of which nobody has said anything.
func (c *Catalog) Maintenance(ctx context.Context) ([]Maintenance, error) {
	var rows []Maintenance
	if err := c.db.WithContext(ctx).Find(&rows).Error; err != nil {
		return nil, failure("list maintenance", "", err)
	}
	known := map[MaintenanceKind]Maintenance{}
	for _, row := range rows {
		known[row.Kind] = row
	}
	out := make([]Maintenance, len(MaintenanceKinds))
	for i, kind := range MaintenanceKinds {
		out[i] = defaultMaintenance(kind)
		if row, ok := known[kind]; ok {
			out[i] = row
		}
	}
	return out, nil
}

// UpdateMaintenance changes one kind as change says.
func (c *Catalog) UpdateMaintenance(ctx context.Context, kind MaintenanceKind, change func(*Maintenance)) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		row := defaultMaintenance(kind)
		var rows []Maintenance
		if err := tx.Where("kind = ?", kind).Find(&rows).Error; err != nil {
			return err
		}
		if len(rows) > 0 {
			row = rows[0]
		}
		change(&row)
		row.Kind = kind
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error
	})
	if err != nil {
		return failure("change maintenance", string(kind), err)
	}
	return nil
}
