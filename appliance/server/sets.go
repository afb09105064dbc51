package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/erasure"
)

func rowMembers(members []httpapi.NewMember) []catalog.RepositoryMember {
	var out []catalog.RepositoryMember
	for _, m := range members {
		out = append(out, catalog.RepositoryMember{Path: filepath.Clean(m.Path), Domain: m.Domain})
	}
	return out
}

func setMembers(members []catalog.RepositoryMember) []erasure.Member {
	var out []erasure.Member
	for _, m := range members {
		out = append(out, erasure.Member{Path: m.Path, Domain: m.Domain})
	}
	return out
}

// setOptions remembers in the catalog how far the set has come, so that disks that were left behind are found out.
func (a *Appliance) setOptions(row catalog.Repository) erasure.Options {
	return erasure.Options{
		Log: a.log.With("repository", row.Name), Name: row.Name, Attach: row.StoreID == "",
		Known: erasure.Generation(row.Generation),
		Remember: func(ctx context.Context, g erasure.Generation) error {
			_, err := a.catalog.UpdateRepository(ctx, row.ID, func(r *catalog.Repository) { r.Generation = catalog.Generation(g) })
			if fault.KindOf(err) == fault.NotFound { // it is being added, or was detached
				return nil
			}
			return err
		},
	}
}

func (a *Appliance) openSet(ctx context.Context, row catalog.Repository, trust []string) (*erasure.Store, error) {
	o := a.setOptions(row)
	o.Trust = trust
	return erasure.Open(ctx, setMembers(row.Members), o)
}

// set returns the open set of a repository.
func (a *Appliance) set(ctx context.Context, id string) (*erasure.Store, error) {
	o, err := a.opened(ctx, id)
	if err != nil {
		return nil, err
	}
	if o.set == nil {
		return nil, fault.New(fault.Unsupported, "look for members of repository", id, "it lies in one directory").Explain(
			"This repository is not on a set, so it has no members and no redundancy of its own.",
			"Verify it to look for damage, and heal it from another repository.")
	}
	return o.set, nil
}

// makeSet makes a set of empty directories and opens it.
func makeSet(ctx context.Context, row *catalog.Repository, n httpapi.NewSet) (blob.Store, error) {
	members := setMembers(row.Members)
	if _, err := erasure.Create(ctx, members, n.Layout, erasure.CreateOptions{Force: n.Force}); err != nil {
		return nil, unusable("create repository in", row.Path, err)
	}
	return erasure.Open(ctx, members, erasure.Options{})
}

// nameMembers notes which member lies where.
func nameMembers(ctx context.Context, row *catalog.Repository, set *erasure.Store) error {
	h, err := set.Health(ctx)
	if err != nil {
		return err
	}
	for _, g := range h.Groups {
		for _, m := range g.Members {
			i := slices.IndexFunc(row.Members, func(known catalog.RepositoryMember) bool { return known.Path == m.Place })
			if i >= 0 {
				row.Members[i].ID, row.Members[i].Domain = m.ID, m.Domain
			}
		}
	}
	return nil
}

// inspectSet says how a set is, and how much can still be written to it.
func inspectSet(ctx context.Context, row catalog.Repository, set *erasure.Store) (*httpapi.SetInfo, int64, error) {
	h, err := set.Health(ctx)
	if err != nil {
		return nil, 0, fault.Context("look at members of repository", row.Name, err)
	}
	info := &httpapi.SetInfo{Layout: h.Groups[0].Layout, CanLose: h.CanLose, Groups: len(h.Groups)}
	free := int64(0)
	for number, g := range h.Groups {
		info.Objects += g.Objects
		info.Below += g.BelowFull
		info.Unreadable += g.Unreadable
		least := int64(-1)
		for _, m := range g.Members {
			if m.FreeBytes >= 0 && (least < 0 || m.FreeBytes < least) {
				least = m.FreeBytes
			}
			m.Place = cmp.Or(m.Place, placeOf(row, m.ID))
			info.Members = append(info.Members, httpapi.MemberInfo{MemberHealth: m, Group: number})
		}
		free += max(0, least) * int64(g.Layout.Data)
	}
	return info, free, nil
}

