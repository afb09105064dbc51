package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

func diskDir(i int) string { return fmt.Sprintf("/d%d", i) }

// newDisks is a file system with a directory for each member, and a set on it.
func newDisks(l Layout) (*crashfs.FS, error) {
	fsys := crashfs.New()
	var members []Member
	for i := range l.Members() {
		b, err := file.CreateFS(fsys, diskDir(i))
		if err != nil {
			return nil, err
		}
		members = append(members, Member{ID: fmt.Sprint("m", i), Store: b})
	}
	_, err := Create(context.Background(), members, l, CreateOptions{})
	return fsys, err
}

// openDisks opens a set by the members that are not away.
func openDisks(fsys file.FS, l Layout, away map[int]bool) (*Store, error) {
	var members []Member
	for i := range l.Members() {
		if away[i] {
			continue
		}
		b, err := file.OpenFS(fsys, diskDir(i))
		if err != nil {
			return nil, err
		}
		members = append(members, Member{Store: b})
	}
	return Open(context.Background(), members, Options{})
}

// faults makes operations on disks fail.
type faults struct {
	mu    sync.Mutex
	after map[int]int // by disk: operations until it fails for good
	err   error
	only  string // if set, the operation that fails
	fired map[string]int
}

func (f *faults) fail(op, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var disk int
	if _, err := fmt.Sscanf(name, "/d%d", &disk); err != nil {
		return nil
	}
	left, ok := f.after[disk]
	if !ok || (f.only != "" && op != f.only) {
		return nil
	}
	if left > 0 {
		f.after[disk] = left - 1
		return nil
	}
	f.fired[op]++
	return f.err
}

// model is a set beside what it must hold.
type model struct {
	t       *rapid.T
	l       Layout
	fs      *crashfs.FS
	s       *Store
	release func() error
	f       *faults
	have    map[string][]byte // acknowledged
	maybe   map[string][]byte // an operation failed: as it was, or as it was to be (nil: gone), until the next owner
	away    map[int]bool
	weak    map[int]bool // members that may lack something since the last whole scrub, those away included
	serial  int
	counts  map[string]int
}

func (m *model) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) open() {
	m.t.Helper()
	m.fs.Fail = m.f.fail
	var err error
	m.s, err = openDisks(m.fs, m.l, m.away)
	m.must(err)
	m.release, err = m.s.Acquire(context.Background())
	m.must(err)
	// The owner has decided what was open.
	for name := range m.maybe {
		if data, err := blob.Get(context.Background(), m.s, name, 1<<30); err == nil {
			if m.have[name] != nil && !bytes.Equal(data, m.have[name]) || m.maybe[name] != nil && !bytes.Equal(data, m.maybe[name]) {
				m.t.Fatalf("%s has bytes that nobody wrote", name)
			}
			m.have[name] = data
		} else if fault.KindOf(err) == fault.NotFound {
			delete(m.have, name)
		} else {
			m.t.Fatalf("%s is neither there nor gone: %v", name, err)
		}
	}
	m.maybe = map[string][]byte{}
	m.check(m.t)
}

func (m *model) close() {
	m.must(errors.Join(m.release(), m.s.Close()))
}

func (m *model) name(t *rapid.T) string {
	return rapid.SampledFrom([]string{"config", "a/1", "a/2", "a/b/3", "c/4"}).Draw(t, "name")
}

// outcome notes what an operation did: err says that it may have done it or not.
func (m *model) outcome(name string, data []byte, err error) {
	switch {
	case err == nil && data == nil:
		delete(m.have, name)
	case err == nil:
		m.have[name] = data
	default:
		if _, ok := m.maybe[name]; !ok {
			m.maybe[name] = data
		}
		if old := m.have[name]; data == nil {
			m.maybe[name] = old
		}
		m.counts["operations that failed"]++
	}
}

func (m *model) put(t *rapid.T) {
	name := m.name(t)
	if _, open := m.maybe[name]; open {
		t.Skip("its state is open")
	}
	m.serial++
	size := rapid.SampledFrom([]int{0, 50, wholeLimit, wholeLimit + 1, 300_000}).Draw(t, "size")
	data := append(content(uint64(m.serial), size), byte(m.serial))
	err := blob.Put(context.Background(), m.s, name, data)
	if _, there := m.have[name]; there {
		if err == nil {
			t.Fatalf("%s was put twice", name)
		}
		return
	}
	if err != nil && len(m.f.after) == 0 {
		t.Fatal(err)
	}
	m.outcome(name, data, err)
	m.counts["puts"]++
}

