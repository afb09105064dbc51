package nbdtransport

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	mib   = 1 << 20
	block = 64 << 10
)

// quick are options for tests that break connections.
var quick = Options{Connections: 1, Backoff: time.Millisecond}

// serve exports backends with our server.
func serve(t testing.TB, exports ...nbd.Export) (*nbd.Server, string) {
	t.Helper()
	s := nbd.NewServer(nbd.ServerOptions{})
	for _, e := range exports {
		if err := s.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", nbdtest.Socket(t))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		_ = s.Close()
		wg.Wait()
	})
	return s, l.Addr().String()
}

func export(address, name, dirty string) hypervisors.Export {
	return hypervisors.Export{Transport: hypervisors.TransportNBD, Network: "unix", Address: address, Name: name, DirtyContext: dirty}
}

func extents(t testing.TB, d hypervisors.FrozenDisk) []hypervisors.Extent {
	t.Helper()
	var out []hypervisors.Extent
	for e, err := range d.Extents(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func ext(off, n int64, s hypervisors.ExtentState) hypervisors.Extent {
	return hypervisors.Extent{Offset: off, Length: n, State: s}
}

// status makes extents from lengths and flags in turn.
func status(lengthsAndFlags ...int64) []nbd.Extent {
	var out []nbd.Extent
	for i := 0; i < len(lengthsAndFlags); i += 2 {
		out = append(out, nbd.Extent{Length: lengthsAndFlags[i], Flags: uint32(lengthsAndFlags[i+1])})
	}
	return out
}

func TestMerge(t *testing.T) {
	const hole = int64(nbd.StateHole)
	const zero = int64(nbd.StateHole | nbd.StateZero)
	tests := []struct {
		name              string
		allocation, dirty []nbd.Extent
		want              []hypervisors.Extent
	}{
		{"clean wins over zero", status(10, zero), status(10, 0), []hypervisors.Extent{ext(100, 10, hypervisors.Unchanged)}},
		{"dirty zero", status(10, zero), status(10, 1), []hypervisors.Extent{ext(100, 10, hypervisors.Zero)}},
		{"dirty data", status(10, 0), status(10, 1), []hypervisors.Extent{ext(100, 10, hypervisors.Data)}},
		{"a hole that may hold anything", status(10, hole), status(10, 1), []hypervisors.Extent{ext(100, 10, hypervisors.Data)}},
		{"interleaved", status(3, 0, 4, zero, 3, 0), status(2, 1, 3, 0, 5, 1),
			[]hypervisors.Extent{ext(100, 2, hypervisors.Data), ext(102, 3, hypervisors.Unchanged), ext(105, 2, hypervisors.Zero), ext(107, 3, hypervisors.Data)}},
		{"one is shorter", status(5, 0), status(2, 1), []hypervisors.Extent{ext(100, 2, hypervisors.Data)}},
		{"neighbours join", status(5, 0, 5, 0), status(2, 1, 8, 1), []hypervisors.Extent{ext(100, 10, hypervisors.Data)}},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, merge(100, tt.allocation, tt.dirty)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

// bitmapDisk is a qcow2 of 64 MiB: data at 1 MiB before the bitmap, data at 33 and zeros at 48 after it.
func bitmapDisk(t testing.TB) string {
	t.Helper()
	nbdtest.Require(t, "qemu-img", "qemu-io")
	f := filepath.Join(t.TempDir(), "disk.qcow2")
	nbdtest.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", f, "64M")
	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 17 1M 256k", "-c", "write -P 18 33M 64k", "-c", "write -P 19 48M 1M", f)
	nbdtest.Run(t, "qemu-img", "bitmap", "--add", f, "b0")
	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 20 33M 64k", "-c", "write -z 48M 1M", f)
	return f
}

func TestExtentsOfQemu(t *testing.T) {
	f := bitmapDisk(t)
	servers := map[string]*nbdtest.Process{
		"qemu-nbd": nbdtest.QemuNBD(t, "-x", "d", "-f", "qcow2", "-B", "b0", "-r", f),
		"qemu-storage-daemon": nbdtest.StorageDaemon(t, "--blockdev", "file,node-name=f,filename="+f+",read-only=on",
			"--blockdev", "qcow2,node-name=q,file=f,read-only=on", "--export", "nbd,id=e,node-name=q,name=d,bitmaps.0=b0"),
	}
	const u, d, z = hypervisors.Unchanged, hypervisors.Data, hypervisors.Zero
	for name, p := range servers {
		t.Run(name, func(t *testing.T) {
			inc, err := OpenSource(t.Context(), export(p.Address, "d", "qemu:dirty-bitmap:b0"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = inc.Close() }()
			want := []hypervisors.Extent{ext(0, 33*mib, u), ext(33*mib, block, d), ext(33*mib+block, 15*mib-block, u), ext(48*mib, mib, z), ext(49*mib, 15*mib, u)}
			if diff := cmp.Diff(want, extents(t, inc)); diff != "" {
				t.Errorf("incremental (-want +got):\n%s", diff)
			}
			full, err := OpenSource(t.Context(), export(p.Address, "d", ""))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = full.Close() }()
			want = []hypervisors.Extent{ext(0, mib, z), ext(mib, 256<<10, d), ext(mib+256<<10, 32*mib-256<<10, z), ext(33*mib, block, d), ext(33*mib+block, 31*mib-block, z)}
			if diff := cmp.Diff(want, extents(t, full)); diff != "" {
				t.Errorf("full (-want +got):\n%s", diff)
			}
			_, err = OpenSource(t.Context(), export(p.Address, "d", "qemu:dirty-bitmap:other"))
			if fault.KindOf(err) != fault.NotFound {
				t.Errorf("missing bitmap: %v", err)
			}
			if _, advice := fault.Explanation(err); advice != "Run a full backup of this VM." {
				t.Errorf("advice %q", advice)
			}
		})
	}
}

// stingy answers block status in odd pieces: a random part of the range, sometimes more than was asked.
type stingy struct {
	*nbd.Memory
	mu  sync.Mutex
	rnd *rand.Rand
}

func (s *stingy) Extents(ctx context.Context, name string, off, n int64) ([]nbd.Extent, error) {
	s.mu.Lock()
	part := 1 + s.rnd.Int64N(n)
	long := s.rnd.IntN(3) == 0
	s.mu.Unlock()
	list, err := s.Memory.Extents(ctx, name, off, part)
	if long && len(list) == 1 && part == n {
		list[0].Length += 1 << 20
	}
	return list, err
}

func TestExtentsFromAServerThatTellsLittle(t *testing.T) {
	seed := seeded.Seed(t)
	m := nbd.NewMemory(10*mib+12345, func(_ string, b int64) bool { return b%5 < 2 })
	for _, b := range []int64{0, 1, 7, 20, 21, 22, 100, 160} {
		if _, err := m.WriteAt([]byte{1}, b*block); err != nil {
			t.Fatal(err)
		}
	}
	const dirty = "qemu:dirty-bitmap:b"
	contexts := []string{nbd.BaseAllocation, dirty}
	_, sock := serve(t, nbd.Export{Name: "odd", Backend: &stingy{Memory: m, rnd: rand.New(rand.NewPCG(seed, 1))}, Contexts: contexts},
		nbd.Export{Name: "even", Backend: m, Contexts: contexts}, nbd.Export{Name: "none", Backend: m})
	open := func(name, dirty string) hypervisors.FrozenDisk {
		d, err := OpenSource(t.Context(), export(sock, name, dirty))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}
	want := extents(t, open("even", dirty))
	if len(want) < 10 {
		t.Fatalf("only %d extents", len(want))
	}
	if diff := cmp.Diff(want, extents(t, open("odd", dirty))); diff != "" {
		t.Errorf("extents (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]hypervisors.Extent{{Length: m.Size()}}, extents(t, open("none", ""))); diff != "" {
		t.Errorf("without contexts (-want +got):\n%s", diff)
	}
}

func TestHugeMostlyEmptyDiskTakesFewRequests(t *testing.T) {
	p := nbdtest.NBDKit(t, "data", "size=64G", "data=@0 1 @34359738368 2 @68719476735 3")
	s, err := Options{}.openSource(t.Context(), export(p.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	data := int64(0)
	for _, e := range extents(t, s) {
		if e.State == hypervisors.Data {
			data += e.Length
		}
	}
	st := s.link.stats()
	if st.Statuses > 40 || st.Reads != 0 || data > mib {
		t.Errorf("%d block status requests, %d reads, %d bytes of data; want at most 40, 0 and 1 MiB", st.Statuses, st.Reads, data)
	}
}

// random serves 32 MiB of random bytes and returns them, too. It is QEMU's server, for nbdkit 1.32 may abort itself
// when a connection breaks under several requests.
func random(t testing.TB) (*nbdtest.Process, []byte) {
	t.Helper()
	b := make([]byte, 32*mib)
	var seed [32]byte
	_, _ = rand.NewChaCha8(seed).Read(b)
	f := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(f, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return nbdtest.QemuNBD(t, "-f", "raw", "-r", f), b
}

func TestReadsGoOnAfterTheConnectionBroke(t *testing.T) {
	p, want := random(t)
	seed := seeded.Seed(t)
	for _, connections := range []int{1, 4} {
		rnd := rand.New(rand.NewPCG(seed, uint64(connections)))
		var mu sync.Mutex
		proxy := nbdtest.NewProxy(t, p.Network, p.Address, func(int) int64 {
			mu.Lock()
			defer mu.Unlock()
			return 3*mib + rnd.Int64N(3*mib)
		})
		o := quick
		o.Connections = connections
		d, err := o.OpenSource(t.Context(), export(proxy.Address, "", ""))
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(want))
		var wg sync.WaitGroup
		sem := make(chan struct{}, 4)
		for off := int64(0); off < d.Size(); off += mib {
			sem <- struct{}{}
			wg.Go(func() {
				defer func() { <-sem }()
				if n, err := d.ReadAt(got[off:off+mib], off); n != mib || err != nil {
					t.Errorf("ReadAt(%d) = %d, %v", off, n, err)
				}
			})
		}
		wg.Wait()
		if !bytes.Equal(got, want) {
			t.Error("wrong data")
		}
		if least := 4 / connections; proxy.Cuts() < least {
			t.Errorf("%d connections were cut, want at least %d", proxy.Cuts(), least)
		}
		_ = d.Close()
	}
}

func TestServerGoneForGood(t *testing.T) {
	p, _ := random(t)
	d, err := Options{Backoff: time.Millisecond, Attempts: 3}.OpenSource(t.Context(), export(p.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	p.Kill()
	for range 2 { // the second one has nothing to wait for
		_, err = d.ReadAt(make([]byte, 512), 0)
		if fault.KindOf(err) != fault.Transient {
			t.Errorf("ReadAt = %v, want Transient", err)
		}
		if meaning, advice := fault.Explanation(err); meaning == "" || advice == "" {
			t.Errorf("explanation %q, %q", meaning, advice)
		}
	}
}

func TestServerThatLeavesWithItsLastClient(t *testing.T) {
	p := nbdtest.NBDKit(t, "--filter=exitlast", "memory", "1M")
	proxy := nbdtest.NewProxy(t, p.Network, p.Address, func(int) int64 { return -1 })
	o := quick
	o.Attempts = 3
	d, err := o.OpenSource(t.Context(), export(proxy.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	proxy.CutAll()
	p.Wait() // it has gone by itself
	_, err = d.ReadAt(make([]byte, 512), 0)
	if m, _ := fault.Explanation(err); fault.KindOf(err) != fault.Transient || m == "" {
		t.Errorf("ReadAt = %v, explained by %q", err, m)
	}
}

func TestConnectionThatAlwaysBreaksEnds(t *testing.T) {
	p, _ := random(t)
	proxy := nbdtest.NewProxy(t, p.Network, p.Address, func(int) int64 { return mib / 2 })
	d, err := quick.OpenSource(t.Context(), export(proxy.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if _, err = d.ReadAt(make([]byte, mib), 0); fault.KindOf(err) != fault.Transient {
		t.Errorf("ReadAt = %v, want Transient", err)
	}
	if n := proxy.Cuts(); n != 8 {
		t.Errorf("%d connections were cut, want the first and 7 more", n)
	}
}

func TestAnotherDiskAfterTheReconnectIsRefused(t *testing.T) {
	tests := map[string]nbd.Export{
		"another size":        {Name: "d", Backend: nbd.NewMemory(3*mib, nil), Contexts: []string{nbd.BaseAllocation}},
		"no contexts":         {Name: "d", Backend: nbd.NewMemory(2*mib, nil)},
		"another description": {Name: "d", Backend: nbd.NewMemory(2*mib, nil), Contexts: []string{nbd.BaseAllocation}, Description: "new"},
		"gone":                {Name: "other", Backend: nbd.NewMemory(2*mib, nil)},
	}
	for name, second := range tests {
		t.Run(name, func(t *testing.T) {
			s, sock := serve(t, nbd.Export{Name: "d", Backend: nbd.NewMemory(2*mib, nil), Contexts: []string{nbd.BaseAllocation}})
			d, err := quick.OpenSource(t.Context(), export(sock, "d", ""))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = d.Close() }()
			s.Remove("d")
			if err := s.Add(second); err != nil {
				t.Fatal(err)
			}
			_, err = d.ReadAt(make([]byte, 512), 0)
			if fault.KindOf(err) != fault.Transient {
				t.Errorf("ReadAt = %v, want Transient", err)
			}
			if m, _ := fault.Explanation(err); m == "" {
				t.Error("no explanation")
			}
		})
	}
}

func TestWrongExportsAreRefused(t *testing.T) {
	_, sock := serve(t, nbd.Export{Name: "d", Backend: nbd.NewMemory(mib, nil), ReadOnly: true})
	size := export(sock, "d", "")
	size.SizeBytes = 2 * mib
	other := export(sock, "d", "")
	other.Transport = "san"
	noCA := export(sock, "d", "")
	noCA.TLS = &hypervisors.TLS{CAFile: "/nonexistent", ServerName: "x"}
	for name, tt := range map[string]struct {
		e    hypervisors.Export
		want fault.Kind
	}{
		"size": {size, fault.Conflict}, "transport": {other, fault.Invalid}, "no CA": {noCA, fault.NotFound}, "missing": {export(sock, "x", ""), fault.NotFound},
	} {
		if _, err := OpenSource(t.Context(), tt.e); fault.KindOf(err) != tt.want {
			t.Errorf("%s: OpenSource = %v, want %v", name, err, tt.want)
		}
	}
	if _, err := OpenTarget(t.Context(), export(sock, "d", "")); fault.KindOf(err) != fault.Denied {
		t.Errorf("OpenTarget of a read-only export = %v", err)
	}
}

func TestTLSFromFiles(t *testing.T) {
	dir := nbdtest.Certificates(t)
	p := nbdtest.NBDKitTCP(t, "--tls=require", "--tls-verify-peer", "--tls-certificates="+dir, "random", "1M", "seed=1")
	file := func(n string) string { return filepath.Join(dir, n) }
	e := hypervisors.Export{Transport: hypervisors.TransportNBD, Network: "tcp", Address: p.Address, SizeBytes: mib, TLS: &hypervisors.TLS{
		CAFile: file("ca-cert.pem"), CertFile: file("client-cert.pem"), KeyFile: file("client-key.pem"), ServerName: "localhost",
	}}
	d, err := OpenSource(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if n, err := d.ReadAt(make([]byte, 100), mib-50); n != 50 || !errors.Is(err, io.EOF) {
		t.Errorf("ReadAt at the end = %d, %v", n, err)
	}
	e.TLS.ServerName = "elsewhere.example"
	if _, err := OpenSource(t.Context(), e); fault.KindOf(err) != fault.Denied {
		t.Errorf("wrong name: %v", err)
	}
}

// forgetful is a disk that loses what was not flushed when its server crashes.
type forgetful struct {
	*nbd.Memory
	mu      sync.Mutex
	durable []byte
	flushes int
	crashes int
}

func newForgetful(size int64) *forgetful {
	return &forgetful{Memory: nbd.NewMemory(size, nil), durable: make([]byte, size)}
}

func (f *forgetful) Flush(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.flushes++
	_, err := f.ReadAt(f.durable, 0)
	return err
}

func (f *forgetful) crash() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashes++
	_, _ = f.WriteAt(f.durable, 0)
}

// restart crashes the server of a disk and starts another one in its place.
func restart(t *testing.T, old *nbd.Server, sock string, disk *forgetful) *nbd.Server {
	t.Helper()
	if old != nil {
		_ = old.Close()
		disk.crash()
	}
	s := nbd.NewServer(nbd.ServerOptions{})
	if err := s.Add(nbd.Export{Name: "d", Backend: disk}); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(l) }()
	return s
}

func TestWritesSurviveAServerThatForgets(t *testing.T) {
	const size = 24 * mib
	disk := newForgetful(size)
	sock := nbdtest.Socket(t)
	s := restart(t, nil, sock, disk)
	defer func() { _ = s.Close() }()
	o := quick
	o.Attempts = 20
	o.JournalBytes = 4 * mib
	d, err := o.OpenTarget(t.Context(), export(sock, "d", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	seed := seeded.Seed(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(rnd.Uint32())
	}
	clear(want[5*mib : 6*mib])
	var wg sync.WaitGroup
	work := make(chan int64)
	for range 4 {
		wg.Go(func() {
			for off := range work {
				var err error
				if off == 5*mib {
					err = d.Zero(t.Context(), off, mib)
				} else {
					_, err = d.WriteAt(want[off:off+mib], off)
				}
				if err != nil {
					t.Errorf("write at %d: %v", off, err)
				}
			}
		})
	}
	for off := int64(0); off < size; off += mib {
		if off%(7*mib) == 3*mib { // the server crashes and comes back
			s = restart(t, s, sock, disk)
		}
		work <- off
	}
	close(work)
	wg.Wait()
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	disk.crash() // what was flushed is there all the same
	got := make([]byte, size)
	if _, err := disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the disk holds something else than was written; %v", err)
	}
	if disk.crashes < 4 || disk.flushes < 4 {
		t.Errorf("%d crashes and %d flushes, want at least 4 of each", disk.crashes, disk.flushes)
	}
}

func TestWritesThroughCutConnections(t *testing.T) {
	p := nbdtest.NBDKit(t, "--filter=checkwrite", "sparse-random", "64M", "seed=4", "percent=30", "random-content=true")
	src, err := OpenSource(t.Context(), export(p.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	// checkwrite fails every write that differs from what is there, so a wrong or torn repetition is noticed
	proxy := nbdtest.NewProxy(t, p.Network, p.Address, func(n int) int64 { return 400 + int64(n)*200 })
	o := quick
	d, err := o.OpenTarget(t.Context(), export(proxy.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	for _, e := range extents(t, src) {
		if e.State != hypervisors.Data {
			if err := d.Zero(t.Context(), e.Offset, e.Length); err != nil {
				t.Fatal(err)
			}
			continue
		}
		for off := e.Offset; off < e.Offset+e.Length; off += mib {
			b := make([]byte, min(mib, e.Offset+e.Length-off))
			if _, err := src.ReadAt(b, off); err != nil {
				t.Fatal(err)
			}
			if _, err := d.WriteAt(b, off); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if proxy.Cuts() == 0 {
		t.Error("no connection was cut")
	}
}

func TestTargetWithoutFlushFailsWhenTheConnectionBreaks(t *testing.T) {
	p := nbdtest.NBDKit(t, "eval", "get_size=echo 1048576", "can_write=exit 0", "pwrite=cat >/dev/null", "can_flush=exit 3", "pread=exit 1")
	proxy := nbdtest.NewProxy(t, p.Network, p.Address, func(int) int64 { return -1 })
	d, err := quick.OpenTarget(t.Context(), export(proxy.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	if _, err := d.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	proxy.CutAll()
	_, err = d.WriteAt(make([]byte, 4096), 4096)
	if fault.KindOf(err) != fault.Transient {
		t.Errorf("WriteAt = %v, want Transient", err)
	}
	if m, _ := fault.Explanation(err); m == "" {
		t.Error("no explanation")
	}
}

func TestCloseEndsWhatIsUnderWay(t *testing.T) {
	p := nbdtest.NBDKit(t, "--filter=delay", "memory", "1M", "rdelay=3600")
	d, err := OpenSource(t.Context(), export(p.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := d.ReadAt(make([]byte, 512), 0)
		got <- err
	}()
	for d.(*source).link.stats().Reads == 0 {
		time.Sleep(time.Millisecond)
	}
	_ = d.Close()
	if err := <-got; fault.KindOf(err) != fault.Canceled {
		t.Errorf("ReadAt = %v, want Canceled", err)
	}
	_ = d.Close()
	if _, err := d.ReadAt(make([]byte, 512), 0); fault.KindOf(err) != fault.Canceled {
		t.Errorf("ReadAt after Close = %v, want Canceled", err)
	}
}

func TestCancelWhileReconnecting(t *testing.T) {
	p, _ := random(t)
	d, err := Options{Backoff: time.Hour}.OpenSource(t.Context(), export(p.Address, "", ""))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	p.Kill()
	ctx, cancel := context.WithCancel(t.Context())
	go cancel()
	for _, err = range d.Extents(ctx) {
	}
	if fault.KindOf(err) != fault.Canceled {
		t.Errorf("Extents = %v, want Canceled", err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := d.ReadAt(make([]byte, 512), 0)
		got <- err
	}()
	_ = d.Close()
	if err := <-got; fault.KindOf(err) != fault.Canceled {
		t.Errorf("ReadAt = %v, want Canceled", err)
	}
}
