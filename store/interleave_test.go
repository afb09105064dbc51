package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

const (
	weaveChunks = 4
	weaveBlocks = weaveChunks * chunk.MinBytes / chunk.BlockBytes
)

// weaveProgram is what several actors do at the same time, in two lives of a process.
type weaveProgram struct {
	schedule uint64
	lives    [2]weaveLife
}

type weaveLife struct {
	actors [][]weaveStep
	crash  int // the power goes before this turn; an end comes before a large one
	loss   uint64
}

type weaveStep struct {
	kind   string
	choice uint64
}

var weaveKinds = []string{"backup", "backup", "incremental", "incremental", "abort", "prune", "prune", "collect", "collect", "verify", "restore", "sweep", "list"}

// drawWeave draws a program. draw answers a number from lo to hi.
func drawWeave(draw func(label string, lo, hi int) int) weaveProgram {
	p := weaveProgram{schedule: uint64(draw("schedule", 0, 1<<30))}
	for i := range p.lives {
		l := &p.lives[i]
		for range draw("actors", 1, 4) {
			var steps []weaveStep
			for range draw("steps", 1, 4) {
				steps = append(steps, weaveStep{weaveKinds[draw("kind", 0, len(weaveKinds)-1)], uint64(draw("choice", 0, 1<<30))})
			}
			l.actors = append(l.actors, steps)
		}
		l.crash, l.loss = draw("crash", 0, 400), uint64(draw("loss", 0, 1<<30))
	}
	return p
}

// weavePoint is a restore point as the model knows it.
type weavePoint struct {
	p      RestorePoint
	disk   []byte
	doomed bool // its removal was asked for
	gone   bool // and acknowledged
}

// weave is a repository under a scheduler, beside its model.
type weave struct {
	fs    *crashfs.FS
	key   Key
	plant weavePlant
	s     *sched
	r     *Repository

	mu       sync.Mutex
	points   []*weavePoint       // in the order of their acknowledgement
	inFlight map[*Session][]byte // sessions that are being published, and their disks
	down     bool
	errs     []error

	steps, turns, crashes, blocked, freed int
	trace                                 []string
}

type weavePlant struct {
	plant
	begun func(*Session) // called when a session has a parent
}

// weaveBlockData are the blocks that disks are made of: few, so that disks have much in common.
var weaveBlockData = sync.OnceValue(func() [][]byte {
	rnd := rand.New(rand.NewPCG(12, 12))
	blocks := make([][]byte, 14)
	for i := range blocks[1:] {
		blocks[i+1] = make([]byte, chunk.BlockBytes)
		fill(rnd, blocks[i+1])
	}
	blocks[0] = make([]byte, chunk.BlockBytes)
	return blocks
})

// weaveStart is the empty repository that each run begins with.
var weaveStart = sync.OnceValues(func() (*crashfs.Disk, error) {
	l := newLife(1, plant{}, "")
	err := l.record(func(*life) {})
	return l.fs.Disk().End(), err
})

// runWeave runs a program and answers what is wrong.
func runWeave(p weaveProgram, pl weavePlant) (w *weave, err error) {
	defer func() {
		if w != nil && w.r != nil {
			_ = w.r.Close() // nothing, unless it was broken off
		}
	}()
	defer caught(&err)
	start, err := weaveStart()
	check(err)
	w = &weave{fs: start.Crash(crashfs.Nothing, nil), key: Key{secret: [32]byte{1}}, plant: pl, inFlight: map[*Session][]byte{}}
	for i, l := range p.lives {
		w.s = newSched(p.schedule + uint64(i))
		w.open()
		w.live(l)
	}
	must := map[string][]byte{}
	for _, x := range w.points {
		if !x.doomed {
			must[x.p.ID] = x.disk
		}
	}
	v := verdict{fs: w.fs, key: w.key, plant: pl.plant, want: expect{must: must, created: true}, deep: true}
	return w, v.judge()
}

func (w *weave) open() {
	b, err := file.OpenFS(w.fs, "/disk/repo")
	check(err)
	w.r, err = Open(context.Background(), w.s.turns(b), w.key, Options{packBytes: 20 << 10, Workers: 1})
	check(err)
	w.reconcile()
}

