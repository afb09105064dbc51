package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/campaign/memory"
)

// disk is a member in memory that can fail, and lie about what it was given to keep.
type disk struct {
	*memory.Store
	fails string // "": well; "all": nothing works; "data": it keeps descriptions of the set, and nothing else; "names": all but shards' names
	lie   func(name string, p []byte) (kept []byte, keep bool)
}

var errDisk = errors.New("no answer")

func (d *disk) failing(name string) error {
	if d.fails == "all" || d.fails == "data" && !strings.HasPrefix(name, setFolder) || d.fails == "names" && strings.HasPrefix(name, objectFolder) {
		return fault.Wrap(fault.Transient, "use disk", name, errDisk)
	}
	return nil
}

func (d *disk) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := d.failing(name); err != nil {
		return nil, err
	}
	w, err := d.Store.Create(ctx, name)
	if d.lie == nil || err != nil {
		return w, err
	}
	return &lyingWriter{Writer: w, d: d, name: name}, nil
}

func (d *disk) Rename(ctx context.Context, from, to string) error {
	if err := errors.Join(d.failing(from), d.failing(to)); err != nil {
		return err
	}
	return d.Store.Rename(ctx, from, to)
}

func (d *disk) Delete(ctx context.Context, name string) error {
	if err := d.failing(name); err != nil {
		return err
	}
	return d.Store.Delete(ctx, name)
}

type lyingWriter struct {
	blob.Writer
	d    *disk
	name string
	p    []byte
}

func (w *lyingWriter) Write(p []byte) (int, error) {
	w.p = append(w.p, p...)
	return len(p), nil
}

func (w *lyingWriter) Commit(ctx context.Context) error {
	p, keep := w.d.lie(w.name, w.p)
	if !keep {
		return nil
	}
	if _, err := w.Writer.Write(p); err != nil {
		return err
	}
	return w.Writer.Commit(ctx)
}

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
	rolled  bool // a disk was exchanged for an older copy, or an empty one

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
	return Open(context.Background(), members, Options{})
}

// aware reports whether one of these members was told of the last change. Others cannot know that they are not up to
// date: doc.go says what is done about it.
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

// step is one thing that happens.
type happening struct {
	what  string // session put delete rename replace scrub copy back
	slots []int  // session: who is there
	slot  int    // replace, copy, back; of who fails, -1: nobody
	fails string
}

func (h happening) String() string {
	switch {
	case h.what == "session":
		return fmt.Sprintf("session%v", h.slots)
	case h.slot < 0:
		return h.what
	case h.fails != "":
		return fmt.Sprintf("%s, %d fails (%s)", h.what, h.slot, h.fails)
	}
	return fmt.Sprint(h.what, " ", h.slot)
}

// happenings lists all there can be.
func happenings(l Layout) (out []happening) {
	for _, slots := range subsets(l) {
		out = append(out, happening{what: "session", slots: slots, slot: -1})
	}
	for _, what := range []string{"put", "delete", "rename"} {
		out = append(out, happening{what: what, slot: -1})
		for i := range l.Members() {
			for _, fails := range []string{"all", "data", "names"} {
				out = append(out, happening{what: what, slot: i, fails: fails})
			}
		}
	}
	for i := range l.Members() {
		out = append(out, happening{what: "replace", slot: i}, happening{what: "rebuild", slot: i})
	}
	return append(out, happening{what: "scrub", slot: -1}, happening{what: "copy", slot: 0}, happening{what: "back", slot: 0})
}

// subsets lists the members that can be there.
func subsets(l Layout) (out [][]int) {
	for bits := range 1 << l.Members() {
		var slots []int
		for i := range l.Members() {
			if bits>>i&1 == 1 {
				slots = append(slots, i)
			}
		}
		if len(slots) >= l.Data {
			out = append(out, slots)
		}
	}
	return out
}

