package transfer_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/datamover/transfer"
	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	mib   = 1 << 20
	chunk = 64 << 10
)

// plane is an image in memory: sink and source at once. It checks the contract that the store's image writer has.
type plane struct {
	data []byte

	mu     sync.Mutex
	filled map[int64]bool // chunk -> written (true) or zeroed (false)
	fail   error
	wait   func(ctx context.Context)
	had    []store.Range // of a transfer before
}

func (p *plane) Durable(context.Context) iter.Seq2[store.Range, error] {
	return func(yield func(store.Range, error) bool) {
		for _, r := range p.had {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func newPlane(size int64) *plane { return &plane{data: make([]byte, size), filled: map[int64]bool{}} }

func (p *plane) ChunkBytes() int { return chunk }
func (p *plane) FrameBytes() int { return chunk }
func (p *plane) Size() int64     { return int64(len(p.data)) }

func (p *plane) note(off, n int64, data bool) error {
	end := off + n
	if off%chunk != 0 || end%chunk != 0 && end != p.Size() || end > p.Size() || n <= 0 {
		return fault.New(fault.Internal, "test sink", "", "%d bytes at %d are not whole chunks", n, off)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := off / chunk; c < (end+chunk-1)/chunk; c++ {
		if _, twice := p.filled[c]; twice {
			return fault.New(fault.Internal, "test sink", "", "chunk %d came twice", c)
		}
		p.filled[c] = data
	}
	return p.fail
}

func (p *plane) Write(ctx context.Context, off int64, b []byte) error {
	if p.wait != nil {
		p.wait(ctx)
	}
	if err := p.note(off, int64(len(b)), true); err != nil {
		return err
	}
	copy(p.data[off:], b)
	return nil
}

func (p *plane) Zero(_ context.Context, off, n int64) error {
	if err := p.note(off, n, false); err != nil {
		return err
	}
	clear(p.data[off : off+n])
	return nil
}

func (p *plane) ReadAt(b []byte, off int64) (int, error) {
	if p.fail != nil {
		return 0, p.fail
	}
	return bytes.NewReader(p.data).ReadAt(b, off)
}

// Stream gives the chunks that are not zeros, in no order.
func (p *plane) Stream(ctx context.Context, workers int, fn func(off int64, b []byte) error) error {
	g, inner := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for e, err := range p.Extents(ctx) {
		if err != nil || inner.Err() != nil {
			break
		}
		if e.Zero {
			continue
		}
		g.Go(func() error {
			b := make([]byte, e.Length)
			if _, err := p.ReadAt(b, e.Offset); err != nil && err != io.EOF {
				return err
			}
			return fn(e.Offset, b)
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// Extents finds zero chunks.
func (p *plane) Extents(context.Context) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		zeros := make([]byte, chunk)
		for off := int64(0); off < p.Size(); off += chunk {
			n := min(chunk, p.Size()-off)
			if !yield(store.Extent{Offset: off, Length: n, Zero: bytes.Equal(p.data[off:off+n], zeros[:n])}, nil) {
				return
			}
		}
	}
}

func open(t testing.TB, network, address, name, dirty string) hypervisors.FrozenDisk {
	t.Helper()
	d, err := nbdtransport.OpenSource(t.Context(), hypervisors.Export{
		Transport: hypervisors.TransportNBD, Network: network, Address: address, Name: name, DirtyContext: dirty,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func nbdcopy(t testing.TB, p *nbdtest.Process, export string) []byte {
	t.Helper()
	f := filepath.Join(t.TempDir(), "copy")
	nbdtest.Run(t, "nbdcopy", nbdtest.URI(p.Network, p.Address, export), f)
	b, err := os.ReadFile(f)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFullBackupEqualsNbdcopy(t *testing.T) {
	tests := map[string][]string{
		"sparse":   {"sparse-random", "96M", "seed=3", "percent=25"},
		"odd size": {"sparse-random", "20000512", "seed=5", "percent=50"},
		"zeros":    {"memory", "8M"},
		"full":     {"random", "16M", "seed=8"},
		"tiny":     {"random", "512", "seed=8"},
		"empty":    {"memory", "0"},
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			p := nbdtest.NBDKit(t, args...)
			want := nbdcopy(t, p, "")
			sink := newPlane(int64(len(want)))
			res, err := transfer.Backup(t.Context(), open(t, p.Network, p.Address, "", ""), sink, transfer.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(sink.data, want) {
				t.Error("the image differs from what nbdcopy reads")
			}
			if res.BytesTotal != int64(len(want)) || res.BytesRead+res.BytesSkipped != res.BytesTotal {
				t.Errorf("result %+v does not add up to %d", res, len(want))
			}
		})
	}
}

// TestIncrementalReadsOnlyWhatIsDirty makes rounds of writes to a qcow2 with a bitmap for each.
func TestIncrementalReadsOnlyWhatIsDirty(t *testing.T) {
	nbdtest.Require(t, "qemu-img", "qemu-io", "qemu-nbd")
	f := filepath.Join(t.TempDir(), "disk.qcow2")
	const size = 64 * mib
	nbdtest.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", f, "64M")
	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 16M", f)
	seed := seeded.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	sink := newPlane(size)
	serve := func(args ...string) *nbdtest.Process {
		return nbdtest.QemuNBD(t, append([]string{"-x", "d", "-f", "qcow2", "-r"}, append(args, f)...)...)
	}
	p := serve()
	if _, err := transfer.Backup(t.Context(), open(t, p.Network, p.Address, "d", ""), sink, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	p.Kill()
	for round := range 5 {
		name := string(rune('a' + round))
		nbdtest.Run(t, "qemu-img", "bitmap", "--add", f, name)
		args := []string{"-f", "qcow2"}
		dirty := map[int64]bool{}
		for range 20 {
			off, n := rnd.Int64N(size/4096-64)*4096, (1+rnd.Int64N(64))*4096
			command := []string{"write -P 7", "write -z", "discard"}[rnd.IntN(3)]
			args = append(args, "-c", command+" "+strconv.FormatInt(off, 10)+" "+strconv.FormatInt(n, 10))
			for c := off / chunk; c <= (off+n-1)/chunk; c++ {
				dirty[c] = true
			}
		}
		nbdtest.Run(t, "qemu-io", append(args, f)...)
		p := serve("-B", name)
		want := nbdcopy(t, p, "d")
		sink.filled = map[int64]bool{}
		res, err := transfer.Backup(t.Context(), open(t, p.Network, p.Address, "d", "qemu:dirty-bitmap:"+name), sink, transfer.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(sink.data, want) {
			t.Fatalf("round %d: the image differs from what nbdcopy reads", round)
		}
		limit := int64(len(dirty)) * chunk
		if res.BytesRead > limit+limit/100 || res.BytesRead == 0 {
			t.Errorf("round %d: %d bytes were read, %d are dirty", round, res.BytesRead, limit)
		}
		// FullRead takes nothing for granted
		again := newPlane(size)
		res, err = transfer.Backup(t.Context(), open(t, p.Network, p.Address, "d", "qemu:dirty-bitmap:"+name), again, transfer.Options{FullRead: true})
		if err != nil || !bytes.Equal(again.data, want) {
			t.Errorf("round %d: FullRead gives another image, %v", round, err)
		}
		p.Kill()
	}
}

func TestRestoreAndReadBack(t *testing.T) {
	src := nbdtest.NBDKit(t, "sparse-random", "48M", "seed=12", "percent=40", "runlength=300000")
	image := newPlane(48 * mib)
	if _, err := transfer.Backup(t.Context(), open(t, src.Network, src.Address, "", ""), image, transfer.Options{}); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		options transfer.Options
		create  []string
		start   func(f string) *nbdtest.Process
		format  string
	}{
		"raw":              {transfer.Options{}, []string{"-f", "raw"}, nil, "raw"},
		"qcow2":            {transfer.Options{}, []string{"-f", "qcow2"}, nil, "qcow2"},
		"reused":           {transfer.Options{SeedZero: true}, []string{"-f", "raw"}, nil, "raw"},
		"one small buffer": {transfer.Options{Workers: 1, BufferBytes: 1}, []string{"-f", "raw"}, nil, "raw"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			f := filepath.Join(t.TempDir(), "disk")
			nbdtest.Run(t, "qemu-img", append(append([]string{"create", "-q"}, tt.create...), f, "50M")...)
			if tt.options.SeedZero {
				nbdtest.Run(t, "qemu-io", "-f", "raw", "-c", "write -P 99 0 50M", f)
			}
			p := nbdtest.QemuNBD(t, "-x", "d", "-f", tt.format, "--discard=unmap", f)
			e := hypervisors.Export{Transport: hypervisors.TransportNBD, Network: p.Network, Address: p.Address, Name: "d", Writable: true}
			dst, err := nbdtransport.OpenTarget(t.Context(), e)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = dst.Close() }()
			tt.options.VerifyTarget = func(ctx context.Context) (hypervisors.FrozenDisk, error) { return nbdtransport.OpenSource(ctx, e) }
			res, err := transfer.Restore(t.Context(), image, dst, tt.options)
			if err != nil || !res.Verified {
				t.Fatalf("Restore = %+v, %v", res, err)
			}
			got := nbdcopy(t, p, "d")
			if !bytes.Equal(got[:48*mib], image.data) || !bytes.Equal(got[48*mib:], make([]byte, 2*mib)) {
				t.Error("the restored disk differs")
			}
			if res.BytesSkipped == 0 || res.BytesRead+res.BytesSkipped != 48*mib {
				t.Errorf("result %+v", res)
			}
		})
	}
}

// liar is a target that loses a write.
type liar struct {
	hypervisors.TargetDisk
	n atomic.Int64
}

func (l *liar) WriteAt(p []byte, off int64) (int, error) {
	if l.n.Add(1) == 3 {
		return len(p), nil
	}
	return l.TargetDisk.WriteAt(p, off)
}

func TestReadBackNoticesALostWrite(t *testing.T) {
	image := newPlane(8 * mib)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(image.data)
	disk := memoryDisk{nbd.NewMemory(8*mib, nil)}
	_, err := transfer.Restore(t.Context(), image, &liar{TargetDisk: disk}, transfer.Options{
		VerifyTarget: func(context.Context) (hypervisors.FrozenDisk, error) { return disk, nil },
	})
	if fault.KindOf(err) != fault.Corrupt {
		t.Errorf("Restore = %v, want Corrupt", err)
	}
	if m, a := fault.Explanation(err); m == "" || a == "" {
		t.Error("no explanation")
	}
}

// memoryDisk is a disk in this process, frozen and target at once.
type memoryDisk struct{ *nbd.Memory }

func (memoryDisk) Confirm(context.Context) error { return nil }

// changed is a disk that was written to while it was read.
type changed struct{ memoryDisk }

func (changed) Confirm(context.Context) error {
	return fault.New(fault.Transient, "confirm", "", "it has changed")
}

func TestAfreshReadsWhatTheImageHas(t *testing.T) {
	for afresh, want := range map[bool]int64{false: 12 * mib, true: 16 * mib} {
		disk := full(t, 16*mib)
		sink := newPlane(16 * mib)
		sink.had = []store.Range{{Offset: 4 * mib, Length: 4 * mib}}
		res, err := transfer.Backup(t.Context(), disk, sink, transfer.Options{Afresh: afresh})
		if got := res.BytesRead - res.BytesKept; err != nil || got != want {
			t.Errorf("afresh %v: %d bytes were read, want %d; %v", afresh, got, want, err)
		}
	}
}

func TestUnconfirmedDiskFailsTheBackup(t *testing.T) {
	sink := newPlane(16 * mib)
	res, err := transfer.Backup(t.Context(), changed{memoryDisk{nbd.NewMemory(16*mib, nil)}}, sink, transfer.Options{})
	if fault.KindOf(err) != fault.Transient || res.BytesRead+res.BytesSkipped != 16*mib {
		t.Errorf("backup of a disk that has changed: %+v, %v", res, err)
	}
}

func (memoryDisk) Close() error { return nil }

func (m memoryDisk) Extents(ctx context.Context) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		list, _ := m.Memory.Extents(ctx, nbd.BaseAllocation, 0, m.Size())
		off := int64(0)
		for _, e := range list {
			s := hypervisors.Data
			if e.Flags&nbd.StateZero != 0 {
				s = hypervisors.Zero
			}
			if !yield(hypervisors.Extent{Offset: off, Length: e.Length, State: s}, nil) {
				return
			}
			off += e.Length
		}
	}
}

func full(t testing.TB, size int64) memoryDisk {
	t.Helper()
	m := memoryDisk{nbd.NewMemory(size, nil)}
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(b)
	if _, err := m.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestErrorsStopTheTransfer(t *testing.T) {
	noSpace := fault.New(fault.Transient, "write pack", "p", "no space").Explain("full", "free")
	damaged := fault.New(fault.Corrupt, "read pack", "p", "bad")
	sink := newPlane(8 * mib)
	sink.fail = noSpace
	if _, err := transfer.Backup(t.Context(), full(t, 8*mib), sink, transfer.Options{}); !errors.Is(err, noSpace) || fault.KindOf(err) != fault.Transient {
		t.Errorf("Backup = %v", err)
	}
	image := newPlane(8 * mib)
	image.data[5*mib] = 1
	image.fail = damaged
	dst := memoryDisk{nbd.NewMemory(8*mib, nil)}
	if _, err := transfer.Restore(t.Context(), image, dst, transfer.Options{}); !errors.Is(err, damaged) || fault.KindOf(err) != fault.Corrupt {
		t.Errorf("Restore = %v", err)
	}
	if _, err := transfer.Restore(t.Context(), newPlane(8*mib+1), dst, transfer.Options{}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Restore to a small disk = %v", err)
	}
}

func TestReadErrorsOfTheSourceStopTheBackup(t *testing.T) {
	p := nbdtest.NBDKit(t, "--filter=error", "random", "64M", "seed=5", "error-pread=EIO", "error-pread-rate=10%")
	_, err := transfer.Backup(t.Context(), open(t, p.Network, p.Address, "", ""), newPlane(64*mib), transfer.Options{})
	if !errors.Is(err, nbd.EIO) {
		t.Errorf("Backup = %v, want EIO", err)
	}
}

func TestServerKilledUnderABackup(t *testing.T) {
	p := nbdtest.NBDKit(t, "random", "64M", "seed=5")
	d, err := nbdtransport.Options{Backoff: time.Millisecond, Attempts: 3}.OpenSource(t.Context(), hypervisors.Export{
		Transport: hypervisors.TransportNBD, Network: p.Network, Address: p.Address,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	sink := newPlane(64 * mib)
	var once sync.Once
	sink.wait = func(context.Context) { once.Do(p.Kill) }
	_, err = transfer.Backup(t.Context(), d, sink, transfer.Options{})
	if fault.KindOf(err) != fault.Transient {
		t.Errorf("Backup = %v, want Transient", err)
	}
	if m, a := fault.Explanation(err); m == "" || a == "" {
		t.Error("no explanation")
	}
}

func TestCancel(t *testing.T) {
	p := nbdtest.NBDKit(t, "--filter=delay", "random", "64M", "seed=5", "rdelay=3600")
	stuck := open(t, p.Network, p.Address, "", "")
	calls := map[string]func(ctx context.Context, cancel func()) error{
		"while the source reads": func(ctx context.Context, cancel func()) error {
			defer context.AfterFunc(ctx, func() { _ = stuck.Close() })()
			go cancel()
			_, err := transfer.Backup(ctx, stuck, newPlane(64*mib), transfer.Options{})
			return err
		},
		"while the store writes": func(ctx context.Context, cancel func()) error {
			sink := newPlane(64 * mib)
			sink.wait = func(ctx context.Context) {
				cancel()
				<-ctx.Done()
			}
			_, err := transfer.Backup(ctx, full(t, 64*mib), sink, transfer.Options{})
			return err
		},
		"while waiting for bandwidth": func(ctx context.Context, cancel func()) error {
			sink := newPlane(64 * mib)
			sink.wait = func(context.Context) { cancel() }
			_, err := transfer.Backup(ctx, full(t, 64*mib), sink, transfer.Options{Limit: 1})
			return err
		},
		"before it begins": func(ctx context.Context, cancel func()) error {
			cancel()
			_, err := transfer.Restore(ctx, newPlane(8*mib), memoryDisk{nbd.NewMemory(8*mib, nil)}, transfer.Options{})
			return err
		},
	}
	for name, call := range calls {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if err := call(ctx, cancel); fault.KindOf(err) != fault.Canceled {
				t.Errorf("error %v, want Canceled", err)
			}
			goleak.VerifyNone(t, goleak.IgnoreCurrent())
		})
	}
}

func TestRateLimitAndProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := full(t, 32*mib)
		if err := disk.Zero(t.Context(), 0, 16*mib); err != nil {
			t.Fatal(err)
		}
		var seen []transfer.Progress
		begin := time.Now()
		res, err := transfer.Backup(t.Context(), disk, newPlane(32*mib), transfer.Options{
			Limit: mib, Progress: func(p transfer.Progress) { seen = append(seen, p) },
		})
		if err != nil {
			t.Fatal(err)
		}
		// the first MiB is free, the other 15 take a second each
		if took := time.Since(begin); took != 15*time.Second || res.Elapsed != took {
			t.Errorf("took %v (result: %v), want 15 s", took, res.Elapsed)
		}
		if len(seen) < 29 || len(seen) > 31 {
			t.Fatalf("%d reports in 15 s", len(seen))
		}
		for i, p := range seen {
			if i > 0 && (p.BytesScanned < seen[i-1].BytesScanned || p.BytesRead+p.BytesSkipped != p.BytesScanned) || p.BytesTotal != 32*mib {
				t.Errorf("report %d: %+v after %+v", i, p, seen[max(0, i-1)])
			}
		}
		middle, last := seen[15], seen[len(seen)-1]
		if middle.Bottleneck != transfer.BottleneckLimit || middle.ETA <= 0 || middle.Rate < mib/2 || middle.Rate > 2*mib {
			t.Errorf("in the middle: %+v", middle)
		}
		if last.BytesScanned != 32*mib || last.BytesSkipped != 16*mib || last.ETA != 0 {
			t.Errorf("at the end: %+v", last)
		}
	})
}

// TestSharedLimit: transfers that share a limit keep to it together, also when it changes.
func TestSharedLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shared := rate.NewLimiter(mib, mib)
		both := func() time.Duration {
			begin := time.Now()
			var g errgroup.Group
			for range 2 {
				g.Go(func() error {
					_, err := transfer.Backup(t.Context(), full(t, 8*mib), newPlane(8*mib), transfer.Options{Shared: shared})
					return err
				})
			}
			if err := g.Wait(); err != nil {
				t.Fatal(err)
			}
			return time.Since(begin)
		}
		if took := both(); took != 15*time.Second { // the first of 16 MiB is free
			t.Errorf("16 MiB at 1 MiB a second took %v", took)
		}
		shared.SetLimit(rate.Inf)
		if took := both(); took != 0 {
			t.Errorf("without a limit it took %v", took)
		}
	})
}

// slow is a disk that takes its time.
type slow struct{ memoryDisk }

func (s slow) ReadAt(p []byte, off int64) (int, error) {
	time.Sleep(time.Second)
	return s.memoryDisk.ReadAt(p, off)
}

func TestBottleneck(t *testing.T) {
	tests := map[string]struct {
		disk hypervisors.FrozenDisk
		wait func(context.Context)
		want transfer.Bottleneck
	}{
		"source": {slow{full(t, 16*mib)}, nil, transfer.BottleneckSource},
		"store":  {full(t, 16*mib), func(context.Context) { time.Sleep(time.Second) }, transfer.BottleneckStore},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sink := newPlane(16 * mib)
				sink.wait = tt.wait
				got := map[transfer.Bottleneck]int{}
				_, err := transfer.Backup(t.Context(), tt.disk, sink, transfer.Options{
					Workers: 2, ProgressEvery: 2 * time.Second, Progress: func(p transfer.Progress) { got[p.Bottleneck]++ },
				})
				if err != nil {
					t.Fatal(err)
				}
				if got[tt.want] < 2 || len(got) > 2 { // the last report may have nothing to say
					t.Errorf("bottlenecks %v, want %s", got, tt.want)
				}
			})
		})
	}
}

