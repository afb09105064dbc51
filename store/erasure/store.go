package erasure

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/reedsolomon"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// Options are choices of one Open.
type Options struct {
	Log *slog.Logger
	// Spare is how many shards beyond Layout.Data must be durable before a write is acknowledged. 0: writes go on as
	// long as the object can be read back; it is below full redundancy until a Scrub or Rebuild.
	Spare int
	// Trust has the ids or paths of members whose view counts, one of each group, if members were written to apart from
	// each other or if those that know more are lost. What the others have that they do not know stays; what they know as
	// deleted is deleted. It counts with the next Acquire. Where it is not needed Open refuses it: see the function Trust.
	Trust []string
	// Known is the newest generation of the set that somebody remembers; older members are refused. None: the zero value.
	Known Generation
	// Remember, if not nil, is told of each new generation before an owner acknowledges anything that relies on it.
	Remember func(context.Context, Generation) error
	// Name is what the admin calls it, for commands in advice; "" is "NAME". Attach: it has that name only when it is open.
	Name   string
	Attach bool
}

// Store is an open erasure set. It implements blob.Store and blob.Repairer.
type Store struct {
	log   *slog.Logger
	o     Options
	set   id
	stats counters

	// gate is held shared by what changes objects, exclusively by what settles or changes the set.
	gate  sync.RWMutex
	names [64]sync.Mutex // stripes: one change of a name at a time

	docs sync.Mutex // one change of what the set's document says about members at a time, beside others of gate shared

	known Generation // remembered apart from the set; who has gate exclusively or docs may use it

	mu       sync.Mutex
	doc      *setDocument
	doubts   map[string]string // by member: why it counts for less than the document says; see doubt
	donors   map[string]*donor // by member: the one whose place it took
	groups   []*group
	unopened []*member // given to Open, but not to be used: foreign, empty or not there
	owner    bool
	trusted  []string // of Options.Trust: those without which the set could not be used
	// session is the owner's, or the last one that was begun; a higher one may be announced.
	session, announced uint64
	flying             map[string]bool // writes of this process that are not committed
	doomed             map[string]bool // writes whose delete failed half-way: dead until the next settling
	cache              entryCache
	censuses           map[int]*census // by group
	spaceAt            time.Time
	share              []float64 // free share by group, as of spaceAt
}

// group is k+m members; every object has a shard on each member of one group.
type group struct {
	number  int
	layout  Layout
	members []*member // by slot
	code    reedsolomon.Encoder
}

// member is one slot of a group, or something given to Open that has no slot.
type member struct {
	given Member
	id    string
	group int
	slot  int

	mu      sync.Mutex
	b       blob.Store // nil: not there
	own     bool       // b was opened by us
	state   MemberState
	reason  string
	down    time.Time // after an error: not tried for reads before this
	errs    int64
	release func() error
}

// counters are kept since Open.
type counters struct {
	rebuiltUnits, badUnits, degradedReads, degradedWrites, repairedShards atomic.Int64
}

func newStore(o Options) *Store {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Store{log: o.Log, o: o, known: o.Known, flying: map[string]bool{}, doomed: map[string]bool{}, doubts: map[string]string{}, donors: map[string]*donor{}, censuses: map[int]*census{}}
}

// adopt takes over a document: groups and their members, keeping what is open.
func (s *Store) adopt(d *setDocument, open map[string]*member) error {
	var groups []*group
	for i, gd := range d.Groups {
		g := &group{number: i, layout: gd.Layout}
		if gd.Data > 1 {
			code, err := reedsolomon.New(gd.Data, gd.Parity)
			if err != nil {
				return fault.Wrap(fault.Internal, "open erasure set", d.Set, err)
			}
			g.code = code
		}
		for slot, md := range gd.Members {
			m := open[md.ID]
			if m == nil {
				m = &member{id: md.ID, state: Missing, reason: "it was not given, or is not there"}
			}
			if m.group != i || m.slot != slot { // who has a seat keeps it, and is read without a lock
				m.group, m.slot = i, slot
			}
			g.members = append(g.members, m)
		}
		groups = append(groups, g)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.doc, s.groups = d, groups
	s.spaceAt = time.Time{}
	return nil
}

func (s *Store) snapshot() (*setDocument, []*group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doc, s.groups
}

// memberDoc is what the document says about a member, and what is known besides.
func (s *Store) memberDoc(m *member) memberDoc {
	s.mu.Lock()
	defer s.mu.Unlock()
	md := s.doc.Groups[m.group].Members[m.slot]
	why, doubted := s.doubts[m.id]
	if !doubted {
		return md
	}
	md = md.fell(why, s.session)
	if why == whyCopy {
		md.Filling, md.Why = true, why
	}
	return md
}

// doubt lets a member count for less until the document says so: it is an older copy, or has not got the document.
func (s *Store) doubt(m *member, why string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.doubts[m.id] == "" {
		s.doubts[m.id] = why
	}
}

func (s *Store) doubted(m *member) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.doubts[m.id] != ""
}

