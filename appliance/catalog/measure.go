package catalog

import (
	"context"
	"time"
)

// VMMeasure is what there is to measure of a VM that is there.
type VMMeasure struct {
	ID, Name     string
	Connection   string     // its name
	LastPoint    *time.Time // when its newest restore point was frozen; nil when it has none
	LastVerified *time.Time // when one of its restore points was last found whole; nil when that never was
	LastState    State      // of its last backup that ended by itself; "" when there is none
}

// MeasureVMs returns the measures of all VMs that are there. Each is looked up in indexes, so that it does not matter how
// many restore points and tasks there are.
func (c *Catalog) MeasureVMs(ctx context.Context) ([]VMMeasure, error) {
	var out []VMMeasure
	err := c.db.WithContext(ctx).Raw(`SELECT v.id AS id, v.name AS name, COALESCE(c.name, '') AS connection, p.time AS last_point, g.verified AS last_verified, t.state AS last_state
		FROM vms v
		LEFT JOIN connections c ON c.id = v.connection_id
		LEFT JOIN restore_points p ON p.id = (SELECT MAX(id) FROM restore_points WHERE vm_id = v.id)
		LEFT JOIN restore_points g ON g.id = (SELECT id FROM restore_points WHERE vm_id = v.id AND verify_result = ?
			ORDER BY verified DESC LIMIT 1)
		LEFT JOIN tasks t ON t.id = (SELECT id FROM tasks WHERE vm_id = v.id AND kind = ? AND state IN (?, ?, ?) ORDER BY id DESC LIMIT 1)
		WHERE v.gone_at IS NULL`, VerifyGood, KindBackup, Succeeded, Warning, Failed).Scan(&out).Error
	if err != nil {
		return nil, failure("measure VMs", "", err)
	}
	return out, nil
}

// CountTasks returns how many tasks are queued and how many are running.
func (c *Catalog) CountTasks(ctx context.Context) (queued, running int, err error) {
	var rows []struct {
		State State
		N     int
	}
	err = c.db.WithContext(ctx).Model(&Task{}).Select("state, COUNT(*) AS n").Where("state IN ?", []State{Queued, Running}).
		Group("state").Scan(&rows).Error
	if err != nil {
		return 0, 0, failure("count tasks", "", err)
	}
	for _, r := range rows {
		if r.State == Queued {
			queued = r.N
		} else {
			running = r.N
		}
	}
	return queued, running, nil
}

// CountLeftovers returns how many clean-ups are owed of tasks that have ended.
func (c *Catalog) CountLeftovers(ctx context.Context) (int, error) {
	var n int64
	active := c.db.Model(&Task{}).Select("id").Where("state IN ?", []State{Queued, Running})
	err := c.db.WithContext(ctx).Model(&OwedCleanup{}).Where("done_at IS NULL AND task_id NOT IN (?)", active).Count(&n).Error
	if err != nil {
		return 0, failure("count what is owed", "", err)
	}
	return int(n), nil
}

// LastCollect returns when the last collect of a repository that went well ended; nil when there was none.
func (c *Catalog) LastCollect(ctx context.Context, repositoryID string) (*time.Time, error) {
	var rows []Task
	err := c.db.WithContext(ctx).Select("finished_at").Where("repository_id = ? AND kind = ? AND state IN ?", repositoryID, KindCollect,
		[]State{Succeeded, Warning}).Order("id DESC").Limit(1).Find(&rows).Error
	if err != nil {
		return nil, failure("look up last collect of", repositoryID, err)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	return rows[0].FinishedAt, nil
}
