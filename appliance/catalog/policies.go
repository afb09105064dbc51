package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// CreatePolicy stores a new policy and fills in its id and times. It is due for the first time after now.
func (c *Catalog) CreatePolicy(ctx context.Context, p *Policy, now time.Time) error {
	p.ID, p.Version, p.OpenedUntil = NewID(PrefixPolicy), 1, now.UTC()
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := hasRepository(tx, p.Spec.RepositoryID); err != nil {
			return err
		}
		return tx.Create(p).Error
	})
	if err != nil {
		return failure("create policy", p.Name, err)
	}
	return nil
}

// hasRepository is a Conflict error if a repository was detached since it was looked at: DeleteRepository looks at policies in the same way.
func hasRepository(tx *gorm.DB, id string) error {
	if id == "" {
		return nil
	}
	var n int64
	if err := tx.Model(&Repository{}).Where("id = ?", id).Count(&n).Error; err != nil || n > 0 {
		return err
	}
	return fault.New(fault.Conflict, "", "", "its repository is not there any more").Explain(
		"Somebody has detached the repository meanwhile.", "Name another repository.")
}

// Policy returns one policy by its id.
func (c *Catalog) Policy(ctx context.Context, id string) (Policy, error) {
	return first[Policy](ctx, c, "look up policy", id, "id = ?", id)
}

// Policies returns all policies, by name.
func (c *Catalog) Policies(ctx context.Context) ([]Policy, error) {
	return everything[Policy](ctx, c, "policies")
}

// UpdatePolicy changes a policy as change says. When the schedule changes or a pause ends, what was due before now is not due any more.
func (c *Catalog) UpdatePolicy(ctx context.Context, id string, now time.Time, change func(*Policy)) (Policy, error) {
	var p Policy
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", id).Take(&p).Error; err != nil {
			return err
		}
		before := p
		change(&p)
		if p.Spec.RepositoryID != before.Spec.RepositoryID {
			if err := hasRepository(tx, p.Spec.RepositoryID); err != nil {
				return err
			}
		}
		p.ID, p.Version = id, before.Version+1
		moved := p.Spec.Schedule != before.Spec.Schedule || p.Spec.TimeZone != before.Spec.TimeZone
		if (moved || before.Paused && !p.Paused) && p.OpenedUntil.Before(now) {
			p.OpenedUntil = now.UTC()
		}
		return tx.Save(&p).Error
	})
	if err != nil {
		return Policy{}, failure("change policy", id, err)
	}
	return p, nil
}

// DeletePolicy removes a policy and the turns that have not begun. Restore points stay.
func (c *Catalog) DeletePolicy(ctx context.Context, id string, now time.Time) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		res := tx.Where("id = ?", id).Delete(&Policy{})
		if res.Error == nil && res.RowsAffected == 0 {
			return gorm.ErrRecordNotFound
		}
		if res.Error != nil {
			return res.Error
		}
		now = now.UTC()
		return tx.Model(&Turn{}).Where("policy_id = ? AND state = ?", id, TurnWaiting).
			Select("state", "reason", "ended_at").Updates(&Turn{State: TurnMissed, Reason: "the policy was removed", EndedAt: &now}).Error
	})
	if err != nil {
		return failure("remove policy", id, err)
	}
	return nil
}

// AddExclusion stores an exclusion and fills in its id and time.
func (c *Catalog) AddExclusion(ctx context.Context, e *Exclusion) error {
	e.ID = NewID(PrefixExclusion)
	if err := c.db.WithContext(ctx).Create(e).Error; err != nil {
		return failure("create exclusion", e.Filter, err)
	}
	return nil
}

// Exclusions returns all exclusions, those that have ended, too, the oldest first.
func (c *Catalog) Exclusions(ctx context.Context) ([]Exclusion, error) {
	var out []Exclusion
	if err := c.db.WithContext(ctx).Order("id").Find(&out).Error; err != nil {
		return nil, failure("list exclusions", "", err)
	}
	return out, nil
}

// RemoveExclusion removes an exclusion.
func (c *Catalog) RemoveExclusion(ctx context.Context, id string) error {
	res := c.db.WithContext(ctx).Where("id = ?", id).Delete(&Exclusion{})
	if res.Error != nil {
		return failure("remove exclusion", id, res.Error)
	}
	if res.RowsAffected == 0 {
		return notFound("remove exclusion", id)
	}
	return nil
}

// SetHold keeps a restore point from being pruned, or changes why and until when.
func (c *Catalog) SetHold(ctx context.Context, h Hold) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", h.RestorePointID).Take(&RestorePoint{}).Error; err != nil {
			return err
		}
		return tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&h).Error
	})
	if err != nil {
		return failure("hold restore point", h.RestorePointID, err)
	}
	return nil
}