// counter counts what a sink is given and keeps nothing.
type counter struct{ written, zeroed, calls atomic.Int64 }

func (*counter) ChunkBytes() int { return chunk }
func (*counter) FrameBytes() int { return chunk }
func (c *counter) Write(_ context.Context, _ int64, p []byte) error {
	c.written.Add(int64(len(p)))
	c.calls.Add(1)
	return nil
}

func (c *counter) Durable(context.Context) iter.Seq2[store.Range, error] {
	return func(func(store.Range, error) bool) {}
}

func (c *counter) Zero(_ context.Context, _, n int64) error {
	c.zeroed.Add(n)
	c.calls.Add(1)
	return nil
}

func TestHugeMostlyEmptyDiskStaysSmall(t *testing.T) {
	p := nbdtest.NBDKit(t, "data", "size=64G", "data=( 0x55*4194304 ) @34359738368 ( 0x66*4194304 ) @68719476735 3")
	d := open(t, p.Network, p.Address, "", "")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var c counter
	res, err := transfer.Backup(t.Context(), d, &c, transfer.Options{})
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	if res.BytesRead > 9*mib || c.written.Load() != res.BytesRead || c.zeroed.Load() != res.BytesSkipped || res.BytesRead+res.BytesSkipped != 64<<30 {
		t.Errorf("result %+v, sink %d written and %d zeroed", res, c.written.Load(), c.zeroed.Load())
	}
	if c.calls.Load() > 50 {
		t.Errorf("%d calls of the sink", c.calls.Load())
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 32*mib {
		t.Errorf("%d bytes were allocated in all", n)
	}
}

func TestShortReadsAreErrors(t *testing.T) {
	_, err := transfer.Backup(t.Context(), short{full(t, 4*mib)}, newPlane(4*mib), transfer.Options{})
	if fault.KindOf(err) != fault.Transient {
		t.Errorf("Backup = %v, want Transient", err)
	}
}

type short struct{ memoryDisk }

func (short) ReadAt(p []byte, _ int64) (int, error) { return len(p) - 1, io.EOF }

// serveMemory is a server of ours for benchmarks.
func serveMemory(b *testing.B, m *nbd.Memory) string {
	s := nbd.NewServer(nbd.ServerOptions{})
	if err := s.Add(nbd.Export{Name: "d", Backend: m, MultiConn: true}); err != nil {
		b.Fatal(err)
	}
	l, err := net.Listen("unix", nbdtest.Socket(b))
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	b.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

// BenchmarkBackup reads 1 GiB of nbdkit's memory into nothing; BenchmarkNbdcopy does the same with nbdcopy.
func BenchmarkBackup(b *testing.B) {
	p := nbdtest.NBDKit(b, "pattern", "1G")
	b.SetBytes(1 << 30)
	for b.Loop() {
		d := open(b, p.Network, p.Address, "", "")
		var c counter
		if _, err := transfer.Backup(b.Context(), d, &c, transfer.Options{}); err != nil {
			b.Fatal(err)
		}
		_ = d.Close()
	}
}

func BenchmarkNbdcopy(b *testing.B) {
	p := nbdtest.NBDKit(b, "pattern", "1G")
	b.SetBytes(1 << 30)
	for b.Loop() {
		nbdtest.Run(b, "nbdcopy", nbdtest.URI(p.Network, p.Address, ""), "null:")
	}
}

func BenchmarkBackupFromOurServer(b *testing.B) {
	m := nbd.NewMemory(256*mib, nil)
	for off := int64(0); off < 256*mib; off += chunk {
		_, _ = m.WriteAt([]byte{1}, off)
	}
	address := serveMemory(b, m)
	b.SetBytes(256 * mib)
	for b.Loop() {
		d := open(b, "unix", address, "d", "")
		var c counter
		if _, err := transfer.Backup(b.Context(), d, &c, transfer.Options{}); err != nil {
			b.Fatal(err)
		}
		_ = d.Close()
	}
}

// BenchmarkRestore writes 256 MiB to nbdkit's memory.
func BenchmarkRestore(b *testing.B) {
	image := newPlane(256 * mib)
	for off := int64(0); off < 256*mib; off += chunk {
		image.data[off] = 1
	}
	p := nbdtest.NBDKit(b, "memory", "256M")
	e := hypervisors.Export{Transport: hypervisors.TransportNBD, Network: p.Network, Address: p.Address}
	b.SetBytes(256 * mib)
	for b.Loop() {
		d, err := nbdtransport.OpenTarget(b.Context(), e)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := transfer.Restore(b.Context(), image, d, transfer.Options{}); err != nil {
			b.Fatal(err)
		}
		_ = d.Close()
	}
}