// do lets one thing happen; possible: it could.
func (w *world) do(h happening) (possible bool, err error) {
	switch h.what {
	case "session":
		return w.session(h.slots)
	case "copy":
		err := w.leave()
		w.copies[h.slot], w.copied[h.slot] = &disk{Store: w.disks[h.slot].Clone(), lie: w.disks[h.slot].lie}, w.told[h.slot]
		return true, err
	case "back":
		if w.copies[h.slot] == nil {
			return false, nil
		}
		err := w.leave()
		w.disks[h.slot], w.told[h.slot], w.copies[h.slot], w.rolled = w.copies[h.slot], w.copied[h.slot], nil, true
		return true, err
	}
	if w.s == nil || h.fails != "" && !slices.Contains(w.here, h.slot) {
		return false, nil
	}
	if h.fails != "" {
		w.disks[h.slot].fails = h.fails
		defer func() { w.disks[h.slot].fails = "" }()
	}
	possible, err = w.change(h)
	if possible {
		// Who failed is not told before the owner leaves.
		told := slices.DeleteFunc(slices.Clone(w.here), func(i int) bool { return w.told[i] != w.changes || h.fails == "all" && i == h.slot })
		w.changes++
		w.tell(told)
	}
	return possible, err
}

func (w *world) session(slots []int) (possible bool, err error) {
	if err := w.leave(); err != nil {
		return true, err
	}
	if !w.aware(slots) {
		return false, nil
	}
	s, err := w.open(slots, false)
	if err != nil {
		return false, transient(err)
	}
	release, err := s.Acquire(context.Background())
	if err != nil {
		return false, errors.Join(transient(err), s.Close())
	}
	w.changes++
	w.tell(slots)
	w.s, w.release, w.here = s, release, slots
	return true, nil
}

func (w *world) change(h happening) (possible bool, err error) {
	ctx := context.Background()
	switch h.what {
	case "put":
		name := fmt.Sprint("o/", w.serial)
		w.serial++
		if err := blob.Put(ctx, w.s, name, []byte(name)); err != nil {
			return true, transient(err)
		}
		w.live = append(w.live, name)
		w.identify(name)
	case "delete":
		if len(w.live) == 0 {
			return false, nil
		}
		name := w.live[0]
		w.live = w.live[1:]
		if err := w.s.Delete(ctx, name); err != nil {
			return true, transient(err)
		}
		w.gone = append(w.gone, name)
	case "rename":
		if len(w.live) == 0 || strings.HasPrefix(w.live[0], "r/") {
			return false, nil
		}
		from, to := w.live[0], "r/"+w.live[0]
		w.live = w.live[1:]
		if err := w.s.Rename(ctx, from, to); err != nil {
			return true, transient(err)
		}
		w.gone, w.live = append(w.gone, from), append(w.live, to)
	case "replace":
		return w.replace(h.slot)
	case "rebuild":
		if !slices.Contains(w.here, h.slot) {
			return false, nil
		}
		return true, unreadable(w.s.Rebuild(ctx, w.ids[h.slot], nil))
	case "scrub":
		_, err := w.s.Scrub(ctx, ScrubOptions{}, nil)
		return true, transient(err)
	}
	return true, nil
}

func (w *world) replace(slot int) (possible bool, err error) {
	w.fresh++
	d := &disk{Store: memory.New(fmt.Sprint("fresh", w.fresh)), lie: w.disks[slot].lie}
	id, err := w.s.Replace(context.Background(), w.ids[slot], Member{ID: fmt.Sprint("f", w.fresh), Store: d, Domain: w.ids[slot]})
	if fault.KindOf(err) == fault.Conflict && err != nil || fault.KindOf(err) == fault.Transient && err != nil {
		return false, nil // others lack what it has
	}
	w.disks[slot], w.ids[slot], w.rolled, w.copies[slot], w.told[slot] = d, id, true, nil, w.changes
	if !slices.Contains(w.here, slot) {
		w.here = append(slices.Clone(w.here), slot)
	}
	return true, err
}

// identify notes the write that an object is.
func (w *world) identify(name string) {
	for _, d := range w.disks {
		for _, file := range d.Names(objectFolder + "/") {
			if p, ok := parsePart(file); ok && p.name == name {
				w.writes[p.write] = name
			}
		}
	}
}