// need is how many shards make a write or a delete count.
func (s *Store) need(g *group) int { return min(g.layout.Data+s.o.Spare, g.layout.Members()) }

func (g *group) n() int { return g.layout.Members() }

// store returns the member's store, or why it cannot be used.
func (m *member) store() (blob.Store, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.b == nil {
		return nil, fault.New(fault.Transient, "use member", m.id, "%s", m.reason)
	}
	return m.b, nil
}

// failed notes an error of a member and returns it with the member's name. An object that is not there is no fault of it.
func (m *member) failed(err error) error {
	if err == nil {
		return nil
	}
	kind := fault.KindOf(err)
	m.mu.Lock()
	defer m.mu.Unlock()
	if kind != fault.NotFound && kind != fault.Canceled && kind != fault.Exists && m.b != nil {
		m.errs++
		m.reason = err.Error()
		if kind != fault.Corrupt {
			m.down = time.Now().Add(retryDown)
		}
	}
	return fmt.Errorf("member %s (%s): %w", m.id, m.given.place(), err)
}

// retryDown is how long reads prefer other members after a member's error.
const retryDown = 5 * time.Second

// ready reports whether reads should try the member first.
func (m *member) ready() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.b != nil && (m.down.IsZero() || time.Now().After(m.down))
}

func (m *member) up() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.b != nil
}

// each runs f for all members at once; the errors are by slot, with the members' names.
func each(members []*member, f func(slot int, m *member, b blob.Store) error) []error {
	errs := make([]error, len(members))
	var wg sync.WaitGroup
	for i, m := range members {
		b, err := m.store()
		if err != nil {
			errs[i] = err
			continue
		}
		wg.Go(func() { errs[i] = m.failed(f(i, m, b)) })
	}
	wg.Wait()
	return errs
}

func succeeded(errs []error) (n int) {
	for _, err := range errs {
		if err == nil {
			n++
		}
	}
	return n
}

// worst joins errors under the kind that says most: why so many members failed.
func worst(op, subject string, errs ...error) error {
	joined := errors.Join(errs...)
	if joined == nil {
		joined = errors.New("too few members")
	}
	kind := fault.Transient
	for _, err := range errs {
		if err == nil {
			continue
		}
		switch k := fault.KindOf(err); k {
		case fault.Canceled:
			return fault.Wrap(k, op, subject, joined)
		case fault.Denied, fault.Conflict:
			kind = k
		}
	}
	return fault.Wrap(kind, op, subject, joined)
}

// Location implements blob.Store.
func (s *Store) Location() string {
	d, groups := s.snapshot()
	at := ""
	for _, g := range groups {
		for _, m := range g.members {
			if p := m.given.place(); p != "" {
				at = " at " + p + " and others"
				return fmt.Sprintf("erasure set %s%s", d.Set[:8], at)
			}
		}
	}
	return "erasure set " + d.Set[:8]
}

// Close implements blob.Store. Stores that were given to Open stay open.
func (s *Store) Close() error {
	_, groups := s.snapshot()
	errs := []error{s.dismiss(true)}
	for _, g := range groups {
		for _, m := range g.members {
			errs = append(errs, m.close())
		}
	}
	return errors.Join(errs...)
}

func (m *member) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.b
	m.b, m.state, m.reason = nil, Missing, "closed"
	if b == nil || !m.own {
		return nil
	}
	return b.Close()
}

// lockName holds the name stripes of all names, in one order, until the returned function is called.
func (s *Store) lockName(names ...string) (unlock func()) {
	var stripes [64]bool
	for _, name := range names {
		h := uint32(2166136261)
		for i := range len(name) {
			h = (h ^ uint32(name[i])) * 16777619
		}
		stripes[h%64] = true
	}
	for i, want := range stripes {
		if want {
			s.names[i].Lock()
		}
	}
	return func() {
		for i, want := range stripes {
			if want {
				s.names[i].Unlock()
			}
		}
	}
}
