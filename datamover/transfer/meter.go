package transfer

import (
	"cmp"
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// meter counts what a transfer does and tells it.
type meter struct {
	total     int64
	writing   Bottleneck // what slow writing is called
	points    [2]string  // fault points: after the first bytes, and about the middle
	options   Options
	verifying bool
	streams   int // workers of a source whose reading is not measured: what is neither waiting nor writing
	begin     time.Time

	bytesRead, bytesSkipped atomic.Int64 // by this transfer itself; what is kept of one before is skipped by it
	bytesKept               atomic.Int64
	waiting, source, sink   atomic.Int64 // nanoseconds, summed over workers
	start, middle           sync.Once
}

func newMeter(total int64, writing Bottleneck, points [2]string, o Options) *meter {
	return &meter{total: total, writing: writing, points: points, options: o, begin: time.Now()}
}

func (m *meter) elapsed() time.Duration { return time.Since(m.begin) }

func (m *meter) started() {
	m.start.Do(func() { point(m.points[0]) })
}

func point(name string) {
	if name != "" {
		fault.Point(name)
	}
}

// smallDisk is below what a disk counts as small: its middle is after 1 MiB.
const smallDisk = 256 << 20

func (m *meter) halfway() {
	read := m.bytesRead.Load()
	if done := read + m.bytesSkipped.Load(); read > 0 && done >= m.total/2 || m.total < smallDisk && read >= 1<<20 {
		m.middle.Do(func() { point(m.points[1]) })
	}
}

func (m *meter) skipped(n int64) {
	m.bytesSkipped.Add(n)
	m.halfway()
}

// kept counts what a transfer before has read, before it is skipped.
func (m *meter) kept(n int64) { m.bytesKept.Add(n) }

func (m *meter) copied(n int64, waiting, source, sink time.Duration) {
	m.bytesRead.Add(n)
	m.waiting.Add(int64(waiting))
	m.source.Add(int64(source))
	m.sink.Add(int64(sink))
	m.halfway()
}

// run runs a pipeline and reports its progress meanwhile.
func (m *meter) run(ctx context.Context, p interface {
	run(ctx context.Context) error
}) (Result, error) {
	stop := m.report()
	err := p.run(ctx)
	if err == nil { // a transfer of next to nothing passes the points, too
		m.started()
		m.middle.Do(func() { point(m.points[1]) })
	}
	stop()
	kept := m.bytesKept.Load()
	return Result{
		BytesTotal: m.total, BytesRead: m.bytesRead.Load() + kept, BytesSkipped: m.bytesSkipped.Load() - kept, BytesKept: kept, Elapsed: m.elapsed(),
	}, err
}

// report calls Options.Progress until the function it returns is called; then once more.
func (m *meter) report() (stop func()) {
	if m.options.Progress == nil {
		return func() {}
	}
	every := m.options.ProgressEvery
	if every <= 0 {
		every = 500 * time.Millisecond
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(every)
		defer t.Stop()
		last := m.sample()
		var rate float64
		var where Bottleneck // stays while no segment is finished
		tell := func(now sample) {
			p := m.progress(rate, now)
			where = cmp.Or(m.bottleneck(last, now), where)
			p.Bottleneck = where
			m.options.Progress(p)
		}
		for {
			select {
			case <-t.C:
			case <-done:
				tell(m.sample())
				return
			}
			now := m.sample()
			r := float64(now.read-last.read) / max(now.at.Sub(last.at).Seconds(), 1e-9)
			if rate == 0 {
				rate = r
			}
			rate += (r - rate) / 4 // smoothed over about four reports
			tell(now)
			last = now
		}
	})
	return func() {
		close(done)
		wg.Wait()
	}
}

// sample is the state of all counters at one time.
type sample struct {
	at                    time.Time
	read, skipped, kept   int64
	waiting, source, sink int64
	cpu                   time.Duration
}

func (m *meter) sample() sample {
	s := sample{
		at: time.Now(), kept: m.bytesKept.Load(), read: m.bytesRead.Load(), skipped: m.bytesSkipped.Load(), waiting: m.waiting.Load(), source: m.source.Load(),
		sink: m.sink.Load(),
	}
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) == nil {
		s.cpu = time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return s
}

func (m *meter) progress(rate float64, now sample) Progress {
	kept := min(now.kept, now.skipped) // it is counted before it is skipped
	p := Progress{
		BytesTotal: m.total, BytesRead: now.read + kept, BytesSkipped: now.skipped - kept, BytesScanned: now.read + now.skipped, Rate: int64(rate),
		Verifying: m.verifying,
	}
	if spent := now.at.Sub(m.begin); p.BytesScanned > 0 {
		left := float64(p.BytesTotal-p.BytesScanned) / float64(p.BytesScanned)
		p.ETA = time.Duration(left * float64(spent)).Round(time.Second)
	}
	return p
}

// bottleneck names what the workers spent most of their time with between two samples.
func (m *meter) bottleneck(last, now sample) Bottleneck {
	waiting, source, sink := now.waiting-last.waiting, now.source-last.source, now.sink-last.sink
	if m.streams > 0 && waiting+sink > 0 {
		source = max(0, int64(now.at.Sub(last.at))*int64(m.streams)-waiting-sink)
	}
	cores := float64(now.at.Sub(last.at)) * float64(runtime.GOMAXPROCS(0))
	switch {
	case waiting+source+sink == 0:
		return ""
	case waiting > source && waiting > sink:
		return BottleneckLimit
	case cores > 0 && float64(now.cpu-last.cpu) > 0.85*cores:
		return BottleneckCPU
	case source >= sink:
		return BottleneckSource
	}
	return m.writing
}
