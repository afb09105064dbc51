package erasure

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/store/campaign/memory"
)

// world is a set beside what it must hold. Every change has a number, and every member the last one it was told of.
type world struct {
	l       Layout
	disks   []*disk // by slot
	ids     []string
	copies  []*disk // by slot: as it was once
	copied  []int
	told    []int // by slot
	changes int
	live    []string
	gone    []string
	writes  map[string]string // write id to object, to compare states
	serial  int
	fresh   int
	rolled  bool       // a disk was exchanged for an older copy, or an empty one
	known   Generation // what is remembered apart from the set

	s       *Store
	release func() error
	here    []int // slots of the session
}

func newWorld(t *testing.T, l Layout, lie func(string, []byte) ([]byte, bool)) *world {
	t.Helper()
	w := &world{l: l, writes: map[string]string{}, copies: make([]*disk, l.Members()), copied: make([]int, l.Members()), told: make([]int, l.Members())}
	var members []Member
	for i := range l.Members() {
		d := &disk{Store: memory.New(fmt.Sprint("d", i)), lie: lie}
		w.disks, w.ids = append(w.disks, d), append(w.ids, fmt.Sprint("m", i))
		members = append(members, Member{ID: w.ids[i], Store: d})
	}
	if _, err := Create(context.Background(), members, l, CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	return w
}

// open opens the members at some slots, or copies of them.
func (w *world) open(slots []int, clones bool) (*Store, error) {
	var members []Member
	for _, i := range slots {
		d := w.disks[i]
		if clones {
			d = &disk{Store: d.Clone(), lie: d.lie}
		}
		members = append(members, Member{Store: d})
	}
	o := Options{}
	if !w.aware(slots) {
		o.Known = w.known
	}
	if !clones {
		o.Remember = func(_ context.Context, g Generation) error { w.known = g; return nil }
	}
	return Open(context.Background(), members, o)
}

// aware reports whether one of these members was told of the last change. Others cannot know that they are not up to
// date: it takes what is remembered apart from them.
func (w *world) aware(slots []int) bool {
	return slices.ContainsFunc(slots, func(i int) bool { return w.told[i] == w.changes })
}

func (w *world) tell(slots []int) {
	for _, i := range slots {
		w.told[i] = w.changes
	}
}

func (w *world) leave() error {
	if w.s == nil {
		return nil
	}
	err := errors.Join(w.release(), w.s.Close())
	w.tell(w.here) // who failed has the description now
	w.s, w.here = nil, nil
	return err
}

// key is the state of the world without what differs by chance.
func (w *world) key() string {
	var out strings.Builder
	newest, last := "", ""
	for _, d := range w.disks {
		for _, name := range d.Names(setFolder + "/") {
			if strings.HasPrefix(name, setPrefix) {
				newest = max(newest, name)
			} else if strings.HasPrefix(name, sessionPrefix) {
				last = max(last, name)
			}
		}
	}
	disk := func(d *disk) {
		if d == nil {
			return
		}
		for _, name := range d.Names("") {
			switch write := name[strings.LastIndex(name, "/")+1:]; {
			case name == newest || name == last:
				out.WriteString(name[len(setFolder) : len(setFolder)+4])
			case strings.HasPrefix(name, objectFolder+"/"):
				p, _ := parsePart(name)
				fmt.Fprint(&out, " ", p.name, ".", p.moves)
			case strings.HasPrefix(name, deadFolder+"/"), strings.HasPrefix(name, pendingFolder+"/"):
				id, rest, _ := strings.Cut(write, ".")
				if strings.HasPrefix(name, pendingFolder+"/") {
					rest = "?"
				}
				fmt.Fprint(&out, " ", name[:4], w.writes[id], ".", rest)
			}
		}
		all, _ := readDocuments(context.Background(), d)
		if len(all) > 0 {
			for _, g := range all[len(all)-1].Groups {
				for _, md := range g.Members {
					fmt.Fprint(&out, md.Behind, md.Filling, md.Incomplete)
				}
			}
		}
		out.WriteByte('\n')
	}
	for i := range w.disks {
		disk(w.disks[i])
		disk(w.copies[i])
		fmt.Fprint(&out, w.told[i] == w.changes, w.knows(w.disks[i]), w.knows(w.copies[i]))
	}
	fmt.Fprint(&out, w.here, w.live, w.gone)
	if w.s != nil {
		for _, m := range slices.Sorted(maps.Keys(w.s.doubts)) {
			fmt.Fprint(&out, m[:1], w.s.doubts[m])
		}
	}
	return out.String()
}

// knows reports whether a disk has what is remembered apart from it.
func (w *world) knows(d *disk) bool {
	if d == nil {
		return false
	}
	all, _ := readDocuments(context.Background(), d)
	session, _ := readSession(context.Background(), d)
	return session.begun >= w.known.Session && slices.ContainsFunc(all, func(d *setDocument) bool {
		return d.descends(&setDocument{ID: w.known.Document, Version: w.known.Version})
	})
}
