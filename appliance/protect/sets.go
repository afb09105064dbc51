package protect

import (
	"context"
	"fmt"
	"slices"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/erasure"
)

// ScrubSpec is what is wanted of a scrub.
type ScrubSpec struct {
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
}

// RebuildSpec is what is wanted of a rebuild.
type RebuildSpec struct {
	Member string `json:"member"`
	Path   string `json:"path,omitempty"` // an empty directory that takes its place
}

// RequestScrub makes the task that scrubs the set of a repository. Scrubs and rebuilds are done one after the other.
func (p *Protector) RequestScrub(ctx context.Context, repositoryID string, spec ScrubSpec) (*catalog.Task, error) {
	if _, err := p.sets(ctx, repositoryID); err != nil {
		return nil, err
	}
	return setTask(repositoryID, spec), nil
}

// RequestRebuild makes the task that fills a member of the set of a repository.
func (p *Protector) RequestRebuild(ctx context.Context, repositoryID string, spec RebuildSpec) (*catalog.Task, error) {
	set, err := p.sets(ctx, repositoryID)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(slices.Concat(set.Members()...), spec.Member) {
		return nil, fault.New(fault.NotFound, "rebuild member", spec.Member, "the set has no such member").Explain(
			"The repository has no member of this name.", "Show the repository for the names of its members.")
	}
	return setTask(repositoryID, spec), nil
}

func setTask(repositoryID string, spec any) *catalog.Task {
	return &catalog.Task{Subject: "set/" + repositoryID, RepositoryID: repositoryID, Spec: encode(spec)}
}

// Scrub is the handler of scrub tasks.
func (p *Protector) Scrub(ctx context.Context, t *jobs.Task) error {
	var spec ScrubSpec
	set, err := begin(ctx, t, &spec, p.sets)
	if err != nil {
		return err
	}
	t.SetPhase(ctx, "scrubbing")
	report, err := set.Scrub(ctx, erasure.ScrubOptions{BytesPerSecond: spec.BytesPerSecond}, tellSet(ctx, t))
	if err != nil {
		return fault.Context("scrub repository", t.RepositoryID, err)
	}
	after := context.WithoutCancel(ctx)
	result := catalog.Result{BytesRead: report.Bytes, Repaired: &catalog.Repaired{
		Objects: report.Objects, Damaged: len(report.Damaged), Shards: report.Repaired,
	}}
	if err := t.SetResult(after, result); err != nil {
		return err
	}
	t.Event(after, fmt.Sprintf("%d objects were read on all members, %d bytes; %d shards were missing or damaged and were made again.",
		report.Objects, report.Bytes, report.Repaired))
	for _, m := range report.Members {
		if m.Bad > 0 {
			t.Event(after, fmt.Sprintf("Member %s: %d shards were missing or damaged, %d of these are good again.", m.ID, m.Bad, m.Repaired), "member", m.ID)
		}
	}
	return leftBy(after, t, report.Damaged)
}

// leftBy tells what a scrub could not make whole. What only waits for a member is a warning, what is lost an error.
func leftBy(ctx context.Context, t *jobs.Task, damaged []erasure.DamagedObject) error {
	lost := 0
	for i, d := range damaged {
		word := "waits for a member"
		if d.Lost {
			word = "cannot be read any more"
			lost++
		}
		if i < maxNamed {
			t.Warn(ctx, fmt.Sprintf("%s %s: %s", d.Name, word, d.Cause), "object", d.Name)
		}
	}
	if lost == 0 {
		return nil
	}
	return fault.New(fault.Corrupt, "scrub repository", t.RepositoryID, "%d objects cannot be read any more", lost).Explain(
		"More shards of these objects are damaged or missing than the set can make up for.",
		"Bring back members that are away and scrub again; then verify the repository, which says which VMs are touched, and heal it from another one.")
}

// Rebuild is the handler of rebuild tasks: a member, or what takes its place, gets all it should have.
func (p *Protector) Rebuild(ctx context.Context, t *jobs.Task) error {
	var spec RebuildSpec
	set, err := begin(ctx, t, &spec, p.sets)
	if err != nil {
		return err
	}
	member := spec.Member
	if spec.Path != "" {
		t.SetPhase(ctx, "replacing member")
		if member, err = p.replace(ctx, t.RepositoryID, set, spec); err != nil {
			return err
		}
		t.Event(ctx, fmt.Sprintf("%s is member %s now, in the place of %s.", spec.Path, member, spec.Member), "member", member)
	}
	t.SetPhase(ctx, "rebuilding")
	var last erasure.Progress
	tell := tellSet(ctx, t)
	err = set.Rebuild(ctx, member, func(at erasure.Progress) { last = at; tell(at) })
	if err != nil {
		return fault.Context("rebuild member", member, err)
	}
	after := context.WithoutCancel(ctx)
	t.Event(after, fmt.Sprintf("Member %s got %d shards, %d bytes.", member, last.Repaired, last.Bytes), "member", member)
	return t.SetResult(after, catalog.Result{Repaired: &catalog.Repaired{Member: member, Objects: last.Objects, Shards: last.Repaired}})
}

func tellSet(ctx context.Context, t *jobs.Task) func(erasure.Progress) {
	return func(at erasure.Progress) {
		t.SetProgress(ctx, catalog.DiskProgress{
			Disk: "all", BytesTotal: at.BytesTotal, BytesScanned: at.Bytes, BytesRead: at.Bytes, ETASeconds: int64(at.ETA.Seconds()),
		})
	}
}

// replace puts a directory in the place of a member. The catalog has its path before the set knows it: opened with the
// path of an empty directory a set is short of a member, opened with that of one that was replaced it is refused.
func (p *Protector) replace(ctx context.Context, repositoryID string, set *erasure.Store, spec RebuildSpec) (string, error) {
	var before *catalog.RepositoryMember
	_, err := p.catalog.UpdateRepository(ctx, repositoryID, func(r *catalog.Repository) {
		before = put(r, spec)
	})
	if err != nil {
		return "", err
	}
	id, err := set.Replace(ctx, spec.Member, erasure.Member{Path: spec.Path})
	_, storeErr := p.catalog.UpdateRepository(context.WithoutCancel(ctx), repositoryID, func(r *catalog.Repository) {
		i := slices.IndexFunc(r.Members, func(m catalog.RepositoryMember) bool { return m.ID == "" && m.Path == spec.Path })
		switch {
		case i < 0:
			return
		case err == nil:
			r.Members[i].ID = id
		case before != nil:
			r.Members[i] = *before
		default:
			r.Members = slices.Delete(r.Members, i, i+1)
		}
		r.Path = r.Members[0].Path
	})
	if err != nil {
		return "", fault.Context("replace member", spec.Member, err)
	}
	return id, storeErr
}

// put writes a member's new place over its old one, which it returns.
func put(r *catalog.Repository, spec RebuildSpec) (before *catalog.RepositoryMember) {
	r.Members = slices.Clone(r.Members)
	i := slices.IndexFunc(r.Members, func(m catalog.RepositoryMember) bool { return m.ID == spec.Member })
	if i < 0 { // it was away when the repository was attached: its path, if one was given, is one of nobody known
		i = slices.IndexFunc(r.Members, func(m catalog.RepositoryMember) bool { return m.ID == "" })
	}
	if i < 0 {
		r.Members = append(r.Members, catalog.RepositoryMember{Path: spec.Path})
		return nil
	}
	old := r.Members[i]
	r.Members[i] = catalog.RepositoryMember{Path: spec.Path, Domain: old.Domain}
	r.Path = r.Members[0].Path
	return &old
}