// transient lets errors pass that say that it may work later.
func transient(err error) error {
	if err == nil {
		return nil
	}
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) == fault.Transient && (meaning == "" || advice == "") && !errors.Is(err, errDisk) {
		return fmt.Errorf("not said what to do: %w", err)
	}
	if fault.KindOf(err) != fault.Transient {
		return err
	}
	return nil
}

// unreadable lets errors pass that an object has too few shards left, which replacing members can lead to.
func unreadable(err error) error {
	if fault.KindOf(err) == fault.Corrupt {
		return nil
	}
	return transient(err)
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
		fmt.Fprint(&out, w.told[i] == w.changes)
	}
	fmt.Fprint(&out, w.here, w.live, w.gone)
	if w.s != nil {
		for _, m := range slices.Sorted(maps.Keys(w.s.doubts)) {
			fmt.Fprint(&out, m[:1], w.s.doubts[m])
		}
	}
	return out.String()
}

// judge looks at the set with any members that can be there, as a reader and as an owner: what is there is found or it
// is said that it cannot be known now, and what is gone does not come back.
func (w *world) judge() (checks int, err error) {
	if err := w.judgeCount(); err != nil {
		return 0, err
	}
	for _, slots := range subsets(w.l) {
		if !w.aware(slots) {
			continue
		}
		for _, owner := range []bool{false, true} {
			if err := w.judgeWith(slots, owner); err != nil {
				return checks, fmt.Errorf("with members %v, owner %v: %w", slots, owner, err)
			}
			checks++
		}
	}
	return checks, nil
}

// judgeCount compares what the owner has counted with what is there.
func (w *world) judgeCount() error {
	if w.s == nil {
		return nil
	}
	_, groups := w.s.snapshot()
	had := w.s.censuses[0]
	delete(w.s.censuses, 0)
	err := w.s.tally(context.Background(), groups[0])
	is := w.s.censuses[0]
	w.s.censuses[0] = had
	if err != nil {
		return transient(err)
	}
	if had.objects[1] != is.objects[1] || had.bytes != is.bytes || had.shards != is.shards {
		return fmt.Errorf("counted %+v, there is %+v", had, is)
	}
	return nil
}