func placeOf(row catalog.Repository, id string) string {
	i := slices.IndexFunc(row.Members, func(m catalog.RepositoryMember) bool { return m.ID == id })
	if i < 0 {
		return ""
	}
	return row.Members[i].Path
}

// setProblem says what is wrong with a set, nil if nothing is.
func setProblem(row catalog.Repository, s httpapi.SetInfo) error {
	var parts []string
	for _, m := range s.Members {
		if m.State != erasure.Online {
			parts = append(parts, fmt.Sprintf("member %s (%s) is %s%s", m.ID, cmp.Or(m.Place, "no path known"), m.State, because(m)))
		}
	}
	if len(parts) == 0 && s.Below == 0 {
		return nil
	}
	if s.Below > 0 {
		parts = append(parts, fmt.Sprintf("%d of %d objects have fewer shards than they should have", s.Below, s.Objects))
	}
	meaning := fmt.Sprintf("The repository works, and %d more members of any group may be lost before data is.", s.CanLose)
	switch {
	case s.CanLose == 0:
		meaning = "The repository works, but with the loss of one more member data is lost."
	case s.CanLose < 0:
		meaning = fmt.Sprintf("%d objects cannot be read now.", s.Unreadable)
	}
	return fault.New(fault.Transient, "look at members of repository", row.Name, "%s", strings.Join(parts, "; ")).Explain(meaning,
		"Bring back the members that are away and scrub the repository, or rebuild them in an empty directory on another disk.")
}

func because(m httpapi.MemberInfo) string {
	switch {
	case m.Reason != "":
		return ": " + m.Reason
	case m.Filling:
		return ": it is new and not filled yet"
	case m.Behind:
		return ": it was away and has to catch up"
	case m.Errors > 0:
		return fmt.Sprintf(": it had %d errors", m.Errors)
	}
	return ""
}

// GrowRepository implements httpapi.Core. The catalog has the new paths before the set knows them: a set that is opened
// with empty directories beside its members does not mind, one that is opened without some of them does.
func (a *Appliance) GrowRepository(ctx context.Context, id string, members []httpapi.NewMember, force bool) (httpapi.RepositoryInfo, error) {
	set, err := a.set(ctx, id)
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	a.repositories.adding.Lock()
	defer a.repositories.adding.Unlock()
	fresh := rowMembers(members)
	isFresh := func(m catalog.RepositoryMember) bool {
		return m.ID == "" && slices.ContainsFunc(fresh, func(f catalog.RepositoryMember) bool { return f.Path == m.Path })
	}
	// What an earlier call did not come to add is not added twice.
	row, err := a.catalog.UpdateRepository(ctx, id, func(r *catalog.Repository) {
		r.Members = append(slices.DeleteFunc(slices.Clone(r.Members), isFresh), fresh...)
	})
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	after := context.WithoutCancel(ctx)
	plan, err := set.Grow(ctx, setMembers(fresh), erasure.CreateOptions{Force: force, Log: a.log})
	grown := map[string]erasure.Member{}
	for _, m := range slices.Concat(plan.Groups...) {
		grown[m.Path] = m
	}
	_, storeErr := a.catalog.UpdateRepository(after, id, func(r *catalog.Repository) {
		if err != nil {
			r.Members = slices.DeleteFunc(r.Members, isFresh)
		}
		for i := range r.Members {
			if m, ok := grown[r.Members[i].Path]; ok && err == nil {
				r.Members[i].ID, r.Members[i].Domain = m.ID, m.Domain
			}
		}
	})
	if err := errors.Join(err, storeErr); err != nil {
		return httpapi.RepositoryInfo{}, unusable("add members to repository", row.Name, err)
	}
	return a.GetRepository(ctx, id)
}
