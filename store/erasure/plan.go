package erasure

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// Member is one place that keeps a shard of each object of its group: a directory, or any other store.
type Member struct {
	ID     string     // its name in reports; Create makes one up if it is empty. For Open it need not be given
	Path   string     // a directory, on a disk of its own; Create makes it if it is not there
	Store  blob.Store // instead of Path; stays the caller's to close
	Domain string     // what fails as a whole with it: a disk, a host, a rack. Empty: it fails alone. Open ignores it
	// Free tells how many bytes are free and how many there are in all; nil: the file system of Path is asked, and of
	// a Store nothing is known.
	Free func() (free, total int64, err error)
}

func (m Member) place() string {
	if m.Store != nil {
		return m.Store.Location()
	}
	return m.Path
}

func (m Member) space() (free, total int64, err error) {
	if m.Free != nil {
		return m.Free()
	}
	if m.Path == "" {
		return 0, 0, errors.ErrUnsupported
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(m.Path, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * st.Bsize, int64(st.Blocks) * st.Bsize, nil
}

// Plan is how members would be used.
type Plan struct {
	Layout Layout
	Groups [][]Member
	// LoseMembers is how many members of one group may be lost; LoseDomains how many whole domains, the worst ones
	// first. 0 domains: the loss of one domain loses data.
	LoseMembers, LoseDomains int
}

// String says in words what the plan survives.
func (p Plan) String() string {
	return fmt.Sprintf("%d group(s) of %s: survives the loss of any %d members of a group, and of any %d failure domain(s); %.0f %% of the space holds data",
		len(p.Groups), p.Layout, p.LoseMembers, p.LoseDomains, 100*float64(p.Layout.Data)/float64(p.Layout.Members()))
}

// NewPlan deals members into groups so that the loss of a domain costs each group as few members as can be.
func NewPlan(members []Member, l Layout) (Plan, error) {
	if err := l.check(); err != nil {
		return Plan{}, err
	}
	n := l.Members()
	if len(members) == 0 || len(members)%n != 0 {
		return Plan{}, fault.New(fault.Invalid, "plan erasure set", l.String(), "%d members given", len(members)).Explain(
			fmt.Sprintf("A set of layout %s consists of groups of %d members each.", l, n),
			fmt.Sprintf("Give %d members, or a multiple of that.", n))
	}
	members = slices.Clone(members)
	count, ids, places := map[string]int{}, map[string]bool{}, map[string]bool{}
	for i := range members {
		m := &members[i]
		if m.ID == "" {
			m.ID = newID()[:8]
		}
		if m.Domain == "" {
			m.Domain = m.ID
		}
		if m.Store == nil && m.Path == "" || ids[m.ID] || places[m.place()] {
			return Plan{}, fault.New(fault.Invalid, "plan erasure set", m.ID, "a member without a place, or given twice (%s)", m.place())
		}
		count[m.Domain]++
		ids[m.ID], places[m.place()] = true, true
	}
	slices.SortStableFunc(members, func(a, b Member) int {
		if c := count[b.Domain] - count[a.Domain]; c != 0 {
			return c
		}
		return strings.Compare(a.Domain, b.Domain)
	})
	p := Plan{Layout: l, Groups: make([][]Member, len(members)/n), LoseMembers: l.Parity, LoseDomains: len(members)}
	for i, m := range members {
		g := i % len(p.Groups)
		p.Groups[g] = append(p.Groups[g], m)
	}
	for _, g := range p.Groups {
		p.LoseDomains = min(p.LoseDomains, survives(g, l))
	}
	return p, nil
}

// survives counts how many domains, largest first, may go before more than parity is lost.
func survives(group []Member, l Layout) (domains int) {
	count := map[string]int{}
	for _, m := range group {
		count[m.Domain]++
	}
	lost := 0
	for _, n := range slices.Backward(slices.Sorted(maps.Values(count))) {
		if lost += n; lost > l.Parity {
			break
		}
		domains++
	}
	return domains
}

// CreateOptions are choices of Create and Grow.
type CreateOptions struct {
	// Force makes a set although the loss of one failure domain would lose data.
	Force bool
	Log   *slog.Logger
}

// Create makes an erasure set of empty members, a multiple of the layout's, and leaves it closed. What it answers says
// how members were dealt into groups. Nothing is ever written over: a member that is not empty is refused.
func Create(ctx context.Context, members []Member, l Layout, o CreateOptions) (Plan, error) {
	p, err := NewPlan(members, l)
	if err != nil {
		return p, err
	}
	if p.LoseDomains == 0 && !o.Force {
		return p, losesDomain(l)
	}
	d := &setDocument{Format: formatVersion, Set: newID(), Version: 1, ID: newID(), Ancestors: []string{}, Time: time.Now().UTC()}
	for _, g := range p.Groups {
		d.Groups = append(d.Groups, newGroup(g, l))
	}
	var opened []blob.Store
	defer func() { closeAll(opened) }()
	for _, g := range p.Groups {
		for _, m := range g {
			b, err := m.create()
			if err != nil {
				return p, fault.Context("create erasure set", m.place(), err)
			}
			if m.Store == nil {
				opened = append(opened, b)
			}
			if err := mustBeEmpty(ctx, b); err != nil {
				return p, err
			}
		}
	}
	// Identities first: with its first document, the members are a set.
	write := func(f func(g, slot int, b blob.Store) error) error {
		for g := range p.Groups {
			for slot, m := range p.Groups[g] {
				b, err := m.create()
				if err == nil {
					err = f(g, slot, b)
					if m.Store == nil {
						err = errors.Join(err, b.Close())
					}
				}
				if err != nil {
					return fault.Context("create erasure set", m.place(), err)
				}
			}
		}
		return nil
	}
	err = write(func(g, slot int, b blob.Store) error {
		return putIdentity(ctx, b, identity{formatVersion, d.Set, p.Groups[g][slot].ID, g, slot})
	})
	if err == nil {
		err = write(func(_, _ int, b blob.Store) error { return putDocument(ctx, b, d) })
	}
	return p, err
}

func losesDomain(l Layout) error {
	return fault.New(fault.Invalid, "plan erasure set", l.String(), "a failure domain has more than %d members of a group", l.Parity).Explain(
		"The loss of one failure domain (a disk, host or rack named by several members) would lose data.",
		"Spread the members over more domains, choose more parity, or force it if you accept that.")
}

func newGroup(members []Member, l Layout) groupDoc {
	g := groupDoc{Layout: l}
	for _, m := range members {
		g.Members = append(g.Members, memberDoc{ID: m.ID, Domain: m.Domain})
	}
	return g
}

func (m Member) create() (blob.Store, error) {
	if m.Store != nil {
		return m.Store, nil
	}
	return file.Create(m.Path)
}

func (m Member) open() (blob.Store, error) {
	if m.Store != nil {
		return m.Store, nil
	}
	return file.Open(m.Path)
}

// mustBeEmpty refuses a member on which anything is, save what an interrupted Create left: identities without a set.
func mustBeEmpty(ctx context.Context, b blob.Store) error {
	var left []string
	for info, err := range b.List(ctx, "") {
		if err != nil {
			return fault.Context("look at new member", b.Location(), err)
		}
		if info.Name != memberName && info.Name != memberCopy {
			return fault.New(fault.Exists, "use as new member", b.Location(), "it is not empty: there is %s", info.Name).Explain(
				"A new member of an erasure set must be empty; nothing is ever written over the data of another.",
				"Check the path. If what is there is not needed any more, remove it yourself, then try again.")
		}
		left = append(left, info.Name)
	}
	for _, name := range left {
		if err := b.Delete(ctx, name); err != nil {
			return fault.Context("use as new member", b.Location(), err)
		}
	}
	return nil
}

func newID() string {
	var p id
	_, _ = rand.Read(p[:])
	return hex.EncodeToString(p[:])
}

func closeAll(stores []blob.Store) {
	for _, b := range stores {
		_ = b.Close()
	}
}
