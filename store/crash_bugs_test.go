package store

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// crashBugs are bugs that programs like this have had, as what they do to the outside.
func crashBugs() []plant {
	return []plant{
		{name: "no fsync of files", lie: func(_ string, isDir bool, _ string) bool { return !isDir }},
		{name: "no fsync of directories", lie: func(_ string, isDir bool, _ string) bool { return isDir }},
		{name: "no fsync of the packs' folders", lie: func(name string, isDir bool, _ string) bool { return isDir && inFolder(name, "packs") }},
		{name: "acknowledged before the manifest's entry is durable", lie: func(name string, isDir bool, _ string) bool {
			return isDir && inFolder(name, "manifests")
		}},
		{name: "keys removed before those in their place are durable", lie: func(name string, isDir bool, _ string) bool {
			return isDir && inFolder(name, "keys")
		}},
		{name: "new folders not durable in their parent", lie: func(name string, isDir bool, last string) bool {
			return isDir && strings.HasSuffix(name, "/repo/packs") && !strings.HasSuffix(last, ".pack")
		}},
		{name: "packs deleted before the manifest's removal is durable", lie: func(name string, isDir bool, last string) bool {
			return isDir && inFolder(name, "manifests") && strings.HasPrefix(last, "-")
		}},
		{name: "linked before the content is durable", fs: func(f file.FS) file.FS { return &linkFirst{FS: f, unsynced: map[string]file.File{}} }},
		{name: "manifest published before its packs", store: func(b blob.Store, _ file.FS) blob.Store { return &latePacks{Store: b, late: map[string]*latePack{}} }},
		{name: "manifest written in place", store: func(b blob.Store, f file.FS) blob.Store { return inPlace{b, f} }},
		{name: "what a killed process left is built upon as it is", fs: func(f file.FS) file.FS { return &unsettled{FS: f} },
			store: func(b blob.Store, f file.FS) blob.Store { return settling{b, f.(*unsettled)} }},
		{name: "leftovers of a dead process stay in tmp", fs: func(f file.FS) file.FS { return blindTo{f, "/repo/tmp"} }},
		{name: "leases of dead sessions stay", store: func(b blob.Store, _ file.FS) blob.Store { return blindStore{b, leaseFolder} }},
		{name: "trash of an interrupted collect stays", store: func(b blob.Store, _ file.FS) blob.Store { return blindStore{b, trashFolder} }},
		{name: "epoch not checked", store: func(b blob.Store, _ file.FS) blob.Store { return &ownEpoch{Store: b} }},
		{name: "collect ignores pins", collect: collectWithoutPins},
		{name: "collect ignores references between chunks", collect: collectWithoutReferences},
	}
}

// TestCampaignPlantedBugs shows that the crash campaign can fail.
func TestCampaignPlantedBugs(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("one goroutine a state; run without -race and -short")
	}
	bugs, found := crashBugs(), 0
	scratch, seed := memoryDir(t), seeded.Seed(t)
	for _, bug := range bugs {
		c := newCrashCampaign(scratch, 1, 6000)
		c.every = 2
		c.run(seed, crashWorks(), bug)
		if c.wrong == nil {
			t.Errorf("bug not found in %d states: %s", c.states.Load(), bug.name)
			continue
		}
		found++
		t.Logf("%-58s found after %4d states, %d operations: %.200v", bug.name, c.wrongAt, c.operations.Load(), c.wrong)
	}
	summary(t, "planted-bugs-crash", "injected", len(bugs), "fired", found, "missed", len(bugs)-found)
}

// linkFirst gives files their final name before their fsync.
type linkFirst struct {
	file.FS
	mu       sync.Mutex
	unsynced map[string]file.File
}

type lazyFile struct {
	file.File
	f    *linkFirst
	name string
}

func (l *linkFirst) Create(name string) (file.File, error) {
	f, err := l.FS.Create(name)
	if err != nil {
		return nil, err
	}
	return lazyFile{f, l, name}, nil
}

func (z lazyFile) Sync() error {
	z.f.mu.Lock()
	defer z.f.mu.Unlock()
	z.f.unsynced[z.name] = z.File
	return nil
}

func (z lazyFile) Close() error { return nil }

func (l *linkFirst) Link(old, name string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.FS.Link(old, name)
	if f := l.unsynced[old]; f != nil && err == nil {
		err = errors.Join(l.SyncDir(filepath.Dir(name)), f.Sync(), f.Close())
	}
	return err
}

// latePacks commits packs after the manifest that needs them.
type latePacks struct {
	blob.Store
	mu   sync.Mutex
	late map[string]*latePack
}

type latePack struct {
	blob.Writer
	s    *latePacks
	name string
	size int64
}

func (s *latePacks) flush(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, w := range s.late {
		delete(s.late, name)
		if err := w.Writer.Commit(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *latePacks) Create(ctx context.Context, name string) (blob.Writer, error) {
	w, err := s.Store.Create(ctx, name)
	if err != nil {
		return nil, err
	}
	switch {
	case strings.HasPrefix(name, pack.Folder):
		return &latePack{Writer: w, s: s, name: name}, nil
	case strings.HasPrefix(name, manifestFolder):
		return flushAfter{w, s}, nil
	}
	return w, nil
}

func (w *latePack) Write(p []byte) (int, error) {
	w.size += int64(len(p))
	return w.Writer.Write(p)
}

func (w *latePack) Commit(context.Context) error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.late[w.name] = w
	return nil
}

type flushAfter struct {
	blob.Writer
	s *latePacks
}

func (w flushAfter) Commit(ctx context.Context) error {
	return errors.Join(w.Writer.Commit(ctx), w.s.flush(ctx))
}

func (s *latePacks) Stat(ctx context.Context, name string) (blob.Info, error) {
	s.mu.Lock()
	w := s.late[name]
	s.mu.Unlock()
	if w != nil {
		return blob.Info{Name: name, Size: w.size}, nil
	}
	return s.Store.Stat(ctx, name)
}

func (s *latePacks) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	return errors.Join(s.flush(ctx), s.Store.ReadAt(ctx, name, p, off))
}