func (m *model) remove(t *rapid.T) {
	name := m.name(t)
	if _, open := m.maybe[name]; open || m.have[name] == nil {
		t.Skip("nothing there")
	}
	err := m.s.Delete(context.Background(), name)
	if err != nil && len(m.f.after) == 0 {
		t.Fatal(err)
	}
	m.outcome(name, nil, err)
	m.counts["deletes"]++
}

func (m *model) rename(t *rapid.T) {
	from, to := m.name(t), m.name(t)
	_, open := m.maybe[from]
	_, open2 := m.maybe[to]
	if open || open2 || m.have[from] == nil || m.have[to] != nil {
		t.Skip("not possible")
	}
	data := m.have[from]
	err := m.s.Rename(context.Background(), from, to)
	if err != nil && len(m.f.after) == 0 {
		t.Fatal(err)
	}
	m.outcome(from, nil, err)
	m.outcome(to, data, err)
	m.counts["renames"]++
}

// reopen is a new process, perhaps after a power cut, with other members there.
func (m *model) reopen(t *rapid.T) {
	cut := rapid.Bool().Draw(t, "power cut")
	if !cut {
		m.close()
	}
	m.f.after = map[int]int{}
	if cut {
		loss := rapid.SampledFrom([]crashfs.Loss{crashfs.Everything, crashfs.Nothing, crashfs.Some}).Draw(t, "loss")
		m.fs = m.fs.Disk().End().Crash(loss, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
		m.counts["power cuts"]++
	}
	m.away = map[int]bool{}
	for i := range m.l.Members() {
		if rapid.IntRange(0, 3).Draw(t, "away") == 0 && (m.weak[i] || len(m.weak) < m.l.Parity) {
			m.away[i], m.weak[i] = true, true
			m.counts["members away"]++
		}
	}
	m.open()
}

// trouble makes a member fail from some operation on, until the next owner.
func (m *model) trouble(t *rapid.T) {
	i := rapid.IntRange(0, m.l.Members()-1).Draw(t, "disk")
	if m.away[i] || !m.weak[i] && len(m.weak) >= m.l.Parity {
		t.Skip("too many are weak")
	}
	m.weak[i] = true
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	m.f.after[i] = rapid.IntRange(0, 40).Draw(t, "after")
	m.f.err = rapid.SampledFrom([]error{syscall.EIO, syscall.ENOSPC, os.ErrPermission}).Draw(t, "error")
	m.f.only = rapid.SampledFrom([]string{"", "", "rename", "write", "sync", "remove", "read"}).Draw(t, "only")
}

// disaster makes all members fail in the middle of one operation; then they work again, and a new owner comes.
func (m *model) disaster(t *rapid.T) {
	if len(m.f.after) > 0 || len(m.maybe) > 0 {
		t.Skip("members fail already")
	}
	m.f.mu.Lock()
	m.f.err, m.f.only = syscall.EIO, ""
	for i := range m.l.Members() {
		m.f.after[i] = rapid.IntRange(0, 30).Draw(t, "after")
	}
	m.f.mu.Unlock()
	name := m.name(t)
	switch {
	case m.have[name] == nil:
		data := content(7, rapid.SampledFrom([]int{10, wholeLimit + 1}).Draw(t, "size"))
		m.outcome(name, data, blob.Put(context.Background(), m.s, name, data))
	case rapid.Bool().Draw(t, "rename"):
		data := m.have[name]
		err := m.s.Rename(context.Background(), name, "moved/"+name)
		if m.have["moved/"+name] != nil {
			break
		}
		m.outcome(name, nil, err)
		m.outcome("moved/"+name, data, err)
	default:
		m.outcome(name, nil, m.s.Delete(context.Background(), name))
	}
	m.f.mu.Lock()
	m.f.after = map[int]int{}
	m.f.mu.Unlock()
	m.counts["disasters"]++
	_ = m.release()
	m.must(m.s.Close())
	if rapid.Bool().Draw(t, "power cut") {
		m.fs = m.fs.Disk().End().Crash(crashfs.Some, rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
	}
	m.away = map[int]bool{}
	m.open()
	m.scrub(t)
}

// rot changes a byte of a file of a member that may be weak.
func (m *model) rot(t *rapid.T) {
	i := rapid.IntRange(0, m.l.Members()-1).Draw(t, "disk")
	if !m.weak[i] && len(m.weak) >= m.l.Parity || len(m.f.after) > 0 {
		t.Skip("too many are weak")
	}
	files := m.fs.Names(diskDir(i) + "/" + objectFolder)
	if len(files) == 0 {
		t.Skip("nothing there")
	}
	m.weak[i] = true
	name := rapid.SampledFrom(files).Draw(t, "file")
	info, err := m.fs.Stat(name)
	m.must(err)
	data := make([]byte, info.Size())
	f, err := m.fs.Open(name)
	m.must(err)
	_, err = f.ReadAt(data, 0)
	m.must(err)
	data[rapid.IntRange(0, len(data)-1).Draw(t, "at")] ^= byte(rapid.IntRange(1, 255).Draw(t, "bits"))
	m.must(m.fs.Remove(name))
	g, err := m.fs.Create(name)
	m.must(err)
	_, err = g.Write(data)
	m.must(errors.Join(err, g.Sync(), m.fs.SyncDir(path.Dir(name))))
	m.counts["rotten shards"]++
	m.close() // it is another inode, which files that are open do not show
	m.open()
}

// scrub with all members there makes everything whole.
func (m *model) scrub(t *rapid.T) {
	if len(m.f.after) > 0 || len(m.maybe) > 0 {
		t.Skip("members fail")
	}
	if len(m.away) > 0 {
		m.close()
		m.away = map[int]bool{}
		m.open()
	}
	report, err := m.s.Scrub(context.Background(), ScrubOptions{}, nil)
	m.must(err)
	if len(report.Damaged) > 0 {
		t.Fatalf("Scrub could not repair %+v", report.Damaged)
	}
	m.counts["shards repaired"] += report.Repaired
	h, err := m.s.Health(context.Background())
	m.must(err)
	if g := h.Groups[0]; g.BelowFull > 0 || g.CanLose != m.l.Parity || g.Objects != len(m.have) {
		t.Fatalf("after Scrub: %+v", g)
	}
	for i := range m.l.Members() {
		for _, left := range m.fs.Names(diskDir(i)) {
			if strings.Contains(left, "/"+deadFolder+"/") || strings.Contains(left, "/"+pendingFolder+"/") {
				t.Fatalf("left behind: %s", left)
			}
		}
	}
	m.weak = map[int]bool{}
	m.counts["scrubs"]++
}

func (m *model) check(t *rapid.T) {
	seen := map[string]bool{}
	for info, err := range m.s.List(context.Background(), "") {
		m.must(err)
		seen[info.Name] = true
	}
	for name := range seen {
		if _, open := m.maybe[name]; m.have[name] == nil && !open {
			t.Fatalf("%s is there and should not be", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(m.have)) {
		if _, open := m.maybe[name]; open {
			continue
		}
		got, err := blob.Get(context.Background(), m.s, name, 1<<30)
		if err != nil || !bytes.Equal(got, m.have[name]) || !seen[name] {
			t.Fatalf("%s: %v, or other bytes, or not listed (%v)", name, err, seen[name])
		}
	}
}

func TestModel(t *testing.T) {
	counts, fired := map[string]int{}, map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		m := &model{
			t: rt, l: rapid.SampledFrom([]Layout{{1, 1}, {2, 1}, {3, 2}, {4, 2}}).Draw(rt, "layout"), f: &faults{after: map[int]int{}, fired: fired},
			have: map[string][]byte{}, maybe: map[string][]byte{}, away: map[int]bool{}, weak: map[int]bool{}, counts: counts,
		}
		var err error
		m.fs, err = newDisks(m.l)
		m.must(err)
		m.open()
		rt.Repeat(map[string]func(*rapid.T){
			"put": m.put, "put2": m.put, "delete": m.remove, "rename": m.rename, "reopen": m.reopen, "trouble": m.trouble, "rot": m.rot,
			"scrub": m.scrub, "disaster": m.disaster, "": m.check,
		})
		m.f.after = map[int]int{}
		m.close()
	})
	for _, what := range []string{"puts", "deletes", "renames", "power cuts", "members away", "rotten shards", "shards repaired", "scrubs", "disasters", "operations that failed"} {
		if counts[what] == 0 {
			t.Errorf("%s: none, the test has no force", what)
		}
	}
	if len(fired) == 0 {
		t.Error("no fault has fired")
	}
	t.Logf("%v; faults fired: %v", counts, fired)
}
