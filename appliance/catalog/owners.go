package catalog

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// RepositoryOwner says which manager works with a repository: a repository has one process that writes to it, so all tasks
// on it are that one's.
type RepositoryOwner struct {
	RepositoryID string   `gorm:"primaryKey"`
	ManagerID    string   `gorm:"not null"`
	Refused      []string `gorm:"serializer:json"` // managers that could not open it; they are asked last
}

// ErrElsewhere is in the chain of the error about something that another manager has to do.
var ErrElsewhere = errors.New("another manager works with this repository")

// Duties is what falls to this manager now.
type Duties struct {
	Leads        bool      // it does what one manager does for all
	Repositories []string  // that it owns
	Orphans      []string  // of these, those with running tasks of managers that are no more; "": there are tasks without one
	Cancelled    []string  // running tasks of its own that are to stop
	Buried       []Manager // that were taken for dead just now
	Unsettled    bool      // what managers that are no more had fetched is to be queued again; only if it leads
}

// Share buries managers that were not seen for a time, gives repositories without an owner to the manager that has the
// fewest, and says what falls to this one.
func (c *Catalog) Share(ctx context.Context, unseen time.Duration) (Duties, error) {
	var d Duties
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		d = Duties{}
		if err := c.alive(tx); err != nil {
			return err
		}
		now, err := databaseNow(tx, c.Shared())
		if err != nil {
			return err
		}
		dead := living(tx).Where("id <> ? AND seen_at < ?", c.manager, now.Add(-unseen))
		if err := dead.Find(&d.Buried).Error; err != nil {
			return err
		}
		for _, m := range d.Buried {
			if err := endManagers(tx, now, "id = ?", m.ID); err != nil {
				return err
			}
		}
		return c.duties(tx, &d)
	})
	if err != nil {
		return Duties{}, failure("share the work", "", err)
	}
	return d, nil
}

func (c *Catalog) duties(tx *gorm.DB, d *Duties) error {
	var live []string
	if err := living(tx).Order("id").Pluck("id", &live).Error; err != nil {
		return err
	}
	d.Leads = live[0] == c.manager
	owners, err := assign(tx, live)
	if err != nil {
		return err
	}
	for _, o := range owners {
		if o.ManagerID == c.manager {
			d.Repositories = append(d.Repositories, o.RepositoryID)
		}
	}
	var tasks []Task
	if err := tx.Select("id", "repository_id", "manager_id", "cancel_requested").Where("state = ?", Running).Find(&tasks).Error; err != nil {
		return err
	}
	for _, t := range tasks {
		if !slices.ContainsFunc(owners, func(o RepositoryOwner) bool { return o.RepositoryID == t.RepositoryID }) {
			t.RepositoryID = "" // it was detached
		}
		switch {
		case t.ManagerID == c.manager:
			if t.CancelRequested {
				d.Cancelled = append(d.Cancelled, t.ID)
			}
		case slices.Contains(live, t.ManagerID) || slices.Contains(d.Orphans, t.RepositoryID):
		case t.RepositoryID == "" && d.Leads || slices.Contains(d.Repositories, t.RepositoryID):
			d.Orphans = append(d.Orphans, t.RepositoryID)
		}
	}
	var unsettled int64
	err = tx.Model(&Manager{}).Where("ended_at IS NOT NULL AND NOT settled").Count(&unsettled).Error
	d.Unsettled = d.Leads && unsettled > 0
	return err
}

// assign gives every repository an owner that is alive, and evens out. It returns the owners, by repository.
func assign(tx *gorm.DB, live []string) ([]RepositoryOwner, error) {
	var repositories []string
	if err := tx.Model(&Repository{}).Order("id").Pluck("id", &repositories).Error; err != nil {
		return nil, err
	}
	var rows []RepositoryOwner
	if err := tx.Find(&rows).Error; err != nil {
		return nil, err
	}
	var busy []string // with running tasks, whoever has them
	if err := tx.Model(&Task{}).Where("state = ?", Running).Distinct().Pluck("repository_id", &busy).Error; err != nil {
		return nil, err
	}
	known := map[string]RepositoryOwner{}
	for _, r := range rows {
		known[r.RepositoryID] = r
	}
	owners := share(repositories, known, live, busy)
	for _, o := range owners {
		if old, ok := known[o.RepositoryID]; ok && old.ManagerID == o.ManagerID && slices.Equal(old.Refused, o.Refused) {
			continue
		}
		if err := tx.Save(&o).Error; err != nil {
			return nil, err
		}
	}
	return owners, nil
}

