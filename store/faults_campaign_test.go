package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// ioCase is one fault: from the nth call of the file system on, or there only, calls fail with cause.
type ioCase struct {
	n       int
	op      string // what the nth call does
	cause   error
	forever bool
}

func (c ioCase) String() string {
	how := "once"
	if c.forever {
		how = "for ever"
	}
	return fmt.Sprintf("%v %s at call %d (%s)", c.cause, how, c.n, c.op)
}

// errShort is a write that the disk takes half of.
var errShort = fmt.Errorf("%w: %w", io.ErrShortWrite, syscall.ENOSPC)

// errSync fails calls that make durable, and no others.
var errSync = fmt.Errorf("fsync: %w", syscall.EIO)

// hits reports whether a call that comes after the nth fails too.
func (c ioCase) hits(op string) bool {
	switch {
	case !c.forever:
		return false
	case errors.Is(c.cause, errShort):
		return op == "write"
	case errors.Is(c.cause, errSync):
		return op == "sync" || op == "syncdir"
	case errors.Is(c.cause, syscall.ENOSPC):
		return changes(op) && op != "remove"
	case errors.Is(c.cause, syscall.EROFS):
		return changes(op)
	case errors.Is(c.cause, syscall.EMFILE):
		return op == "open" || op == "create" || op == "readdir" || op == "syncdir"
	}
	return true
}

func changes(op string) bool {
	return op != "read" && op != "open" && op != "stat" && op != "readdir"
}

// ioCases are all faults that the calls of a run can have.
func ioCases(ops []string) []ioCase {
	var out []ioCase
	for i, op := range ops {
		causes := []error{syscall.EIO}
		if changes(op) {
			causes = append(causes, syscall.ENOSPC, syscall.EROFS)
		}
		switch op {
		case "write":
			causes = append(causes, errShort)
		case "sync", "syncdir":
			causes = append(causes, errSync)
		}
		if op == "open" || op == "create" || op == "readdir" || op == "syncdir" {
			causes = append(causes, syscall.EMFILE)
		}
		for _, cause := range causes {
			out = append(out, ioCase{i + 1, op, cause, false}, ioCase{i + 1, op, cause, true})
		}
	}
	return out
}

// ioBase is a repository that every case begins with.
type ioBase struct {
	disk        *crashfs.Disk
	key         Key
	old, doomed RestorePoint
	content     []byte
	plant       plant
}

func newIOBase(seed uint64, p plant) (*ioBase, error) {
	base := &ioBase{plant: p}
	l := newLife(seed, plant{}, "")
	err := l.record(func(l *life) {
		l.open()
		base.content = l.disk()
		base.old = l.backup(base.content, nil)
		base.doomed = l.backup(l.disk(), nil)
		l.close()
	})
	base.disk, base.key = l.fs.Disk().End(), l.key
	return base, err
}

// ioRun is one case at work.
type ioRun struct {
	*ioBase
	fs    *crashfs.FS
	b     blob.Store
	r     *Repository
	must  map[string][]byte
	fired atomic.Int64
	errs  []error
	wrong error // what was found on the way
}

func (base *ioBase) start() (run *ioRun, err error) {
	run = &ioRun{ioBase: base, fs: base.disk.Crash(crashfs.Nothing, nil), must: map[string][]byte{base.old.ID: base.content}}
	if run.b, err = base.plant.open(run.fs, false); err != nil {
		return nil, err
	}
	run.r, err = Open(context.Background(), run.b, base.key, Options{packBytes: crashPack, Workers: 1})
	return run, err
}

// work does one of everything; each step may fail and the next is tried nevertheless.
func (run *ioRun) work(seed uint64) {
	ctx := context.Background()
	l := newLife(seed, plant{}, "")
	backup := func(disk []byte, parent *ImageRef) error {
		p, err := abortingBackup(ctx, run.r, disk, parent)
		if err == nil {
			run.must[p.ID] = disk
		}
		return err
	}
	steps := []func() error{
		func() error { return backup(l.disk(), nil) },
		func() error { return backup(l.touched(run.content), &run.old.Images[0].Ref) },
		func() error { return second(run.r.Verify(ctx, run.old.ID, nil)) },
		func() error { return sameDisk(ctx, run.r, run.old, run.content) },
		func() error { return second(run.r.Sweep(ctx, SweepOptions{})) },
		func() error { return run.reopen(ctx) },
		func() error { return backup(l.disk(), nil) },
		func() error { return aborted(ctx, run.r, l.disk()) },
		func() error { return run.r.Prune(ctx, run.doomed.ID) },
		func() error { return second(run.r.Collect(ctx, CollectOptions{})) },
		func() error { return second(run.r.Check(ctx)) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			run.errs = append(run.errs, err)
		}
		if run.r == nil { // it does not open under the fault
			return
		}
	}
}