func (s *latePacks) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	if prefix != pack.Folder {
		return s.Store.List(ctx, prefix)
	}
	if err := s.flush(ctx); err != nil {
		return func(yield func(blob.Info, error) bool) { yield(blob.Info{}, err) }
	}
	return s.Store.List(ctx, prefix)
}

func (s *latePacks) Close() error { return errors.Join(s.flush(context.Background()), s.Store.Close()) }

// inPlace writes manifests under their final name.
type inPlace struct {
	blob.Store
	fs file.FS
}

type inPlaceWriter struct {
	file.File
	fs  file.FS
	dir string
}

func (s inPlace) Create(ctx context.Context, name string) (blob.Writer, error) {
	if !strings.HasPrefix(name, manifestFolder) {
		return s.Store.Create(ctx, name)
	}
	path := filepath.Join(s.Location(), name)
	if err := s.fs.Mkdir(filepath.Dir(path)); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	f, err := s.fs.Create(path)
	return inPlaceWriter{f, s.fs, filepath.Dir(path)}, errors.Join(err, s.fs.SyncDir(s.Location()))
}

func (w inPlaceWriter) Commit(context.Context) error {
	return errors.Join(w.Sync(), w.Close(), w.fs.SyncDir(w.dir))
}

func (w inPlaceWriter) Abort() error { return w.Close() }

// unsettled leaves directories as they are while a repository is taken over.
type unsettled struct {
	file.FS
	mu     sync.Mutex
	taking bool
}

type settling struct {
	blob.Store
	f *unsettled
}

func (s settling) Acquire(ctx context.Context) (func() error, error) {
	s.f.set(true)
	defer s.f.set(false)
	return s.Store.Acquire(ctx)
}

func (u *unsettled) set(taking bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.taking = taking
}

func (u *unsettled) SyncDir(name string) error {
	u.mu.Lock()
	taking := u.taking
	u.mu.Unlock()
	if taking {
		return nil
	}
	return u.FS.SyncDir(name)
}

// blindTo sees nothing in one directory.
type blindTo struct {
	file.FS
	dir string
}

func (b blindTo) ReadDir(name string) ([]fs.DirEntry, error) {
	if strings.HasSuffix(name, b.dir) {
		return nil, nil
	}
	return b.FS.ReadDir(name)
}

// blindStore lists nothing in one folder.
type blindStore struct {
	blob.Store
	folder string
}

func (b blindStore) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	if prefix == b.folder {
		return func(func(blob.Info, error) bool) {}
	}
	return b.Store.List(ctx, prefix)
}

// ownEpoch does not look again once it has an epoch.
type ownEpoch struct {
	blob.Store
	mu  sync.Mutex
	own string
}

func (o *ownEpoch) Create(ctx context.Context, name string) (blob.Writer, error) {
	if strings.HasPrefix(name, epochFolder) {
		o.mu.Lock()
		o.own = name
		o.mu.Unlock()
	}
	return o.Store.Create(ctx, name)
}

func (o *ownEpoch) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	o.mu.Lock()
	own := o.own
	o.mu.Unlock()
	if prefix != epochFolder || own == "" {
		return o.Store.List(ctx, prefix)
	}
	return func(yield func(blob.Info, error) bool) {
		for info, err := range o.Store.List(ctx, prefix) {
			if info.Name < own && !yield(info, err) {
				return
			}
		}
		yield(blob.Info{Name: own}, nil)
	}
}

// collectWithoutPins takes packs away that a running session has found and relies on.
func collectWithoutPins(ctx context.Context, r *Repository) (CollectReport, error) {
	saved := map[*Session]map[seal.ID]bool{}
	r.mu.Lock()
	for s := range r.sessions {
		s.mu.Lock()
		saved[s], s.pins = s.pins, map[seal.ID]bool{}
		s.mu.Unlock()
	}
	r.mu.Unlock()
	report, err := r.Collect(ctx, CollectOptions{})
	for s, pins := range saved {
		s.mu.Lock()
		for id, unread := range pins {
			s.pins[id] = s.pins[id] || unread
		}
		s.mu.Unlock()
	}
	return report, err
}

// collectWithoutReferences keeps the packs where chunks are, but not those whose blocks they refer to.
func collectWithoutReferences(ctx context.Context, r *Repository) (CollectReport, error) {
	report, err := r.Collect(ctx, CollectOptions{})
	if err != nil {
		return report, err
	}
	direct := r.pinned()
	for ref := range r.roots().images {
		head, err := r.imageHead(ctx, ref)
		if err != nil {
			return report, err
		}
		err = r.walk(ctx, head, func(number, count int64, zero bool, leaf *tree.Node) error {
			for at := number; !zero && at < number+count; at++ {
				places, err := r.idx.Lookup(nil, leaf.Children[at%tree.FanOut])
				if err != nil {
					return err
				}
				for _, place := range places {
					direct[place.Pack] = struct{}{}
				}
			}
			return nil
		}, nil)
		if err != nil {
			return report, err
		}
	}
	for _, p := range r.idx.Packs() {
		if _, ok := direct[p.ID]; !ok && p.Kind == pack.Data {
			report.PacksFreed++
			if err := errors.Join(r.forget([]seal.ID{p.ID}), r.b.Delete(ctx, pack.Name(p.ID))); err != nil {
				return report, err
			}
		}
	}
	return report, nil
}
