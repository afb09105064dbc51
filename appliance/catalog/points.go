package catalog

import (
	"context"
	"slices"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"
)

// PointFilter selects restore points; empty fields select all.
type PointFilter struct {
	RepositoryID string
	ConnectionID string
	VMID         string
}

// AddRestorePoint stores a restore point that was made just now and is durable in its repository; one that is stored already is left.
func (c *Catalog) AddRestorePoint(ctx context.Context, p RestorePoint) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		res := tx.Clauses(clause.OnConflict{DoNothing: true}).Create(&p)
		if res.Error != nil || res.RowsAffected == 0 {
			return res.Error
		}
		return tx.Create(&RPOStamp{RestorePointID: p.ID, VMID: p.VMID, Time: p.Time.UTC().Truncate(time.Second), Published: time.Now().UTC().Truncate(time.Second)}).Error
	})
	if err != nil {
		return failure("store restore point", p.ID, err)
	}
	return nil
}

// AddRestorePoints stores many restore points that were found in a repository, all or none of them. Those that are stored already are
// left; the ids of the others are returned.
func (c *Catalog) AddRestorePoints(ctx context.Context, points []RestorePoint) (added map[string]bool, err error) {
	if len(points) == 0 {
		return nil, nil
	}
	const batch = 500 // a statement may have 32766 values
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		added = make(map[string]bool, len(points))
		for part := range slices.Chunk(points, batch) {
			if err := addNew(tx, part, added); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, failure("store restore points", "", err)
	}
	return added, nil
}

// addNew stores the restore points that are not stored yet, and notes their ids.
func addNew(tx *gorm.DB, points []RestorePoint, added map[string]bool) error {
	ids := make([]string, len(points))
	for i, p := range points {
		ids[i] = p.ID
		added[p.ID] = true
	}
	var there []string
	if err := tx.Model(&RestorePoint{}).Where("id IN ?", ids).Pluck("id", &there).Error; err != nil {
		return err
	}
	for _, id := range there {
		delete(added, id)
	}
	return tx.Clauses(clause.OnConflict{DoNothing: true}).Create(points).Error
}

// RestorePoint returns one restore point by its id.
func (c *Catalog) RestorePoint(ctx context.Context, id string) (RestorePoint, error) {
	return first[RestorePoint](ctx, c, "look up restore point", id, "id = ?", id)
}

// RestorePoints lists restore points in the order of their publication, the newest first, or by time, vm_name or
// stored_bytes.
func (c *Catalog) RestorePoints(ctx context.Context, f PointFilter, p Page) (List[RestorePoint], error) {
	q := c.db.WithContext(ctx)
	for column, value := range map[string]string{
		"repository_id": f.RepositoryID, "connection_id": f.ConnectionID, "vm_id": f.VMID,
	} {
		if value != "" {
			q = q.Where(column+" = ?", value)
		}
	}
	return page(q, p, byAge(func(v RestorePoint) string { return v.ID }, map[string]order[RestorePoint]{
		"time":         by("time", func(v RestorePoint) time.Time { return v.Time.UTC() }),
		"vm_name":      by("vm_name", func(v RestorePoint) string { return v.VMName }),
		"stored_bytes": by("bytes_stored", func(v RestorePoint) int64 { return v.BytesStored }),
	}))
}

// PointsOfVM returns all restore points of a VM in a repository ("": in all), the newest first.
func (c *Catalog) PointsOfVM(ctx context.Context, vmID, repositoryID string) ([]RestorePoint, error) {
	q := c.db.WithContext(ctx).Where("vm_id = ?", vmID)
	if repositoryID != "" {
		q = q.Where("repository_id = ?", repositoryID)
	}
	var out []RestorePoint
	if err := q.Select("id", "vm_id", "vm_name", "repository_id", "time", "verify_result", "checkpoint", "size_bytes", "bytes_stored").Order("id DESC").Find(&out).Error; err != nil {
		return nil, failure("list restore points of", vmID, err)
	}
	return out, nil
}

// NewestRestorePoint returns the newest restore point of a VM in a repository ("": in any), or NotFound.
func (c *Catalog) NewestRestorePoint(ctx context.Context, vmID, repositoryID string) (RestorePoint, error) {
	list, err := c.RestorePoints(ctx, PointFilter{VMID: vmID, RepositoryID: repositoryID}, Page{Limit: 1})
	if err != nil {
		return RestorePoint{}, err
	}
	if len(list.Items) == 0 {
		return RestorePoint{}, notFound("look up newest restore point of", vmID)
	}
	return list.Items[0], nil
}

// RestorePointIDs returns the ids of all restore points of a repository.
func (c *Catalog) RestorePointIDs(ctx context.Context, repositoryID string) (map[string]bool, error) {
	var ids []string
	err := c.db.WithContext(ctx).Model(&RestorePoint{}).Where("repository_id = ?", repositoryID).Pluck("id", &ids).Error
	if err != nil {
		return nil, failure("list restore points of", repositoryID, err)
	}
	out := make(map[string]bool, len(ids))
	for _, id := range ids {
		out[id] = true
	}
	return out, nil
}

// DeleteRestorePoint forgets a restore point that is no longer in its repository.
func (c *Catalog) DeleteRestorePoint(ctx context.Context, id string) error {
	if err := c.db.WithContext(ctx).Where("id = ?", id).Delete(&RestorePoint{}).Error; err != nil {
		return failure("forget restore point", id, err)
	}
	return nil
}