// share is who owns which repository. Owners that are alive keep theirs, but where one has two more than another, the other
// gets one on which nothing runs.
func share(repositories []string, known map[string]RepositoryOwner, live, busy []string) []RepositoryOwner {
	count := map[string]int{}
	out := make([]RepositoryOwner, 0, len(repositories))
	for _, id := range repositories {
		o := known[id]
		o.RepositoryID = id
		o.Refused = slices.DeleteFunc(slices.Clone(o.Refused), func(m string) bool { return !slices.Contains(live, m) })
		if slices.Contains(live, o.ManagerID) {
			count[o.ManagerID]++
		} else {
			o.ManagerID = ""
		}
		out = append(out, o)
	}
	for i := range out {
		if out[i].ManagerID == "" {
			out[i].ManagerID = least(live, count, out[i].Refused)
			count[out[i].ManagerID]++
		}
	}
	for i, o := range out {
		to := least(live, count, o.Refused)
		if count[o.ManagerID]-count[to] >= 2 && !slices.Contains(o.Refused, to) && !slices.Contains(busy, o.RepositoryID) {
			count[o.ManagerID]--
			count[to]++
			out[i].ManagerID = to
		}
	}
	return out
}

// least is the manager with the fewest repositories, one that has not refused if there is any.
func least(live []string, count map[string]int, refused []string) (best string) {
	for _, m := range live {
		no := slices.Contains(refused, m)
		switch bestNo := slices.Contains(refused, best); {
		case best == "", bestNo && !no, bestNo == no && count[m] < count[best]:
			best = m
		}
	}
	return best
}

// Refuse notes that this manager cannot open a repository, and gives it to another one that may be able to; where there is
// none it stays.
func (c *Catalog) Refuse(ctx context.Context, repositoryID string) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		var live []string
		if err := living(tx).Order("id").Pluck("id", &live).Error; err != nil {
			return err
		}
		var o RepositoryOwner
		if err := tx.Where("repository_id = ? AND manager_id = ?", repositoryID, c.manager).Take(&o).Error; err != nil {
			return err
		}
		if !slices.Contains(o.Refused, c.manager) {
			o.Refused = append(o.Refused, c.manager)
		}
		if to := least(live, map[string]int{}, o.Refused); !slices.Contains(o.Refused, to) {
			o.ManagerID = to
		}
		return tx.Save(&o).Error
	})
	if err != nil {
		return failure("give up repository", repositoryID, err)
	}
	return nil
}

// OwnerOf returns the manager that works with a repository, or NotFound.
func (c *Catalog) OwnerOf(ctx context.Context, repositoryID string) (Manager, error) {
	o, err := first[RepositoryOwner](ctx, c, "look up owner of", repositoryID, "repository_id = ?", repositoryID)
	if err != nil {
		return Manager{}, err
	}
	return first[Manager](ctx, c, "look up manager", o.ManagerID, "id = ?", o.ManagerID)
}

// owns is an error that matches ErrElsewhere when a repository is not this manager's.
func (c *Catalog) owns(tx *gorm.DB, repositoryID string) error {
	if !c.Shared() || c.manager == "" || repositoryID == "" {
		return nil
	}
	owner, err := ownerOf(tx, repositoryID)
	if err == nil && owner != c.manager {
		err = fault.Wrap(fault.Conflict, "", "", ErrElsewhere)
	}
	return err
}

func ownerOf(tx *gorm.DB, repositoryID string) (string, error) {
	var o RepositoryOwner
	err := tx.Where("repository_id = ?", repositoryID).Limit(1).Find(&o).Error
	return o.ManagerID, err
}