func (w *world) judgeWith(slots []int, owner bool) (err error) {
	ctx := context.Background()
	all := len(slots) == w.l.Members() && !w.rolled
	s, err := w.open(slots, true)
	if err != nil {
		return transient(err)
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if owner {
		release, err := s.Acquire(ctx)
		if err != nil && !all {
			return transient(err)
		} else if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, release()) }()
	}
	for _, name := range w.live {
		p, err := blob.Get(ctx, s, name, 1<<10)
		if want, _ := strings.CutPrefix(name, "r/"); err == nil && !bytes.Equal(p, []byte(want)) {
			return fmt.Errorf("%s has other bytes", name)
		}
		if fault.KindOf(err) == fault.NotFound || err != nil && all {
			return fmt.Errorf("%s: %w", name, err)
		}
		if _, err := s.Stat(ctx, name); fault.KindOf(err) == fault.NotFound {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for _, name := range w.gone {
		if _, err := s.Stat(ctx, name); fault.KindOf(err) != fault.NotFound && (transient(err) != nil || err == nil || all) {
			return fmt.Errorf("%s was deleted or renamed: %w", name, errors.Join(err, io.EOF))
		}
	}
	return w.judgeList(s, all)
}

func (w *world) judgeList(s *Store, all bool) error {
	var names []string
	for info, err := range s.List(context.Background(), "") {
		if err != nil && !all {
			return transient(err)
		} else if err != nil {
			return err
		}
		if slices.Contains(w.gone, info.Name) || slices.Contains(w.live, info.Name) {
			names = append(names, info.Name) // others are of changes that failed
		}
	}
	slices.Sort(names)
	if want := slices.Sorted(slices.Values(w.live)); !slices.Equal(names, want) {
		return fmt.Errorf("listed are %v, want %v", names, want)
	}
	return nil
}

// explored is what an exploration came to.
type explored struct {
	states, checks, refused int
	wrong                   error
}

// explore lets everything happen in every order, up to depth things, and judges each state that differs from all before.
func explore(t *testing.T, l Layout, depth, limit int, lie func(string, []byte) ([]byte, bool)) (out explored) {
	t.Helper()
	known := map[string]bool{}
	level := [][]happening{nil}
	all := happenings(l)
	for range depth {
		var next [][]happening
		for _, path := range level {
			for _, h := range all {
				if out.states >= limit {
					return out
				}
				now := append(slices.Clone(path), h)
				w := newWorld(t, l, lie)
				possible, err := w.replay(now)
				if err == nil && possible {
					if key := w.key(); !known[key] {
						known[key] = true
						out.states++
						next = append(next, now)
						var n int
						n, err = w.judge()
						out.checks += n
					}
				} else if !possible {
					out.refused++
				}
				if err = errors.Join(err, w.leave()); err != nil {
					out.wrong = fmt.Errorf("%v: %w", now, err)
					return out
				}
			}
		}
		level = next
	}
	return out
}

func (w *world) replay(path []happening) (possible bool, err error) {
	for _, h := range path {
		if possible, err = w.do(h); err != nil || !possible {
			return possible, err
		}
	}
	return true, nil
}

// TestEveryOrderOfEvents is the theorem of doc.go, tried out.
func TestEveryOrderOfEvents(t *testing.T) {
	for _, tt := range []struct {
		l            Layout
		depth, limit int
	}{{Layout{1, 1}, 5, 1000}, {Layout{1, 2}, 4, 400}, {Layout{2, 1}, 4, 500}, {Layout{2, 2}, 3, 300}} {
		if os.Getenv("CAIRN_SOAK") != "" {
			tt.depth, tt.limit = tt.depth+2, 200_000
		}
		out := explore(t, tt.l, tt.depth, tt.limit, nil)
		if out.wrong != nil {
			t.Errorf("%v: after %d states: %v", tt.l, out.states, out.wrong)
		}
		t.Logf("%v: %d states within %d events, each judged with all members that can be there: %d judgements, %d refusals",
			tt.l, out.states, tt.depth, out.checks, out.refused)
	}
}

// forget makes disks keep descriptions of the set that lack what f clears.
func forget(f func(*memberDoc)) func(string, []byte) ([]byte, bool) {
	return func(name string, p []byte) ([]byte, bool) {
		var d setDocument
		if !strings.HasPrefix(name, setPrefix) || decode(p, &d) != nil {
			return p, true
		}
		for _, g := range d.Groups {
			for slot := range g.Members {
				f(&g.Members[slot])
			}
		}
		p, err := encode(&d)
		return p, err == nil
	}
}

// TestExplorationFindsBugs shows that the exploration can fail: what the theorem rests on is taken away.
func TestExplorationFindsBugs(t *testing.T) {
	for what, tt := range map[string]struct {
		l   Layout
		lie func(string, []byte) ([]byte, bool)
	}{
		"who lacks shards is not recorded": {Layout{1, 1}, forget(func(md *memberDoc) {
			md.Incomplete, md.Filling = false, false
		})},
		"who is behind is not recorded": {Layout{1, 1}, forget(func(md *memberDoc) { md.Behind = false })},
		"sessions are not numbered": {Layout{1, 1}, func(name string, p []byte) ([]byte, bool) {
			return p, !strings.HasPrefix(name, sessionPrefix)
		}},
		"marks are not kept": {Layout{2, 1}, func(name string, p []byte) ([]byte, bool) {
			return p, !strings.HasPrefix(name, deadFolder)
		}},
	} {
		out := explore(t, tt.l, 6, 5000, tt.lie)
		if out.wrong == nil {
			t.Errorf("%s: not found in %d states", what, out.states)
			continue
		}
		t.Logf("%s: found after %d states: %v", what, out.states, out.wrong)
	}
}
