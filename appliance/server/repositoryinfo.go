package server

import (
	"cmp"
	"context"
	"errors"
	"syscall"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/words"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// ListRepositories implements httpapi.Core.
func (a *Appliance) ListRepositories(ctx context.Context, p catalog.Page) (catalog.List[httpapi.RepositoryInfo], error) {
	list, err := a.catalog.Repositories(ctx, p)
	out := catalog.List[httpapi.RepositoryInfo]{Next: list.Next, Total: list.Total}
	for _, row := range list.Items {
		out.Items = append(out.Items, a.repositoryInfo(ctx, row))
	}
	return out, err
}

// GetRepository implements httpapi.Core.
func (a *Appliance) GetRepository(ctx context.Context, id string) (httpapi.RepositoryInfo, error) {
	row, err := a.catalog.Repository(ctx, id)
	if err == nil {
		err = a.mayOpen(ctx, id)
	}
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	return a.repositoryInfo(ctx, row), nil
}

func (a *Appliance) repositoryInfo(ctx context.Context, row catalog.Repository) httpapi.RepositoryInfo {
	info := httpapi.RepositoryInfo{Repository: row}
	info.Verification.Verification = row.VerificationOf()
	row.KeyFile = a.keyFile(row)
	o, err := a.opened(ctx, row.ID)
	if errors.Is(err, catalog.ErrElsewhere) {
		return info // as its owner last saw it
	}
	if err == nil {
		err = cmp.Or(a.inspect(ctx, row, o, &info), o.unwritable)
	}
	if err != nil {
		info.Status, info.LastError = catalog.HealthProblem, catalog.FailureOf(err)
	} else {
		info.Status, info.LastError = catalog.HealthOK, nil
	}
	return info
}

// inspect fills in how a repository is now; the error says what a person should look at.
func (a *Appliance) inspect(ctx context.Context, row catalog.Repository, o opened, info *httpapi.RepositoryInfo) error {
	if err := stillThere(ctx, row, o); err != nil {
		return err
	}
	u, err := o.repo.Usage(ctx)
	if err != nil {
		return err
	}
	info.Usage = &httpapi.Usage{
		RestorePoints: u.RestorePoints, Packs: u.Packs, LogicalBytes: u.LogicalBytes, StoredBytes: u.StoredBytes,
	}
	if o.set == nil {
		info.Usage.FreeBytes = freeBytes(row.Path)
	} else {
		if info.Set, info.Usage.FreeBytes, err = inspectSet(ctx, row, o.set); err != nil {
			return err
		}
	}
	v := &info.Verification
	v.DamagedPacks = o.repo.SuspectPacks()
	if v.DamagedPoints, err = a.catalog.CountDamaged(ctx, row.ID); err != nil {
		return err
	}
	if v.DamagedPacks+v.DamagedPoints > 0 {
		return fault.New(fault.Corrupt, "look at repository", row.Name, "%s, %s",
			words.Count(v.DamagedPacks, "pack is known to be damaged", "packs are known to be damaged"),
			words.Count(v.DamagedPoints, "restore point is not whole", "restore points are not whole")).Explain(
			"Files of the repository are not what was written, or missing. Everything else in it can be restored.",
			"Show its damage for the VMs that are touched. Heal it from another repository, or back these VMs up, then verify it.")
	}
	if info.Set != nil {
		return setProblem(row, *info.Set)
	}
	return nil
}

// stillThere looks whether what was opened still lies in its directory, and its key file in its place: what is open
// would not notice that a disk was unmounted or a file removed under it.
func stillThere(ctx context.Context, row catalog.Repository, o opened) (err error) {
	key, err := store.LoadKey(ctx, row.KeyFile)
	if err != nil {
		return fault.Wrap(absentKind(err), "check key of repository", row.Name, err)
	}
	backend := o.backend
	if o.set == nil { // a set looks at its members by itself
		if backend, err = file.Open(row.Path); err != nil {
			return fault.Wrap(absentKind(err), "check repository", row.Name, err)
		}
		defer func() { err = errors.Join(err, backend.Close()) }()
	}
	id, err := store.Identify(ctx, backend, key)
	switch {
	case id != "" && id != o.repo.ID():
		return fault.New(fault.Transient, "check repository", row.Name, "another repository is in %s", row.Path).Explain(
			"The directory holds a repository, but not the one that was attached here.",
			"Look whether another file system is mounted there; bring the right one back.")
	case err != nil && fault.KindOf(err) == fault.NotFound:
		return fault.New(fault.Transient, "check repository", row.Name, "no repository is in %s any more", row.Path).Explain(
			"The directory is there, but what was in it is not.",
			"Look whether the file system of the repository is still mounted there, and mount it again.")
	case err != nil && fault.KindOf(err) == fault.Denied:
		return fault.New(fault.Denied, "check key of repository", row.Name, "the key in %s does not open it", row.KeyFile).Explain(
			"The key file was changed since the repository was opened. Without the right one it cannot be opened again, and none of its backups be read.",
			"Put the key file back from the copy that was kept elsewhere, before the appliance is started again.")
	}
	return err
}

func freeBytes(path string) int64 {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0
	}
	return int64(s.Bavail) * s.Bsize
}
