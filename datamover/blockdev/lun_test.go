//go:build linux

package blockdev_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/sanlab"
)

const (
	mib  = 1 << 20
	naa  = "naa.60014051234567890abcdef012345678"
	form = "360014051234567890ABCDEF012345678"
)

func TestCanonicalWWN(t *testing.T) {
	const want = "60014051234567890abcdef012345678"
	for _, s := range []string{naa, form, "wwn-0x" + want, "0x" + want, "scsi-3" + want, "mpath-3" + want, " " + want + "\n", "dm-uuid-mpath-3" + want} {
		if got := blockdev.CanonicalWWN(s); got != want {
			t.Errorf("%q is %q, want %q", s, got, want)
		}
	}
	for s, want := range map[string]string{
		"": "", "3": "", "eui.00253 85b": "00253_85b", "t10.IET     00010001   ": "t10.iet_00010001", "20025385b01234567": "0025385b01234567",
		"uuid.12345678-0000": "uuid.12345678-0000",
	} {
		if got := blockdev.CanonicalWWN(s); got != want {
			t.Errorf("%q is %q, want %q", s, got, want)
		}
	}
}

// fill writes random bytes to a file and returns them.
func fill(t *testing.T, name string, size int) []byte {
	t.Helper()
	p := make([]byte, size)
	rnd := rand.NewChaCha8([32]byte{1})
	_, _ = rnd.Read(p)
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestReadsPastTheCacheAndNeverWrites(t *testing.T) {
	l := sanlab.NewLVM(t, 8*mib, 8*mib)
	want := fill(t, l.Files[0], 8*mib)
	s := sanlab.Disguise(t, sanlab.Seen{Device: l.Devices[0], WWN: naa}, sanlab.Seen{Device: l.Devices[1], WWN: "naa.other678"})
	lun, err := blockdev.Options{System: s, Depth: 3}.Open(form, 8*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lun.Close() }()
	if lun.Size() != 8*mib || lun.Paths() != 1 {
		t.Errorf("%d bytes on %d paths", lun.Size(), lun.Paths())
	}
	flags := openFlags(t, l.Devices[0])
	if len(flags) != 1 || flags[0]&unix.O_ACCMODE != unix.O_RDONLY || flags[0]&unix.O_DIRECT == 0 {
		t.Errorf("the device is open with flags %o", flags)
	}
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(worker), 0))
			for range 30 {
				off, p := rnd.IntN(len(want)), make([]byte, 1+rnd.IntN(3*mib))
				n, err := lun.ReadAt(p, int64(off))
				if n != min(len(p), len(want)-off) || (err != nil) != (n < len(p)) || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p[:n], want[off:off+n]) {
					t.Errorf("%d bytes at %d: %d, %v", len(p), off, n, err)
				}
			}
		})
	}
	wg.Wait()
	// What another host writes is seen at once: nothing of it is in this machine's cache.
	f, err := os.OpenFile(l.Devices[0], os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	sector := make([]byte, 8192)
	at := -int(uintptrOf(sector)) & 4095
	copy(sector[at:], "changed")
	if _, err := f.WriteAt(sector[at:at+512], 4096); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	p := make([]byte, 7)
	if _, err := lun.ReadAt(p, 4096); err != nil || string(p) != "changed" {
		t.Errorf("after a change: %q, %v", p, err)
	}
	_ = lun.Close()
	if _, err := lun.ReadAt(p, 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// openFlags returns the flags of this process's descriptors of a device.
func openFlags(t *testing.T, device string) (out []int) {
	t.Helper()
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, l := range links {
		if to, err := os.Readlink(l); err != nil || to != device {
			continue
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + filepath.Base(l))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(info)) {
			if octal, ok := strings.CutPrefix(line, "flags:"); ok {
				var n int
				if _, err := fmt.Sscanf(strings.TrimSpace(octal), "%o", &n); err != nil {
					t.Fatal(err)
				}
				out = append(out, n)
			}
		}
	}
	return out
}

// TestPathThatFails gives a LUN two paths, of which the first loses its second half.
func TestPathThatFails(t *testing.T) {
	l := sanlab.NewLVM(t, 8*mib, 8*mib)
	want := fill(t, l.Files[0], 8*mib)
	fill(t, l.Files[1], 8*mib)
	s := sanlab.Disguise(t, sanlab.Seen{Device: l.Devices[0], WWN: naa}, sanlab.Seen{Device: l.Devices[1], WWN: naa})
	lun, err := blockdev.Options{System: s}.Open(naa, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lun.Close() }()
	if lun.Paths() != 2 {
		t.Fatalf("%d paths, want 2", lun.Paths())
	}
	broken := 0
	if filepath.Base(l.Devices[0]) > filepath.Base(l.Devices[1]) { // the path that is asked first
		broken = 1
	}
	if err := os.Truncate(l.Files[broken], 4*mib); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 8*mib)
	if _, err := lun.ReadAt(p, 0); err != nil || !bytes.Equal(p, want) {
		t.Errorf("with one bad path: %v", err)
	}
	if lun.Faults() == 0 {
		t.Error("no path has failed")
	}
	if err := os.Truncate(l.Files[1-broken], 4*mib); err != nil {
		t.Fatal(err)
	}
	_, err = lun.ReadAt(p, 0)
	if meaning, _ := fault.Explanation(err); fault.KindOf(err) != fault.Transient || meaning == "" {
		t.Errorf("with no good path: %v", err)
	}
}