// reopen is what a restart of the program does.
func (run *ioRun) reopen(ctx context.Context) error {
	if run.fired.Load() > 0 { // a take-over makes durable what is there, so the power has to go before it, too
		want := expect{must: run.must, created: true}
		cut := verdict{fs: run.fs.Disk().End().Crash(crashfs.Everything, nil), plant: run.plant, key: run.key, want: want}
		if err := cut.judge(); err != nil {
			run.wrong = fmt.Errorf("after a power cut before the restart: %w", err)
		}
	}
	err := run.r.Close()
	run.r = nil
	if err != nil {
		return err
	}
	run.r, err = Open(ctx, run.b, run.key, Options{packBytes: crashPack, Workers: 1})
	return err
}

// aborted is a session that is given up after its packs are finished.
func aborted(ctx context.Context, r *Repository, disk []byte) error {
	s, err := r.Begin(ctx, SessionOptions{Series: "other"})
	if err != nil {
		return err
	}
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk))})
	if err == nil {
		err = w.Write(ctx, 0, disk)
	}
	if err == nil {
		_, err = w.Finish(ctx)
	}
	return errors.Join(err, s.Abort(ctx))
}

// abortingBackup cleans up after itself if it fails.
func abortingBackup(ctx context.Context, r *Repository, disk []byte, parent *ImageRef) (p RestorePoint, err error) {
	s, err := r.Begin(ctx, SessionOptions{Series: "vm"})
	if err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			_ = s.Abort(ctx) // under the fault it may fail too; what it leaves is looked for later
		}
	}()
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
	if err != nil {
		return p, err
	}
	if err := w.Write(ctx, 0, disk); err != nil {
		return p, err
	}
	ref, err := w.Finish(ctx)
	if err != nil {
		return p, err
	}
	return s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}, Documents: []Document{{Name: "d", Data: disk[:9]}}})
}

// plainWords answers what an error lacks for the person who reads it.
func plainWords(err error) error {
	if _, ok := errors.AsType[*fault.Error](err); !ok {
		return fmt.Errorf("an error without a kind: %w", err)
	}
	if meaning, advice := fault.Explanation(err); meaning == "" || advice == "" {
		return fmt.Errorf("an error without meaning or advice: %w", err)
	}
	return nil
}

// try injects a fault and answers what went wrong beyond it. failed is how many steps failed.
func (base *ioBase) try(c ioCase) (fired int64, failed int, err error) {
	run, err := base.start()
	if err != nil {
		return 0, 0, err
	}
	var mu sync.Mutex
	call := 0
	run.fs.Fail = func(op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		if call++; call == c.n || (call > c.n && c.hits(op)) {
			run.fired.Add(1)
			return c.cause
		}
		return nil
	}
	run.work(7)
	run.fs.Fail = nil
	fired, failed = run.fired.Load(), len(run.errs)
	err = errors.Join(run.wrong, run.aftermath())
	for _, e := range run.errs {
		err = errors.Join(err, plainWords(e))
	}
	return fired, failed, err
}

// aftermath judges the repository as it is, after a power cut, and after a restart.
func (run *ioRun) aftermath() (err error) {
	defer caught(&err)
	defer func() {
		if run.r != nil {
			_ = run.r.Close() // if not below
		}
	}()
	ctx := context.Background()
	want := expect{must: run.must, created: true}
	now := verdict{fs: run.fs, key: run.key, want: want}
	if run.r == nil { // the same program tries again
		run.r, err = Open(ctx, run.b, run.key, Options{packBytes: crashPack, Workers: 1})
		check(err)
	}
	if err := now.holds(ctx, run.r); err != nil {
		return fmt.Errorf("as it is: %w", err)
	}
	cut := verdict{fs: run.fs.Disk().End().Crash(crashfs.Everything, nil), plant: run.plant, key: run.key, want: want, deep: true}
	if err := cut.judge(); err != nil {
		return fmt.Errorf("after a power cut: %w", err)
	}
	if err := errors.Join(run.r.Close(), run.b.Close()); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	now.deep, now.plant = true, run.plant
	if err := now.judge(); err != nil {
		return fmt.Errorf("after a restart: %w", err)
	}
	return nil
}