// reconcile compares what is visible after an open with the model.
func (w *weave) reconcile() {
	ctx := context.Background()
	points, err := w.r.RestorePoints(ctx)
	check(err)
	known := map[string]*weavePoint{}
	for _, x := range w.points {
		known[x.p.ID] = x
	}
	var kept []*weavePoint
	for _, p := range points {
		x := known[p.ID]
		if x == nil { // its publish was under way when the power went
			for _, disk := range w.inFlight {
				if sameDisk(ctx, w.r, p, disk) == nil {
					x = &weavePoint{p: p, disk: disk}
				}
			}
		}
		if x == nil || x.gone {
			check(fmt.Errorf("restore point %s is there", p.ID))
		}
		delete(known, p.ID)
		x.doomed = false
		kept = append(kept, x)
		check(second(w.r.Verify(ctx, p.ID, nil)), sameDisk(ctx, w.r, p, x.disk))
	}
	for id, x := range known {
		if !x.doomed {
			check(fmt.Errorf("acknowledged restore point %s is lost", id))
		}
	}
	w.points, w.inFlight = kept, map[*Session][]byte{}
}

// live runs the actors of one life to their end or to a power cut.
func (w *weave) live(l weaveLife) {
	w.down = false
	var tasks []func(context.Context)
	for n, steps := range l.actors {
		tasks = append(tasks, func(ctx context.Context) {
			for _, step := range steps {
				if err := w.step(ctx, n, step); err != nil {
					w.report(fmt.Errorf("actor %d, %s: %w", n, step.kind, err))
				}
			}
		})
	}
	var after *crashfs.FS
	err := w.s.run(tasks, func(step int) bool {
		w.turns++
		if step < l.crash {
			return false
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.down = true
		w.crashes++
		after = w.fs.Disk().End().Crash(crashfs.Some, rand.New(rand.NewPCG(l.loss, 0)))
		w.fs.Fail = func(string, string) error { return syscall.EIO }
		return true
	})
	w.blocked += w.s.blocked
	w.trace = append(w.trace, w.s.trace...)
	check(err)
	closed := w.r.Close()
	if after != nil {
		w.fs = after
	} else {
		check(closed)
	}
	check(w.errs...)
}

// report keeps an error, unless the power was gone.
func (w *weave) report(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.down {
		w.errs = append(w.errs, err)
	}
}

// pick chooses a point that is not to be removed; for a prune it is doomed at once.
func (w *weave) pick(choice uint64, doom bool) *weavePoint {
	w.mu.Lock()
	defer w.mu.Unlock()
	var left []*weavePoint
	for _, x := range w.points {
		if !x.doomed {
			left = append(left, x)
		}
	}
	if len(left) == 0 {
		return nil
	}
	x := left[choice%uint64(len(left))]
	x.doomed = doom
	return x
}

// unlessDoomed forgives an error about a point whose removal was asked for meanwhile.
func (w *weave) unlessDoomed(x *weavePoint, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x.doomed && err != nil && (fault.KindOf(err) == fault.NotFound || fault.KindOf(err) == fault.Corrupt) {
		return nil
	}
	return err
}

func (w *weave) step(ctx context.Context, actor int, step weaveStep) error {
	w.mu.Lock()
	down := w.down
	w.steps++
	w.mu.Unlock()
	if down {
		return nil
	}
	switch step.kind {
	case "backup", "incremental", "abort":
		return w.backup(ctx, actor, step)
	case "prune":
		return w.prune(ctx, step.choice)
	case "collect":
		report, err := w.plant.runCollect(ctx, w.r)
		w.mu.Lock()
		w.freed += report.PacksFreed
		w.mu.Unlock()
		return err
	case "sweep":
		err := second(w.r.Sweep(ctx, SweepOptions{Budget: int64(step.choice % 3 * 50000)}))
		if err != nil && fault.KindOf(err) == fault.Conflict {
			return nil // another actor sweeps
		}
		return err
	case "list":
		return w.list(ctx)
	}
	x := w.pick(step.choice, false)
	if x == nil {
		return nil
	}
	if step.kind == "verify" {
		return w.unlessDoomed(x, second(w.r.Verify(ctx, x.p.ID, nil)))
	}
	return w.restore(ctx, x)
}

func (w *weave) prune(ctx context.Context, choice uint64) error {
	x := w.pick(choice, true)
	if x == nil {
		return nil
	}
	if err := w.r.Prune(ctx, x.p.ID); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	x.gone = !w.down
	return nil
}

// list sees every point that nobody has asked to remove.
func (w *weave) list(ctx context.Context) error {
	w.mu.Lock()
	before := append([]*weavePoint(nil), w.points...)
	w.mu.Unlock()
	points, err := w.r.RestorePoints(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, p := range points {
		there[p.ID] = true
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range before {
		if !x.doomed && !there[x.p.ID] {
			return fmt.Errorf("restore point %s is not listed", x.p.ID)
		}
	}
	return nil
}

// restore reads an image chunk by chunk. Once it is open, no prune and no collect may take anything from it.
func (w *weave) restore(ctx context.Context, x *weavePoint) error {
	i, err := w.r.OpenImage(ctx, x.p.Images[0].Ref)
	if err != nil {
		return w.unlessDoomed(x, err)
	}
	defer i.Close()
	got := make([]byte, len(x.disk))
	for at := 0; at < len(got); at += chunk.MinBytes {
		if _, err := i.read(ctx, got[at:at+chunk.MinBytes], int64(at)); err != nil {
			return err
		}
		w.s.yield(ctx, "restore")
	}
	if !bytes.Equal(got, x.disk) {
		return errors.New("read what was not written")
	}
	return nil
}

func (w *weave) backup(ctx context.Context, actor int, step weaveStep) (err error) {
	rnd := rand.New(rand.NewPCG(step.choice, 9))
	s, err := w.r.Begin(ctx, SessionOptions{Series: "vm" + strconv.Itoa(actor%2)})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil || step.kind == "abort" {
			err = errors.Join(err, s.Abort(ctx))
		}
	}()
	disk := make([]byte, weaveChunks*chunk.MinBytes)
	iw, disk, err := w.begin(ctx, s, step, disk)
	if err != nil {
		return err
	}
	blocks, changed := weaveBlockData(), map[int]bool{}
	for range rnd.IntN(6) + 1 {
		at := rnd.IntN(weaveBlocks) * chunk.BlockBytes
		copy(disk[at:], blocks[rnd.IntN(len(blocks))])
		changed[at/chunk.MinBytes] = true
	}
	for at := 0; at < len(disk); at += chunk.MinBytes {
		if iw.parent != nil && !changed[at/chunk.MinBytes] {
			continue // taken over from the parent, unread
		}
		if err := iw.Write(ctx, int64(at), disk[at:at+chunk.MinBytes]); err != nil {
			return err
		}
		w.s.yield(ctx, "source")
	}
	ref, err := iw.Finish(ctx)
	if err != nil || step.kind == "abort" {
		return err
	}
	return w.publish(ctx, s, ref, disk)
}

// begin starts an image, on a parent if the step says so and it can be had.
func (w *weave) begin(ctx context.Context, s *Session, step weaveStep, disk []byte) (*ImageWriter, []byte, error) {
	o := ImageOptions{SizeBytes: int64(len(disk))}
	if x := w.pick(step.choice/7, false); x != nil && step.kind == "incremental" {
		o.Parent = &x.p.Images[0].Ref
		iw, err := s.NewImage(ctx, o)
		if err == nil {
			if w.plant.begun != nil {
				w.plant.begun(s)
			}
			return iw, bytes.Clone(x.disk), nil
		}
		if err := w.unlessDoomed(x, err); err != nil {
			return nil, nil, err
		}
		o.Parent = nil
	}
	iw, err := s.NewImage(ctx, o)
	return iw, disk, err
}

func (w *weave) publish(ctx context.Context, s *Session, ref ImageRef, disk []byte) error {
	w.mu.Lock()
	if !w.down {
		w.inFlight[s] = disk
	}
	w.mu.Unlock()
	p, err := s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.down {
		return nil
	}
	delete(w.inFlight, s)
	if err == nil {
		w.points = append(w.points, &weavePoint{p: p, disk: disk})
	}
	return err
}

// weaveTotals sums up runs.
type weaveTotals struct{ runs, steps, turns, crashes, blocked, freed atomic.Int64 }

func (c *weaveTotals) add(w *weave) {
	c.runs.Add(1)
	c.steps.Add(int64(w.steps))
	c.turns.Add(int64(w.turns))
	c.crashes.Add(int64(w.crashes))
	c.blocked.Add(int64(w.blocked))
	c.freed.Add(int64(w.freed))
}

// TestCampaignInterleavings runs backups, prunes, collects, verifications, sweeps and restores in random order of their
// single steps, with power cuts, against a model.
func TestCampaignInterleavings(t *testing.T) {
	shards := runtime.GOMAXPROCS(0)
	checks(t, (effort(200, 3000, 60_000)+shards-1)/shards)
	var c weaveTotals
	t.Run("runs", func(t *testing.T) {
		for n := range shards {
			t.Run(strconv.Itoa(n), func(t *testing.T) {
				t.Parallel()
				rapid.Check(t, func(t *rapid.T) {
					p := drawWeave(func(label string, lo, hi int) int { return rapid.IntRange(lo, hi).Draw(t, label) })
					w, err := runWeave(p, weavePlant{})
					if err != nil {
						t.Fatal(err)
					}
					c.add(w)
				})
			})
		}
	})
	if c.freed.Load() == 0 || c.crashes.Load() == 0 || c.blocked.Load() == 0 {
		t.Error("nothing was freed, no power cut came, or nobody ever waited for a lock")
	}
	lost := 0
	if t.Failed() {
		lost = 1
	}
	summary(t, "interleavings", "injected", c.turns.Load(), "fired", c.turns.Load(), "runs", c.runs.Load(), "operations", c.steps.Load(),
		"power_cuts", c.crashes.Load(), "waits_for_locks", c.blocked.Load(), "packs_freed", c.freed.Load(), "lost", lost)
}

// weaveFromSeed draws a program without rapid.
func weaveFromSeed(seed uint64) weaveProgram {
	rnd := rand.New(rand.NewPCG(seed, 77))
	return drawWeave(func(_ string, lo, hi int) int { return lo + rnd.IntN(hi-lo+1) })
}

// TestInterleavingsReplay: the same program takes the same turns.
func TestInterleavingsReplay(t *testing.T) {
	const programs = 12
	same := 0
	for seed := range uint64(programs) {
		a, err := runWeave(weaveFromSeed(seed), weavePlant{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := runWeave(weaveFromSeed(seed), weavePlant{})
		if err != nil {
			t.Fatal(err)
		}
		if fmt.Sprint(a.trace) == fmt.Sprint(b.trace) {
			same++
		}
	}
	t.Logf("%d of %d programs took the very same turns twice", same, programs)
	if same < programs/2 {
		t.Errorf("only %d of %d", same, programs)
	}
}

// weaveBugs are bugs that only show when operations overlap.
func weaveBugs() []weavePlant {
	return []weavePlant{
		{plant: plant{name: "collect ignores pins", collect: collectWithoutPins}},
		{plant: plant{name: "collect does not look again after it has marked", collect: collectMarksOnce}},
		{plant: plant{name: "packs unlinked before the index forgets them", collect: collectForgetsLate}},
		{plant: plant{name: "parent of a session not kept"}, begun: func(s *Session) {
			s.mu.Lock()
			defer s.mu.Unlock()
			clear(s.images)
		}},
	}
}

// TestCampaignPlantedRaces shows that the campaign of interleavings can fail.
func TestCampaignPlantedRaces(t *testing.T) {
	if raceEnabled {
		t.Skip("the bugs are races of the model, not of memory")
	}
	bugs, found, limit := weaveBugs(), 0, uint64(4000)
	for _, bug := range bugs {
		seed := uint64(0)
		var wrong error
		for ; seed < limit && wrong == nil; seed++ {
			_, wrong = runWeave(weaveFromSeed(seed), bug)
		}
		if wrong == nil {
			t.Errorf("bug not found in %d runs: %s", limit, bug.name)
			continue
		}
		found++
		t.Logf("%-58s found after %4d runs: %.200v", bug.name, seed, wrong)
	}
	summary(t, "planted-bugs-interleavings", "injected", len(bugs), "fired", found, "missed", len(bugs)-found)
}

// collectMarksOnce chooses from what it knew before it marked.
func collectMarksOnce(ctx context.Context, r *Repository) (report CollectReport, err error) {
	r.collecting.Lock()
	defer r.collecting.Unlock()
	pinned := r.pinned()
	free, err := unmarkedPacks(ctx, r, pinned)
	if err != nil {
		return report, err
	}
	if err := r.forget(free); err != nil {
		return report, err
	}
	return unlinkPacks(ctx, r, free)
}

// collectForgetsLate chooses well, but sessions still find in the index what it has unlinked.
func collectForgetsLate(ctx context.Context, r *Repository) (report CollectReport, err error) {
	r.collecting.Lock()
	defer r.collecting.Unlock()
	if _, err := unmarkedPacks(ctx, r, nil); err != nil {
		return report, err
	}
	free, err := unmarkedPacks(ctx, r, r.pinned())
	if err != nil {
		return report, err
	}
	report, err = unlinkPacks(ctx, r, free)
	return report, errors.Join(err, r.forget(free))
}

func unmarkedPacks(ctx context.Context, r *Repository, pinned map[seal.ID]struct{}) (free []seal.ID, err error) {
	if err := r.refresh(ctx); err != nil {
		return nil, err
	}
	m := newMarker(r)
	if err := m.mark(ctx, r.roots()); err != nil {
		return nil, err
	}
	for _, p := range r.idx.Packs() {
		_, marked := m.packs[p.ID]
		_, waits := pinned[p.ID]
		if !marked && !waits {
			free = append(free, p.ID)
		}
	}
	return free, nil
}

func unlinkPacks(ctx context.Context, r *Repository, free []seal.ID) (report CollectReport, err error) {
	for _, id := range free {
		if err := r.b.Delete(ctx, pack.Name(id)); err != nil {
			return report, err
		}
		report.PacksFreed++
	}
	return report, r.idx.Sweep()
}