// ReleaseHold takes a hold back.
func (c *Catalog) ReleaseHold(ctx context.Context, pointID string) error {
	res := c.db.WithContext(ctx).Where("restore_point_id = ?", pointID).Delete(&Hold{})
	if res.Error != nil {
		return failure("release restore point", pointID, res.Error)
	}
	if res.RowsAffected == 0 {
		return notFound("release restore point", pointID)
	}
	return nil
}

// Holds returns the holds of some restore points, by the restore point's id, also those that have ended.
func (c *Catalog) Holds(ctx context.Context, pointIDs []string) (map[string]Hold, error) {
	out := map[string]Hold{}
	const batch = 500
	for len(pointIDs) > 0 {
		n := min(batch, len(pointIDs))
		var rows []Hold
		if err := c.db.WithContext(ctx).Where("restore_point_id IN ?", pointIDs[:n]).Find(&rows).Error; err != nil {
			return nil, failure("list holds", "", err)
		}
		for _, h := range rows {
			out[h.RestorePointID] = h
		}
		pointIDs = pointIDs[n:]
	}
	return out, nil
}

// factsOf returns what a filter can look at of a VM, but for its connection's name.
func factsOf(id, connectionID string, v hypervisors.VM) policy.VM {
	facts := policy.VM{
		ID: id, Name: v.Name, ConnectionID: connectionID, DataCenter: v.DataCenter, Cluster: v.Cluster, Host: v.Host, Folder: v.Folder,
		State: string(v.Power), Tags: v.Tags, Labels: v.Labels,
		Unprotectable: v.Unprotectable, UnprotectableDisks: v.DisksUnprotectable(),
	}
	seen := map[string]bool{}
	for _, d := range v.Disks {
		if d.Datastore != "" && !seen[d.Datastore] {
			seen[d.Datastore] = true
			facts.Datastores = append(facts.Datastores, d.Datastore)
		}
	}
	return facts
}

// VMFacts returns what filters can look at of all VMs that are there, by name.
func (c *Catalog) VMFacts(ctx context.Context) ([]policy.VM, error) { return c.vmFacts(ctx, nil) }

// idsAtOnce is how many ids a query names; databases have limits.
const idsAtOnce = 500

// VMFactsOf returns what filters can look at of those of some VMs that are there, by name; where they are many, of others as well.
func (c *Catalog) VMFactsOf(ctx context.Context, ids []string) ([]policy.VM, error) {
	switch {
	case len(ids) == 0:
		return nil, nil
	case len(ids) > idsAtOnce:
		ids = nil
	}
	return c.vmFacts(ctx, ids)
}

func (c *Catalog) vmFacts(ctx context.Context, some []string) ([]policy.VM, error) {
	byID, err := c.connectionsByID(ctx)
	if err != nil {
		return nil, err
	}
	out, err := c.facts.read(c.db.WithContext(ctx), byID, some)
	if err != nil {
		return nil, failure("list VMs", "", err)
	}
	return out, nil
}

// connectionsByID returns what filters can look at of all connections.
func (c *Catalog) connectionsByID(ctx context.Context) (map[string]Connection, error) {
	var connections []Connection
	if err := c.db.WithContext(ctx).Select("id", "name", "platform").Find(&connections).Error; err != nil {
		return nil, failure("list connections", "", err)
	}
	byID := make(map[string]Connection, len(connections))
	for _, conn := range connections {
		byID[conn.ID] = conn
	}
	return byID, nil
}

// FactsIn returns what filters can look at, in the VM's connection.
func (v *VM) FactsIn(conn Connection) policy.VM {
	facts := v.Facts
	facts.ID, facts.ConnectionID, facts.Connection, facts.Platform = v.ID, v.ConnectionID, conn.Name, string(conn.Platform)
	return facts
}

// NewestGood returns when the newest restore point was made that is not known to be damaged, by VM.
func (c *Catalog) NewestGood(ctx context.Context) (map[string]NewestPoint, error) {
	return c.newestGood(ctx, c.db.Model(&VM{}))
}

// NewestGoodOf is NewestGood of one VM; a zero NewestPoint if it has none.
func (c *Catalog) NewestGoodOf(ctx context.Context, vmID string) (NewestPoint, error) {
	got, err := c.newestGood(ctx, c.db.Model(&VM{}).Where("vms.id = ?", vmID))
	return got[vmID], err
}

func (c *Catalog) newestGood(ctx context.Context, vms *gorm.DB) (map[string]NewestPoint, error) {
	newest := vms.Select(`(SELECT p.id FROM restore_points p WHERE p.vm_id = vms.id AND p.verify_result <> ?
		ORDER BY p.id DESC LIMIT 1)`, VerifyDamaged) // one look into an index for each VM, however many restore points there are
	return c.newestOf(ctx, newest)
}
