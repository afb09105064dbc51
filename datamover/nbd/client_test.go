package nbd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
)

func dial(t testing.TB, cfg nbd.Config) *nbd.Client {
	t.Helper()
	c, err := nbd.Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func at(p *nbdtest.Process, export string) nbd.Config {
	return nbd.Config{Network: p.Network, Address: p.Address, Export: export}
}

// readAll reads an export in pieces of step bytes, several at once.
func readAll(t testing.TB, c *nbd.Client, step int64) []byte {
	t.Helper()
	out := make([]byte, c.Info().Size)
	var wg sync.WaitGroup
	sem := make(chan struct{}, 8)
	for off := int64(0); off < c.Info().Size; off += step {
		sem <- struct{}{}
		wg.Go(func() {
			defer func() { <-sem }()
			end := min(off+step, c.Info().Size)
			if err := c.Read(t.Context(), out[off:end], off); err != nil {
				t.Errorf("read at %d: %v", off, err)
			}
		})
	}
	wg.Wait()
	return out
}

// copied reads an export with nbdcopy, a reader that is not ours.
func copied(t testing.TB, network, address, export string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "copy")
	nbdtest.Run(t, "nbdcopy", "--request-size=65536", nbdtest.URI(network, address, export), file)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReadEqualsNbdcopy(t *testing.T) {
	tests := []struct {
		name string
		args []string
		step int64
	}{
		{"memory of zeros", []string{"memory", "3M"}, 1 << 20},
		{"sparse random", []string{"sparse-random", "64M", "seed=7", "percent=20"}, 1 << 20},
		{"odd sizes", []string{"random", "1000003", "seed=1"}, 65537},
		{"empty", []string{"memory", "0"}, 1 << 20},
		{"one byte", []string{"random", "1", "seed=1"}, 512},
		{"delayed", []string{"--filter=delay", "random", "4M", "seed=2", "rdelay=2ms"}, 1 << 18},
		{"large blocks only", []string{"--filter=blocksize-policy", "random", "8M", "seed=3", "blocksize-minimum=64K",
			"blocksize-preferred=64K", "blocksize-maximum=128K", "blocksize-error-policy=error"}, 1000003},
		{"no structured replies", []string{"--no-sr", "random", "4M", "seed=4"}, 1 << 20},
		{"single connection", []string{"--filter=multi-conn", "random", "4M", "seed=4", "multi-conn-mode=disable"}, 1 << 20},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := nbdtest.NBDKit(t, tt.args...)
			c := dial(t, at(p, ""))
			got := readAll(t, c, tt.step)
			if want := copied(t, p.Network, p.Address, ""); !bytes.Equal(got, want) {
				t.Errorf("our %d bytes differ from nbdcopy's %d", len(got), len(want))
			}
		})
	}
}

func TestMultiConnIsRespected(t *testing.T) {
	tests := []struct {
		mode string
		want int
	}{{"disable", 1}, {"unsafe", 4}}
	for _, tt := range tests {
		p := nbdtest.NBDKit(t, "--filter=multi-conn", "memory", "1M", "multi-conn-mode="+tt.mode)
		if got := dial(t, at(p, "")).Connections(); got != tt.want {
			t.Errorf("%s: %d connections, want %d", tt.mode, got, tt.want)
		}
	}
}