// Adopt makes the running tasks of managers that are no more, on one repository, this manager's; "" is those that are on
// none. Every caller but one gets none of them.
func (c *Catalog) Adopt(ctx context.Context, repositoryID string) ([]Task, error) {
	var tasks []Task
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := errors.Join(c.alive(tx), c.owns(tx, repositoryID)); err != nil {
			return err
		}
		q := tx.Where("state = ? AND manager_id NOT IN (?)", Running, living(tx).Select("id"))
		if repositoryID == "" {
			q = q.Where("repository_id NOT IN (?)", tx.Session(&gorm.Session{NewDB: true}).Model(&Repository{}).Select("id"))
		} else {
			q = q.Where("repository_id = ?", repositoryID)
		}
		if err := q.Order("id").Find(&tasks).Error; err != nil {
			return err
		}
		for i := range tasks {
			tasks[i].ManagerID = c.manager
			if err := tx.Model(&Task{}).Where("id = ?", tasks[i].ID).Update("manager_id", c.manager).Error; err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, failure("take over tasks on", repositoryID, err)
	}
	return tasks, nil
}

// AdoptAll is Adopt for the only manager there can be: every running task is of one that is no more.
func (c *Catalog) AdoptAll(ctx context.Context) error {
	err := c.db.WithContext(ctx).Model(&Task{}).Where("state = ?", Running).Update("manager_id", c.manager).Error
	if err != nil {
		return failure("take over tasks", "", err)
	}
	return nil
}

// Enqueue puts a task into the queue inside a transaction, for the manager that Task.ManagerID names; it returns the id of
// the job.
type Enqueue func(ctx context.Context, tx *sql.Tx, t Task) (int64, error)

// Requeue queues the waiting tasks on a repository anew, for this manager; "" is those that are on none, for all managers.
// It returns the jobs that they had before.
func (c *Catalog) Requeue(ctx context.Context, repositoryID string, enqueue Enqueue) (before []int64, err error) {
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		before = nil
		if err := errors.Join(c.alive(tx), c.owns(tx, repositoryID)); err != nil {
			return err
		}
		var tasks []Task
		q := tx.Where("state = ?", Queued)
		if c.Shared() {
			q = q.Where("repository_id = ?", repositoryID)
		}
		if err := q.Order("id").Find(&tasks).Error; err != nil {
			return err
		}
		for _, t := range tasks {
			before = append(before, t.JobID)
			if err := c.enqueue(ctx, tx, &t, enqueue); err != nil {
				return err
			}
		}
		if repositoryID != "" {
			return nil
		}
		return tx.Model(&Manager{}).Where("ended_at IS NOT NULL AND NOT settled").Update("settled", true).Error
	})
	if err != nil {
		return nil, failure("queue waiting tasks on", repositoryID, err)
	}
	return before, nil
}

// Reroute queues one waiting task for the manager that owns its repository now; false: it does not wait any more, or its
// repository has no owner yet.
func (c *Catalog) Reroute(ctx context.Context, id string, enqueue Enqueue) (done bool, err error) {
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		var t Task
		if err := tx.Where("id = ?", id).Take(&t).Error; err != nil || t.State != Queued {
			return err
		}
		owner, err := ownerOf(tx, t.RepositoryID)
		if err != nil || owner == "" {
			return err
		}
		done = true
		return c.enqueue(ctx, tx, &t, enqueue)
	})
	if err != nil {
		return false, failure("queue task", id, err)
	}
	return done, nil
}

// enqueue queues a task for whoever is to do it.
func (c *Catalog) enqueue(ctx context.Context, tx *gorm.DB, t *Task, enqueue Enqueue) (err error) {
	t.ManagerID = ""
	if c.Shared() && t.RepositoryID != "" {
		if t.ManagerID, err = ownerOf(tx, t.RepositoryID); err != nil {
			return err
		}
	}
	inner := sqlTx(tx)
	if inner == nil {
		return fault.New(fault.Internal, "queue task", t.ID, "not in a transaction")
	}
	if t.JobID, err = enqueue(ctx, inner, *t); err != nil {
		return err
	}
	return tx.Model(&Task{}).Where("id = ?", t.ID).Updates(map[string]any{"job_id": t.JobID, "manager_id": t.ManagerID}).Error
}