func TestRefused(t *testing.T) {
	l := sanlab.NewLVM(t, 8*mib, 8*mib, 4*mib)
	fill(t, l.Files[0], 8*mib)
	a, b, c := l.Devices[0], l.Devices[1], l.Devices[2]
	tests := []struct {
		name  string
		seen  []sanlab.Seen
		wwn   string
		size  int64
		kind  fault.Kind
		words string
	}{
		{"not there", []sanlab.Seen{{Device: a, WWN: "naa.600140500000000"}}, naa, 0, fault.NotFound, "no device"},
		{"no WWN", nil, "sda", 0, fault.Invalid, "no WWN"},
		{"another size", []sanlab.Seen{{Device: a, WWN: naa}}, naa, 16 * mib, fault.Conflict, "8388608 bytes"},
		{"the kernel says another size than the device", []sanlab.Seen{{Device: a, WWN: naa, Size: 4 * mib}}, naa, 0, fault.Transient, "no such device"},
		{"two with one WWN and other content", []sanlab.Seen{{Device: a, WWN: naa}, {Device: b, WWN: naa}}, naa, 0, fault.Conflict, "not the same LUN"},
		{"two with one WWN and other sizes", []sanlab.Seen{{Device: a, WWN: naa}, {Device: c, WWN: naa}}, naa, 0, fault.Conflict, "not the same LUN"},
		{"two with one WWN and other serials", []sanlab.Seen{{Device: a, WWN: naa, Serial: "1"}, {Device: b, WWN: naa, Serial: "2"}}, naa, 0, fault.Conflict, "not the same LUN"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lun, err := blockdev.Options{System: sanlab.Disguise(t, tt.seen...)}.Open(tt.wwn, tt.size)
			if err == nil {
				_ = lun.Close()
			}
			if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v, want kind %v and %q", err, tt.kind, tt.words)
			}
			for _, d := range l.Devices {
				if n := len(openFlags(t, d)); n > 0 {
					t.Errorf("%s is still open %d times", d, n)
				}
			}
		})
	}
}

// TestMountedIsRefused mounts a file system of the LUN.
func TestMountedIsRefused(t *testing.T) {
	l := sanlab.NewLVM(t, 8*mib)
	if out, err := exec.Command("mke2fs", "-q", "-F", l.Devices[0]).CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	dir := t.TempDir()
	if err := unix.Mount(l.Devices[0], dir, "ext2", unix.MS_RDONLY, ""); err != nil {
		if err = unix.Mount(l.Devices[0], dir, "ext4", unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	_, err := blockdev.Options{System: sanlab.Disguise(t, sanlab.Seen{Device: l.Devices[0], WWN: naa})}.Open(naa, 0)
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "is mounted at "+dir) {
		t.Errorf("a mounted LUN: %v", err)
	}
}

func TestWWNs(t *testing.T) {
	l := sanlab.NewLVM(t, mib)
	got, err := sanlab.Disguise(t, sanlab.Seen{Device: l.Devices[0], WWN: naa}).WWNs()
	if diff := cmp.Diff([]string{blockdev.CanonicalWWN(naa)}, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}