func TestWritesAreWhatAnotherReaderSees(t *testing.T) {
	tests := []struct {
		name string
		args []string
	}{
		{"memory", []string{"memory", "4M"}},
		{"blocks of 4096", []string{"--filter=blocksize-policy", "memory", "4M", "blocksize-minimum=4096", "blocksize-preferred=4096",
			"blocksize-maximum=64K", "blocksize-error-policy=error"}},
		{"no zero command", []string{"--filter=nozero", "memory", "4M"}},
		{"emulated FUA", []string{"--filter=fua", "memory", "4M", "fuamode=emulate"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			seed := seeded.Seed(t)
			rnd := rand.New(rand.NewPCG(seed, 0))
			p := nbdtest.NBDKit(t, tt.args...)
			c := dial(t, at(p, ""))
			want := make([]byte, 4<<20)
			for range 200 {
				off := rnd.Int64N(4 << 20)
				n := rnd.Int64N(min(300<<10, 4<<20-off) + 1)
				if rnd.IntN(3) == 0 {
					clear(want[off : off+n])
					if err := c.Zero(t.Context(), off, n, 0); err != nil {
						t.Fatal(err)
					}
					continue
				}
				for i := range want[off : off+n] {
					want[off+int64(i)] = byte(rnd.Uint32())
				}
				var flags nbd.Flags
				if c.Info().CanFUA && rnd.IntN(4) == 0 {
					flags = nbd.FUA
				}
				if err := c.Write(t.Context(), want[off:off+n], off, flags); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.Flush(t.Context()); err != nil && !(c.Info().CanFlush == false && errors.Is(err, errors.ErrUnsupported)) {
				t.Fatal(err)
			}
			if got := copied(t, p.Network, p.Address, ""); !bytes.Equal(got, want) {
				t.Error("nbdcopy reads something else than was written")
			}
		})
	}
}

func TestServerErrorsHaveKinds(t *testing.T) {
	dir := t.TempDir()
	trigger := filepath.Join(dir, "on")
	if err := os.WriteFile(trigger, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		errno string
		want  fault.Kind
		is    nbd.Errno
	}{
		{"EPERM", fault.Denied, nbd.EPERM},
		{"EIO", fault.Transient, nbd.EIO},
		{"ENOMEM", fault.Transient, nbd.ENOMEM},
		{"EINVAL", fault.Invalid, nbd.EINVAL},
		{"ENOSPC", fault.Transient, nbd.ENOSPC},
		{"ESHUTDOWN", fault.Transient, nbd.ESHUTDOWN},
	}
	for _, tt := range tests {
		t.Run(tt.errno, func(t *testing.T) {
			p := nbdtest.NBDKit(t, "--filter=error", "memory", "1M", "error="+tt.errno, "error-rate=100%", "error-file="+trigger)
			c := dial(t, at(p, ""))
			err := c.Read(t.Context(), make([]byte, 512), 512)
			if err == nil || fault.KindOf(err) != tt.want || !errors.Is(err, tt.is) {
				t.Errorf("read: %v, want kind %v and %v", err, tt.want, tt.is)
			}
		})
	}
}

func TestSomeReadsFail(t *testing.T) {
	p := nbdtest.NBDKit(t, "--filter=error", "random", "16M", "seed=5", "error-pread=EIO", "error-pread-rate=20%")
	c := dial(t, at(p, ""))
	want := copiedFromRandom(t)
	failed, good := 0, 0
	for off := int64(0); off < 16<<20; off += 64 << 10 {
		b := make([]byte, 64<<10)
		switch err := c.Read(t.Context(), b, off); {
		case errors.Is(err, nbd.EIO):
			failed++
		case err != nil:
			t.Fatal(err)
		default:
			good++
			if !bytes.Equal(b, want[off:off+64<<10]) {
				t.Fatalf("wrong data at %d", off)
			}
		}
	}
	if failed == 0 || good == 0 {
		t.Errorf("%d reads failed and %d worked, want some of both", failed, good)
	}
}

func copiedFromRandom(t *testing.T) []byte {
	p := nbdtest.NBDKit(t, "random", "16M", "seed=5")
	return copied(t, p.Network, p.Address, "")
}

func TestRangesOutsideAreRefusedHere(t *testing.T) {
	p := nbdtest.NBDKit(t, "-r", "memory", "1M")
	c := dial(t, at(p, ""))
	calls := map[string]error{
		"read beyond":   c.Read(t.Context(), make([]byte, 2), 1<<20-1),
		"negative":      c.Read(t.Context(), make([]byte, 2), -1),
		"huge":          c.Zero(t.Context(), 0, 1<<62, 0),
		"write":         c.Write(t.Context(), make([]byte, 512), 0, 0),
		"flush is none": c.Flush(t.Context()),
	}
	want := map[string]fault.Kind{
		"read beyond": fault.Invalid, "negative": fault.Invalid, "huge": fault.Denied, "write": fault.Denied,
		"flush is none": fault.Unsupported,
	}
	for name, err := range calls {
		if name == "flush is none" && c.Info().CanFlush {
			continue
		}
		if err == nil || fault.KindOf(err) != want[name] {
			t.Errorf("%s: %v, want kind %v", name, err, want[name])
		}
	}
	if got := c.Stats(); got.Reads+got.Writes+got.Zeroes != 0 {
		t.Errorf("requests were sent: %+v", got)
	}
}

func TestMissingExport(t *testing.T) {
	p := nbdtest.NBDKit(t, "memory", "1M")
	q := nbdtest.QemuNBD(t, "-x", "there", "-f", "raw", tempFile(t, 1<<20))
	_ = p
	_, err := nbd.Dial(t.Context(), at(q, "not-there"))
	if fault.KindOf(err) != fault.NotFound {
		t.Errorf("Dial = %v, want NotFound", err)
	}
	_, err = nbd.Dial(t.Context(), nbd.Config{Network: "unix", Address: nbdtest.Socket(t)})
	if fault.KindOf(err) != fault.Transient {
		t.Errorf("Dial without a server = %v, want Transient", err)
	}
	if meaning, advice := fault.Explanation(err); meaning == "" || advice == "" {
		t.Errorf("no explanation: %q, %q", meaning, advice)
	}
}

func tempFile(t testing.TB, size int64) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(f, size); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestInfo(t *testing.T) {
	p := nbdtest.QemuNBD(t, "-x", "disk", "-D", "a description", "-f", "raw", "-r", tempFile(t, 5<<20))
	cfg := at(p, "disk")
	cfg.Contexts = []string{nbd.BaseAllocation, "x:y"}
	info := dial(t, cfg).Info()
	want := nbd.Info{
		Size: 5 << 20, Description: "a description", MinBlock: info.MinBlock, PreferredBlock: 4096, MaxBlock: 32 << 20, Structured: true,
		Contexts: []string{nbd.BaseAllocation}, ReadOnly: true, MultiConn: true, CanFlush: true, CanFUA: true,
	}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Errorf("Info differs (-want +got):\n%s", diff)
	}
}