// ioCampaign tries cases, one in so many, and answers the first that went wrong.
type ioCampaign struct {
	cases, fired, failed atomic.Int64
	calls                int
	mu                   sync.Mutex
	wrong                []string
	unfired              []ioCase
	stopAtWrong          bool
	only                 string // calls of one kind; "": of all
}

func (c *ioCampaign) run(base *ioBase, every int) error {
	counting, err := base.start()
	if err != nil {
		return err
	}
	var ops []string
	counting.fs.Fail = func(op, _ string) error { ops = append(ops, op); return nil }
	counting.work(7)
	counting.fs.Fail = nil
	if err := errors.Join(append(counting.errs, counting.r.Close(), counting.b.Close())...); err != nil {
		return fmt.Errorf("without a fault: %w", err)
	}
	c.calls = len(ops)
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, cs := range ioCases(ops) {
		if i%every != 0 || c.over() || (c.only != "" && c.only != cs.op) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			c.one(base, cs)
		})
	}
	wg.Wait()
	return nil
}

func (c *ioCampaign) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.wrong) > 20 || (c.stopAtWrong && len(c.wrong) > 0)
}

func (c *ioCampaign) one(base *ioBase, cs ioCase) {
	fired, failed, err := base.try(cs)
	c.cases.Add(1)
	c.fired.Add(fired)
	if failed > 0 {
		c.failed.Add(1)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if fired == 0 {
		c.unfired = append(c.unfired, cs)
	}
	if err != nil {
		c.wrong = append(c.wrong, fmt.Sprintf("%v: %v", cs, err))
	}
}

// TestCampaignIOErrors lets each call of a backup, an incremental, a verification, a restore, a prune, a collect and a
// check fail, in all ways it can, once and for ever.
func TestCampaignIOErrors(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	base, err := newIOBase(seeded.Seed(t), plant{})
	if err != nil {
		t.Fatal(err)
	}
	var c ioCampaign
	every := effort(9, 1, 1)
	if raceEnabled {
		every = 60
	}
	if err := c.run(base, every); err != nil {
		t.Fatal(err)
	}
	for _, wrong := range c.wrong {
		t.Error(wrong)
	}
	// A run may have a few calls fewer than the one that was counted: ids are random, and so is what shares a folder.
	if int64(50*len(c.unfired)) > c.cases.Load() {
		t.Errorf("faults that never came: %v", c.unfired)
	}
	if 2*c.failed.Load() < c.cases.Load() {
		t.Errorf("only %d of %d faults made a step fail", c.failed.Load(), c.cases.Load())
	}
	summary(t, "io-errors", "calls", c.calls, "injected", c.cases.Load(), "fired", c.cases.Load()-int64(len(c.unfired)),
		"calls_failed", c.fired.Load(), "runs_with_failed_steps", c.failed.Load(), "lost", len(c.wrong))
}

// ioBug is a bug, and the kind of call whose faults it deals with.
type ioBug struct {
	plant
	op string
}

// ioBugs are ways to deal with errors that programs like this have had.
func ioBugs() []ioBug {
	seam := func(wrap func(file.File) file.File) func(file.FS) file.FS {
		return func(f file.FS) file.FS { return fileSeam{f, wrap} }
	}
	return []ioBug{
		{plant{name: "error of fsync ignored", fs: seam(deafFile)}, "sync"},
		{plant{name: "fsync tried again after it failed", fs: seam(stubbornFile)}, "sync"},
		{plant{name: "short write taken for a whole one", fs: seam(hastyFile)}, "write"},
		{plant{name: "failed fsync of a directory ignored", fs: func(f file.FS) file.FS { return deafDirs{f} }}, "syncdir"},
		{plant{name: "failed listing taken for an empty folder", store: func(b blob.Store, _ file.FS) blob.Store { return emptyLists{b} }}, "readdir"},
		{plant{name: "error without a kind", store: func(b blob.Store, _ file.FS) blob.Store { return bareErrors{b} }}, "remove"},
	}
}

// TestCampaignPlantedIOBugs shows that the campaign of I/O errors can fail.
func TestCampaignPlantedIOBugs(t *testing.T) {
	if raceEnabled {
		t.Skip("one goroutine a case; run without -race")
	}
	bugs, found, seed := ioBugs(), 0, seeded.Seed(t)
	for _, bug := range bugs {
		c := ioCampaign{stopAtWrong: true, only: bug.op}
		for try := uint64(0); try < 4 && len(c.wrong) == 0; try++ { // names of packs are random, and which listing matters depends on them
			base, err := newIOBase(seed+try, bug.plant)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.run(base, 1); err != nil {
				t.Fatal(err)
			}
		}
		if len(c.wrong) == 0 {
			t.Errorf("bug not found in %d cases: %s", c.cases.Load(), bug.name)
			continue
		}
		found++
		t.Logf("%-58s found after %4d cases: %.200s", bug.name, c.cases.Load(), c.wrong[0])
	}
	summary(t, "planted-bugs-io", "injected", len(bugs), "fired", found, "missed", len(bugs)-found)
}

// fileSeam changes files that are written.
type fileSeam struct {
	file.FS
	wrap func(file.File) file.File
}

func (s fileSeam) Create(name string) (file.File, error) {
	f, err := s.FS.Create(name)
	if err != nil {
		return nil, err
	}
	return s.wrap(f), nil
}

type changedFile struct {
	file.File
	sync  func() error
	write func([]byte) (int, error)
}

func (c changedFile) Sync() error                 { return c.sync() }
func (c changedFile) Write(p []byte) (int, error) { return c.write(p) }

func deafFile(f file.File) file.File {
	return changedFile{f, func() error { _ = f.Sync(); return nil }, f.Write}
}

func stubbornFile(f file.File) file.File {
	return changedFile{f, func() error {
		if f.Sync() == nil {
			return nil
		}
		return f.Sync()
	}, f.Write}
}

func hastyFile(f file.File) file.File {
	return changedFile{f, f.Sync, func(p []byte) (int, error) {
		n, err := f.Write(p)
		if errors.Is(err, io.ErrShortWrite) {
			return len(p), nil
		}
		return n, err
	}}
}

// deafDirs does not hear that a directory's fsync failed.
type deafDirs struct{ file.FS }

func (d deafDirs) SyncDir(name string) error {
	_ = d.FS.SyncDir(name)
	return nil
}

// emptyLists ends a listing that fails as if it were complete.
type emptyLists struct{ blob.Store }

func (e emptyLists) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for info, err := range e.Store.List(ctx, prefix) {
			if err != nil || !yield(info, nil) {
				return
			}
		}
	}
}

