package store

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// crashCampaign cuts recorded lives off after every operation, in several ways each, and judges what is left.
type crashCampaign struct {
	scratch  string // a directory for indexes that are kept
	variants int    // random losses at each cut
	target   int64  // states after which no further cut is begun
	every    int    // cuts that are looked at: one in so many

	lives, cuts, operations, deep, twice, indexed atomic.Int64

	states   atomic.Int64 // different states that were judged
	stop     atomic.Bool
	mu       sync.Mutex
	wrong    error // of the lowest state that was wrong
	wrongAt  int64
	kept     atomic.Int64
	inFlight sync.WaitGroup
	slots    chan struct{}
	progress func(states int64) // told at each tenth, so that what is cut off counts as far as it came
}

func newCrashCampaign(scratch string, variants int, target int64) *crashCampaign {
	return &crashCampaign{
		scratch: scratch, variants: variants, target: target, every: 1, slots: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
}

// run lives and cuts until there are enough states or one is wrong.
func (c *crashCampaign) run(seed uint64, works []crashWork, p plant) {
	defer c.inFlight.Wait()
	tenth := c.target / 10
	for round := uint64(0); ; round++ {
		for _, w := range works {
			if c.over() {
				return
			}
			if n := c.states.Load(); c.progress != nil && n >= tenth {
				c.progress(n)
				tenth += c.target / 10
			}
			if err := c.cut(seed+round, w, p); err != nil {
				c.failed(c.states.Load(), fmt.Errorf("%s with seed %d, not cut at all: %w", w.name, seed+round, err))
				return
			}
		}
	}
}

func (c *crashCampaign) over() bool { return c.stop.Load() || c.states.Load() >= c.target }

func (c *crashCampaign) failed(at int64, err error) {
	c.stop.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.wrong == nil || at < c.wrongAt {
		c.wrong, c.wrongAt = err, at
	}
}

// cut records one life and cuts it.
func (c *crashCampaign) cut(seed uint64, work crashWork, p plant) error {
	scratch, err := os.MkdirTemp(c.scratch, "life")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	defer c.inFlight.Wait()
	l := newLife(seed, p, scratch)
	if err := l.record(work.run); err != nil {
		return err
	}
	c.lives.Add(1)
	c.operations.Add(int64(l.fs.Ops()))
	names := topNames(l.fs)
	seen := map[[2]uint64]bool{}
	for disk := l.fs.Disk(); ; {
		want := expectAt(l.events, disk.At())
		c.cuts.Add(1)
		for n := range 2 + c.variants {
			if c.over() || (c.every > 1 && disk.At()%c.every != 0) {
				break
			}
			state := disk.Crash(crashfs.Loss(min(n, 2)), lossAt(seed, disk.At(), n))
			key := [2]uint64{state.State(), uint64(want.told)}
			if seen[key] {
				continue
			}
			seen[key] = true
			number := c.states.Add(1)
			v := verdict{fs: state, plant: p, key: l.first, want: want, deep: number%4 == 0, names: names, from: l.copied}
			where := fmt.Sprintf("%s with seed %d cut after operation %d (%s), loss %d", work.name, seed, disk.At(), disk.Last(3), n)
			var again *crashfs.FS
			if number%400 == 0 && want.created && !want.rotten {
				again = disk.Crash(crashfs.Loss(min(n, 2)), lossAt(seed, disk.At(), n))
			}
			c.start(func() error { return c.look(v, number, l, again) }, number, where)
		}
		if !disk.Step() || c.over() {
			return nil
		}
	}
}

func lossAt(seed uint64, op, n int) *rand.Rand {
	return rand.New(rand.NewPCG(seed, uint64(op)<<16|uint64(n)))
}

// start does a piece of work as soon as there is a processor for it.
func (c *crashCampaign) start(f func() error, number int64, where string) {
	c.slots <- struct{}{}
	c.inFlight.Go(func() {
		defer func() { <-c.slots }()
		if err := f(); err != nil {
			c.failed(number, fmt.Errorf("state %d: %s: %w", number, where, err))
		}
	})
}

// look judges a state, with one of the indexes that were kept or without, and cuts its recovery off again.
func (c *crashCampaign) look(v verdict, number int64, l *life, again *crashfs.FS) error {
	if v.deep {
		c.deep.Add(1)
	}
	if number%8 == 1 && len(l.indexes) > 0 {
		from := l.indexes[int(number/8)%len(l.indexes)]
		v.index = filepath.Join(filepath.Dir(from.dir), fmt.Sprintf("copy-%d", c.kept.Add(1)))
		if err := os.CopyFS(v.index, os.DirFS(from.dir)); err != nil {
			return err
		}
		defer os.RemoveAll(v.index)
		c.indexed.Add(1)
	}
	if err := v.judge(); err != nil {
		return err
	}
	if again == nil {
		return nil
	}
	v.fs, v.index, v.deep = again, "", false
	return c.secondCrash(v, number)
}

// secondCrash records what the next process does with a crash state, and cuts that off too.
func (c *crashCampaign) secondCrash(v verdict, number int64) (err error) {
	if err := v.unlock(context.Background()); err != nil {
		return err
	}
	l := &life{fs: v.fs, plant: v.plant, key: v.key, rnd: rand.New(rand.NewPCG(uint64(number), 2))}
	err = func() (err error) {
		defer l.end()
		defer caught(&err)
		l.open()
		l.backup(l.disk(), nil)
		l.collect()
		l.close()
		return nil
	}()
	if err != nil {
		return fmt.Errorf("life after the crash: %w", err)
	}
	seen := map[[2]uint64]bool{}
	for disk := v.fs.Disk(); ; {
		want := expectAt(l.events, disk.At())
		want.created = true
		for id, p := range v.want.must {
			want.must[id] = p
		}
		for n := range 3 {
			state := disk.Crash(crashfs.Loss(n), lossAt(uint64(number), disk.At(), n))
			key := [2]uint64{state.State(), uint64(want.told)}
			if seen[key] {
				continue
			}
			seen[key] = true
			c.states.Add(1)
			c.twice.Add(1)
			second := verdict{fs: state, plant: v.plant, key: v.key, want: want, deep: n == 2 && disk.At()%8 == 0, names: v.names}
			if err := second.judge(); err != nil {
				return fmt.Errorf("cut again after operation %d (%s), loss %d: %w", disk.At(), disk.Last(3), n, err)
			}
		}
		if !disk.Step() || c.stop.Load() {
			return nil
		}
	}
}

func TestCampaignCrash(t *testing.T) {
	c := newCrashCampaign(memoryDir(t), 6, int64(effort(2500, 20_000, 1_000_000)))
	c.every = effort(4, 1, 1)
	if raceEnabled {
		c.every = 31
	}
	c.progress = func(n int64) { t.Logf("%d of %d states, none wrong", n, c.target) }
	c.run(seeded.Seed(t), crashWorks(), plant{})
	if c.wrong != nil {
		t.Errorf("%v", c.wrong)
	}
	if c.deep.Load() == 0 || c.indexed.Load() == 0 || (c.twice.Load() == 0 && !raceEnabled) {
		t.Errorf("%d states lived on, %d had an index, %d crashed twice", c.deep.Load(), c.indexed.Load(), c.twice.Load())
	}
	lost := 0
	if c.wrong != nil {
		lost = 1
	}
	summary(t, "crash", "injected", c.states.Load(), "fired", c.states.Load(), "lives", c.lives.Load(), "operations", c.operations.Load(),
		"cuts", c.cuts.Load(), "crashed_twice", c.twice.Load(), "lived_on", c.deep.Load(), "index_kept", c.indexed.Load(), "lost", lost)
}

// memoryDir is a temporary directory, in memory where there is such.
func memoryDir(t *testing.T) string {
	t.Helper()
	if dir, err := os.MkdirTemp("/dev/shm", "cairn-test"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}