// dirtyDisk makes a qcow2 of 64 MiB with data at 1 and 33 MiB, a bitmap, and then writes at 33 MiB and zeros at 48.
func dirtyDisk(t testing.TB) string {
	t.Helper()
	nbdtest.Require(t, "qemu-img", "qemu-io")
	f := filepath.Join(t.TempDir(), "disk.qcow2")
	nbdtest.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", f, "64M")
	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 17 1M 256k", "-c", "write -P 18 33M 64k", "-c", "write -P 19 48M 1M", f)
	nbdtest.Run(t, "qemu-img", "bitmap", "--add", f, "b0")
	nbdtest.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 20 33M 64k", "-c", "write -z 48M 1M", f)
	return f
}

func TestSeveralContextsOfQemu(t *testing.T) {
	p := nbdtest.QemuNBD(t, "-x", "disk", "-f", "qcow2", "-B", "b0", "-r", dirtyDisk(t))
	cfg := at(p, "disk")
	const dirty = "qemu:dirty-bitmap:b0"
	cfg.Contexts = []string{nbd.BaseAllocation, dirty}
	c := dial(t, cfg)
	if diff := cmp.Diff(cfg.Contexts, c.Info().Contexts); diff != "" {
		t.Fatalf("contexts (-want +got):\n%s", diff)
	}
	got := map[string][]nbd.Extent{}
	for name := range map[string]bool{nbd.BaseAllocation: true, dirty: true} {
		for off := int64(0); off < c.Info().Size; {
			m, err := c.BlockStatus(t.Context(), off, c.Info().Size-off)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range m[name] {
				got[name] = append(got[name], e)
				off += e.Length
			}
		}
	}
	want := map[string][]nbd.Extent{
		nbd.BaseAllocation: {{1 << 20, 3}, {256 << 10, 0}, {33<<20 - 1<<20 - 256<<10, 3}, {64 << 10, 0}, {31<<20 - 64<<10, 3}},
		dirty:              {{33 << 20, 0}, {64 << 10, 1}, {15<<20 - 64<<10, 0}, {1 << 20, 1}, {15 << 20, 0}},
	}
	for name := range want {
		if diff := cmp.Diff(want[name], joined(got[name])); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// joined joins neighbours with equal flags.
func joined(list []nbd.Extent) []nbd.Extent {
	var out []nbd.Extent
	for _, e := range list {
		if n := len(out); n > 0 && out[n-1].Flags == e.Flags {
			out[n-1].Length += e.Length
		} else {
			out = append(out, e)
		}
	}
	return out
}

func TestTLS(t *testing.T) {
	dir := nbdtest.Certificates(t)
	other := nbdtest.Certificates(t)
	_, good := nbdtest.TLS(t, dir)
	_, stranger := nbdtest.TLS(t, other)
	noCert := good.Clone()
	noCert.Certificates = nil
	wrongName := good.Clone()
	wrongName.ServerName = "elsewhere.example"
	file := tempFile(t, 1<<20)
	servers := map[string]*nbdtest.Process{
		"nbdkit":   nbdtest.NBDKitTCP(t, "--tls=require", "--tls-verify-peer", "--tls-certificates="+dir, "random", "1M", "seed=1"),
		"qemu-nbd": nbdtest.QemuNBDTCP(t, "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=yes,dir="+dir, "--tls-creds", "tls0", "-f", "raw", file),
	}
	for name, p := range servers {
		t.Run(name, func(t *testing.T) {
			cfg := at(p, "")
			cfg.TLS = good
			c := dial(t, cfg)
			if err := c.Read(t.Context(), make([]byte, 1<<20), 0); err != nil {
				t.Fatal(err)
			}
			for what, tc := range map[string]nbd.Config{
				"plain": {}, "no client certificate": {TLS: noCert}, "unknown CA": {TLS: stranger}, "wrong name": {TLS: wrongName},
			} {
				bad := at(p, "")
				bad.TLS = tc.TLS
				c, err := nbd.Dial(t.Context(), bad)
				if err == nil {
					_ = c.Close()
					t.Errorf("%s: Dial worked", what)
				} else if k := fault.KindOf(err); k != fault.Denied && !(what == "no client certificate" && k == fault.Transient) {
					t.Errorf("%s: %v, kind %v, want Denied", what, err, k)
				}
			}
		})
	}
	t.Run("server without TLS", func(t *testing.T) {
		p := nbdtest.NBDKit(t, "memory", "1M")
		cfg := at(p, "")
		cfg.TLS = good
		if _, err := nbd.Dial(t.Context(), cfg); fault.KindOf(err) != fault.Denied {
			t.Errorf("Dial = %v, want Denied", err)
		}
	})
}

func TestCancelLeavesOtherRequestsAlone(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		cancelSome(t, at(nbdtest.NBDKit(t, "-t", "32", "--filter=delay", "random", "8M", "seed=6", "rdelay=50ms"), ""))
	})
	t.Run("TLS", func(t *testing.T) {
		dir := nbdtest.Certificates(t)
		cfg := at(nbdtest.NBDKitTCP(t, "-t", "32", "--tls=require", "--tls-certificates="+dir, "--filter=delay", "random", "8M", "seed=6", "rdelay=50ms"), "")
		_, cfg.TLS = nbdtest.TLS(t, dir)
		cancelSome(t, cfg)
	})
}