// bareErrors forgets the kinds of errors.
type bareErrors struct{ blob.Store }

func (e bareErrors) Delete(ctx context.Context, name string) error {
	if err := e.Store.Delete(ctx, name); err != nil {
		return errors.New(strings.ToUpper(err.Error()))
	}
	return nil
}

// TestCollectWhenARenamesFsyncHasNoRoom: the pack has its new name then, and is not to be missed at the old one.
func TestCollectWhenARenamesFsyncHasNoRoom(t *testing.T) {
	base, err := newIOBase(3, plant{})
	if err != nil {
		t.Fatal(err)
	}
	run, err := base.start()
	if err != nil {
		t.Fatal(err)
	}
	defer run.r.Close()
	if err := run.r.Prune(t.Context(), run.doomed.ID); err != nil {
		t.Fatal(err)
	}
	fired := 0
	run.fs.Fail = func(op, name string) error {
		if op == "syncdir" && strings.HasSuffix(name, "/trash") {
			fired++
			return syscall.ENOSPC
		}
		return nil
	}
	report, err := run.r.Collect(t.Context(), CollectOptions{})
	run.fs.Fail = nil
	if fired == 0 {
		t.Error("the fault did not fire")
	}
	if err != nil && !full(err) { // the unlinking in trash has the same fault
		t.Errorf("Collect = %+v, %v", report, err)
	}
	if report, err = run.r.Collect(t.Context(), CollectOptions{}); err != nil {
		t.Errorf("second Collect = %+v, %v", report, err)
	}
	if left := run.fs.Names("/disk/repo/trash"); len(left) > 0 {
		t.Errorf("left in trash: %v", left)
	}
	if _, err := run.r.Verify(t.Context(), run.old.ID, nil); err != nil {
		t.Error(err)
	}
}
