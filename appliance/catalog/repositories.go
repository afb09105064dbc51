package catalog

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// CreateRepository stores a new repository and fills in its id and times.
func (c *Catalog) CreateRepository(ctx context.Context, r *Repository) error {
	if r.ID == "" {
		r.ID = NewID(PrefixRepository)
	}
	if r.Status == "" {
		r.Status = HealthUnknown
	}
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Create(r).Error; err != nil || c.manager == "" {
			return err
		}
		return tx.Create(&RepositoryOwner{RepositoryID: r.ID, ManagerID: c.manager}).Error // who made it has it open
	})
	if err != nil {
		return failure("create repository", r.Name, err)
	}
	return nil
}

// Repository returns one repository by its id.
func (c *Catalog) Repository(ctx context.Context, id string) (Repository, error) {
	return first[Repository](ctx, c, "look up repository", id, "id = ?", id)
}

// RepositoryByName returns one repository by its name.
func (c *Catalog) RepositoryByName(ctx context.Context, name string) (Repository, error) {
	return first[Repository](ctx, c, "look up repository", name, "name = ?", name)
}

// Repositories lists repositories by name, or by created_at.
func (c *Catalog) Repositories(ctx context.Context, p Page) (List[Repository], error) {
	id := func(v Repository) string { return v.ID }
	return page(c.db.WithContext(ctx), p, byName(func(v Repository) string { return v.Name }, id, map[string]order[Repository]{
		"created_at": by("id", id),
	}))
}

// AllRepositories returns every repository by name, however many there are.
func (c *Catalog) AllRepositories(ctx context.Context) ([]Repository, error) {
	return everything[Repository](ctx, c, "repositories")
}

// UpdateRepository changes a repository as change says.
func (c *Catalog) UpdateRepository(ctx context.Context, id string, change func(*Repository)) (Repository, error) {
	var r Repository
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", id).Take(&r).Error; err != nil {
			return err
		}
		change(&r)
		r.ID = id
		return tx.Save(&r).Error
	})
	if err != nil {
		return Repository{}, failure("change repository", id, err)
	}
	return r, nil
}

// RepositoryIdle is a Conflict error while tasks use a repository.
func (c *Catalog) RepositoryIdle(ctx context.Context, id string) error {
	if err := busy(c.db.WithContext(ctx), "repository_id", id); err != nil {
		return failure("wait for repository", id, err)
	}
	return nil
}

// DeleteRepository forgets a repository and its restore points; its data is not touched. While tasks use it or policies back
// up into it, it answers Conflict.
func (c *Catalog) DeleteRepository(ctx context.Context, id string) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", id).Take(&Repository{}).Error; err != nil {
			return err
		}
		if err := busy(tx, "repository_id", id); err != nil {
			return err
		}
		if err := wanted(tx, id); err != nil {
			return err
		}
		if err := tx.Where("repository_id = ?", id).Delete(&RestorePoint{}).Error; err != nil {
			return err
		}
		if err := tx.Where("repository_id = ?", id).Delete(&RepositoryOwner{}).Error; err != nil {
			return err
		}
		return tx.Where("id = ?", id).Delete(&Repository{}).Error
	})
	if err != nil {
		return failure("delete repository", id, err)
	}
	return nil
}

// wanted is a Conflict error while policies back up into a repository.
func wanted(tx *gorm.DB, id string) error {
	var all []Policy
	if err := tx.Order("name").Find(&all).Error; err != nil {
		return err
	}
	var names []string
	for _, p := range all {
		if p.Spec.RepositoryID == id {
			names = append(names, strconv.Quote(p.Name))
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "", "", "it is used by %s", policiesNamed(names)).Explain(
		"Without it these policies could back up nothing, and their VMs would be protected no more.",
		"Give them another repository or remove them, then detach it.")
}

// policiesNamed says which policies, but not more than a person reads.
func policiesNamed(names []string) string {
	const most = 10
	if len(names) == 1 {
		return "policy " + names[0]
	}
	more := ""
	if len(names) > most {
		names, more = names[:most], fmt.Sprintf(" and %d more", len(names)-most)
	}
	return "policies " + strings.Join(names, ", ") + more
}