// SetVerified stores the outcome of reading a restore point back.
func (c *Catalog) SetVerified(ctx context.Context, id string, damage error) error {
	now := time.Now().UTC()
	row := RestorePoint{Verified: &now, VerifyResult: VerifyGood, VerifyError: FailureOf(damage)}
	if damage != nil {
		row.VerifyResult = VerifyDamaged
	}
	return c.setVerify(ctx, &row, "id = ?", id)
}

// SetProven stores since when a restore point is known to be whole.
func (c *Catalog) SetProven(ctx context.Context, id string, since time.Time) error {
	since = since.UTC()
	return c.setVerify(ctx, &RestorePoint{Verified: &since, VerifyResult: VerifyGood}, "id = ?", id)
}

// ForgetDamage takes the mark of damage from the restore points of a repository but those that keep names: they have
// been healed, and are not verified since.
func (c *Catalog) ForgetDamage(ctx context.Context, repositoryID string, keep map[string]bool) error {
	rows, err := c.PointsOfRepository(ctx, repositoryID)
	for id, row := range rows {
		if err == nil && row.VerifyResult == VerifyDamaged && !keep[id] {
			err = c.setVerify(ctx, &RestorePoint{}, "id = ?", id)
		}
	}
	return err
}

func (c *Catalog) setVerify(ctx context.Context, row *RestorePoint, where string, args ...any) error {
	err := c.db.WithContext(ctx).Model(&RestorePoint{}).Where(where, args...).
		Select("verified", "verify_result", "verify_error").Updates(row).Error
	if err != nil {
		return failure("store verification", "", err)
	}
	return nil
}

// CountDamaged counts the restore points of a repository in which damage was found.
func (c *Catalog) CountDamaged(ctx context.Context, repositoryID string) (int, error) {
	var n int64
	err := c.db.WithContext(ctx).Model(&RestorePoint{}).
		Where("repository_id = ? AND verify_result = ?", repositoryID, VerifyDamaged).Count(&n).Error
	if err != nil {
		return 0, failure("count damaged restore points of", repositoryID, err)
	}
	return int(n), nil
}

// PointsOfRepository returns who the restore points of a repository are of, and how they were verified, by their ids;
// other columns are left out.
func (c *Catalog) PointsOfRepository(ctx context.Context, repositoryID string) (map[string]RestorePoint, error) {
	var rows []RestorePoint
	err := c.db.WithContext(ctx).Select("id", "vm_id", "vm_name", "series", "time", "verified", "verify_result").
		Where("repository_id = ?", repositoryID).Find(&rows).Error
	if err != nil {
		return nil, failure("list restore points of", repositoryID, err)
	}
	out := make(map[string]RestorePoint, len(rows))
	for _, r := range rows {
		out[r.ID] = r
	}
	return out, nil
}

// Checkpoints returns, for the VMs of a connection by their platform ids, the checkpoint of the newest restore point,
// whatever repository it is in: the only one that is still of use.
func (c *Catalog) Checkpoints(ctx context.Context, connectionID string) (map[string]string, error) {
	var rows []struct{ PlatformID, Checkpoint string }
	err := c.db.WithContext(ctx).Raw(`SELECT v.platform_id, p.checkpoint FROM restore_points p JOIN vms v ON v.id = p.vm_id
		WHERE v.connection_id = ? AND p.id = (SELECT MAX(id) FROM restore_points WHERE vm_id = v.id)`, connectionID).
		Scan(&rows).Error
	if err != nil {
		return nil, failure("list checkpoints of", connectionID, err)
	}
	out := make(map[string]string, len(rows))
	for _, r := range rows {
		out[r.PlatformID] = r.Checkpoint
	}
	return out, nil
}

// RestorePointOfTask returns the restore point that a task made, or NotFound.
func (c *Catalog) RestorePointOfTask(ctx context.Context, taskID string) (RestorePoint, error) {
	return first[RestorePoint](ctx, c, "look up restore point of", taskID, "task_id = ?", taskID)
}

// ForgetCheckpoints notes that no restore point of a VM has a usable checkpoint any more, because its disks are about
// to be replaced.
func (c *Catalog) ForgetCheckpoints(ctx context.Context, vmID string) error {
	err := c.db.WithContext(ctx).Model(&RestorePoint{}).Where("vm_id = ?", vmID).Update("checkpoint", "").Error
	if err != nil {
		return failure("forget checkpoints of", vmID, err)
	}
	return nil
}

// NewestPoint is the newest restore point of a VM.
type NewestPoint struct {
	VMID string
	ID   string
	Time time.Time
}

// NewestPoints returns the newest restore point of each of some VMs, by the VM's id. Each is one look into an index, however
// many restore points a VM has.
func (c *Catalog) NewestPoints(ctx context.Context, vmIDs []string) (map[string]NewestPoint, error) {
	newest := c.db.Model(&VM{}).Select("(SELECT MAX(p.id) FROM restore_points p WHERE p.vm_id = vms.id)").Where("vms.id IN ?", vmIDs)
	return c.newestOf(ctx, newest)
}

// newestOf reads the restore points whose ids a query selects, at most one of a VM, by the VM's id.
func (c *Catalog) newestOf(ctx context.Context, ids *gorm.DB) (map[string]NewestPoint, error) {
	var rows []RestorePoint
	err := c.db.WithContext(ctx).Select("id", "vm_id", "time").Where("id IN (?)", ids).Find(&rows).Error
	if err != nil {
		return nil, failure("list newest restore points", "", err)
	}
	out := make(map[string]NewestPoint, len(rows))
	for _, r := range rows {
		out[r.VMID] = NewestPoint{VMID: r.VMID, ID: r.ID, Time: r.Time}
	}
	return out, nil
}