// cancelSome cancels half of many reads and looks at what became of the others.
func cancelSome(t *testing.T, cfg nbd.Config) {
	want := copiedSeed(t, "8M", "seed=6")
	cfg.Connections = 1
	c := dial(t, cfg)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			off := int64(i) * (256 << 10)
			b := make([]byte, 256<<10)
			if i%2 == 0 {
				stop := make(chan struct{})
				go func() { defer close(stop); cancel() }()
				err := c.Read(ctx, b, off)
				<-stop
				sum := sha256.Sum256(b)
				if err == nil {
					return // it was faster
				}
				if !errors.Is(err, context.Canceled) {
					t.Errorf("cancelled read: %v", err)
				}
				_ = c.Read(t.Context(), make([]byte, 512), 0) // replies go on arriving
				if sha256.Sum256(b) != sum {
					t.Error("a cancelled read's buffer was written to")
				}
				return
			}
			if err := c.Read(ctx, b, off); err != nil {
				t.Error(err)
			} else if !bytes.Equal(b, want[off:off+256<<10]) {
				t.Errorf("wrong data at %d", off)
			}
		})
	}
	wg.Wait()
}

func copiedSeed(t testing.TB, args ...string) []byte {
	p := nbdtest.NBDKit(t, append([]string{"random"}, args...)...)
	return copied(t, p.Network, p.Address, "")
}

func TestConnectionCutFailsWhatIsInFlight(t *testing.T) {
	for _, limit := range []int64{0, 10, 200, 5000, 1 << 20, 3<<20 + 7} {
		t.Run(strconv.FormatInt(limit, 10), func(t *testing.T) {
			p := nbdtest.NBDKit(t, "random", "8M", "seed=6")
			proxy := nbdtest.NewProxy(t, p.Network, p.Address, func(int) int64 { return limit })
			c, err := nbd.Dial(t.Context(), nbd.Config{Network: proxy.Network, Address: proxy.Address, Connections: 1})
			for off := int64(0); err == nil; off = (off + 1<<20) % (8 << 20) {
				err = c.Read(t.Context(), make([]byte, 1<<20), off)
			}
			if fault.KindOf(err) != fault.Transient {
				t.Errorf("error %v, want Transient", err)
			}
			if limit >= 5000 && !errors.Is(err, nbd.ErrConnectionLost) {
				t.Errorf("error %v, want ErrConnectionLost", err)
			}
			if proxy.Cuts() == 0 {
				t.Error("the proxy cut nothing")
			}
			if c != nil {
				_ = c.Close()
				if err := c.Read(t.Context(), make([]byte, 1), 0); !errors.Is(err, nbd.ErrClosed) && !errors.Is(err, nbd.ErrConnectionLost) {
					t.Errorf("read after Close: %v", err)
				}
			}
		})
	}
}

func TestKilledServer(t *testing.T) {
	p := nbdtest.NBDKit(t, "memory", "8M")
	c := dial(t, at(p, ""))
	p.Kill()
	err := c.Read(t.Context(), make([]byte, 512), 0)
	if !errors.Is(err, nbd.ErrConnectionLost) {
		t.Errorf("read: %v", err)
	}
	if m, _ := fault.Explanation(err); !strings.Contains(m, "broke") {
		t.Errorf("explanation %q", m)
	}
}
