//go:build linux

package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/internal/boundary"
)

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestSources gives a machine its configuration in several places; the first one in order wins, value by value.
func TestSources(t *testing.T) {
	r := root(t.TempDir())
	t.Setenv("CREDENTIALS_DIRECTORY", r.path("cred"))
	if _, err := r.readConfig(t.Context(), "", mountSeed); err == nil || !strings.Contains(err.Error(), "there is none") {
		t.Errorf("nothing anywhere: %v", err)
	}
	write(t, r.path(ConfigFile), "cairn: {manager: \"file:1\", name: file}\n")
	write(t, r.path("cred/config.yaml"), "cairn: {token: cred}\n")
	write(t, r.path("sys/firmware/qemu_fw_cfg/by_name/"+FwCfgName+"/raw"), "cairn: {name: fw}\n")
	write(t, r.path("proc/cmdline"), "quiet cairn.mtu=1400\n")
	got, err := r.readConfig(t.Context(), "", mountSeed)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Manager: "file:1", Name: "fw", Token: "cred", Network: Network{MTU: 1400},
		Sources: []string{"kernel command line", "fw_cfg", "systemd credential", ConfigFile}}
	if diff := cmp.Diff(got, want, comparePrefix); diff != "" {
		t.Error(diff)
	}
	write(t, r.path("sys/firmware/qemu_fw_cfg/by_name/"+FwCfgName+"/raw"), "something: else\n")
	if _, err := r.readConfig(t.Context(), "", mountSeed); err == nil || !strings.Contains(err.Error(), "fw_cfg") {
		t.Errorf("a document for nobody in fw_cfg: %v", err)
	}
}

// TestVolumeLabel reads labels that real programs wrote.
func TestVolumeLabel(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name, kind string
		make       []string
	}{
		{"fat16", "vfat", []string{"mkfs.vfat", "-F", "16", "-C", "-n", "CIDATA", "fat16", "16384"}},
		{"fat32", "vfat", []string{"mkfs.vfat", "-F", "32", "-C", "-n", "CIDATA", "fat32", "65536"}},
		{"iso", "iso9660", []string{"xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", "iso", "src"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tool, err := exec.LookPath(tt.make[0])
			if err != nil {
				tool = "/usr/sbin/" + tt.make[0]
			}
			if _, err := os.Stat(tool); err != nil {
				t.Skipf("%s is not installed", tt.make[0])
			}
			write(t, filepath.Join(dir, "src/user-data"), "cairn: {}\n")
			cmd := exec.Command(tool, tt.make[1:]...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if got := seedFileSystem(filepath.Join(dir, tt.name)); got != tt.kind {
				t.Errorf("got %q, want %q", got, tt.kind)
			}
		})
	}
	write(t, filepath.Join(dir, "empty"), "")
	if got := seedFileSystem(filepath.Join(dir, "empty")); got != "" {
		t.Errorf("an empty file is taken for %s", got)
	}
}

func FuzzVolumeLabel(f *testing.F) {
	p := make([]byte, 512)
	p[510], p[511] = 0x55, 0xaa
	copy(p[43:], "CIDATA     FAT16   ")
	for q := range boundary.Binary(p[40:70]) {
		f.Add(append(append(append([]byte{}, p[:40]...), q...), p[70:]...))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		if kind, label := volumeLabel(p); kind == "" && label != "" || len(label) > 32 {
			t.Errorf("kind %q, label %q", kind, label)
		}
	})
}

// fakeModules is a module directory with a log of what was put into the kernel.
func fakeModules(t *testing.T) (m *modules, log *[]string) {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "modules.dep"), "virtio_pci.ko: virtio.ko virtio_ring.ko\nvirtio_ring.ko: virtio.ko\nvirtio.ko:\nbroken.ko: virtio.ko\nabsent.ko:\n")
	write(t, filepath.Join(dir, "modules.alias"), "# comment\nalias pci:v00001AF4d*sv*sd*bc*sc*i* virtio_pci\nalias acpi*:PNP0C0C:* absent\n")
	write(t, filepath.Join(dir, "modules.always"), "virtio\n")
	m, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	log = &[]string{}
	m.insert = func(file string) error {
		*log = append(*log, moduleName(file))
		return map[string]error{"broken": unix.ENOEXEC, "absent": unix.ENODEV, "virtio": unix.EEXIST}[moduleName(file)]
	}
	return m, log
}

func TestModules(t *testing.T) {
	m, log := fakeModules(t)
	sys := t.TempDir()
	write(t, filepath.Join(sys, "pci0/0000:00:01.0/modalias"), "pci:v00001AF4d00001041sv1sd2bc02sc00i00\n")
	write(t, filepath.Join(sys, "pnp/button/modalias"), "acpi:PNP0C0C:\n")
	if err := m.loadPresent(sys); err != nil {
		t.Errorf("a driver that does not fit is no error: %v", err)
	}
	if diff := cmp.Diff(*log, []string{"virtio", "virtio_ring", "virtio_pci", "absent"}); diff != "" {
		t.Error(diff)
	}
	if err := m.load("virtio-pci"); err != nil || len(*log) != 4 {
		t.Errorf("loaded again: %v, %v", err, *log)
	}
	if err := m.load("broken"); !errors.Is(err, unix.ENOEXEC) {
		t.Errorf("broken: %v", err)
	}
	if err := m.load("unknown"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unknown: %v", err)
	}
}

func TestParseUevent(t *testing.T) {
	got := parseUevent([]byte("add@/devices/x\x00ACTION=add\x00SUBSYSTEM=block\x00DEVNAME=sda\x00EMPTY=\x00"))
	if diff := cmp.Diff(got, uevent{"ACTION": "add", "SUBSYSTEM": "block", "DEVNAME": "sda", "EMPTY": ""}); diff != "" {
		t.Error(diff)
	}
}

func TestAwaitPowerKey(t *testing.T) {
	event := func(kind, code uint16, value uint32) []byte {
		p := make([]byte, 24)
		binary.NativeEndian.PutUint16(p[16:], kind)
		binary.NativeEndian.PutUint16(p[18:], code)
		binary.NativeEndian.PutUint32(p[20:], value)
		return p
	}
	other := bytes.Join([][]byte{event(1, 30, 1), event(1, 116, 0), event(0, 116, 1)}, nil)
	if awaitPowerKey(bytes.NewReader(other)) {
		t.Error("other keys, and the power key going up, switch off")
	}
	if !awaitPowerKey(bytes.NewReader(append(other, event(1, 116, 1)...))) {
		t.Error("the power key does not switch off")
	}
}

func TestClockOffset(t *testing.T) {
	sent := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	got := sent.Add(100 * time.Millisecond)
	p := make([]byte, 48)
	p[0], p[1] = 4<<3|4, 2
	binary.BigEndian.PutUint64(p[24:], ntpTime(sent))
	binary.BigEndian.PutUint64(p[32:], ntpTime(sent.Add(time.Hour+50*time.Millisecond)))
	binary.BigEndian.PutUint64(p[40:], ntpTime(sent.Add(time.Hour+50*time.Millisecond)))
	off, err := clockOffset(p, sent, got)
	if err != nil || (off-time.Hour).Abs() > time.Microsecond {
		t.Errorf("got %v, %v, want one hour", off, err)
	}
	for name, change := range map[string]func(p []byte){
		"unset server":     func(p []byte) { p[0] |= 3 << 6 },
		"kiss of death":    func(p []byte) { p[1] = 0 },
		"another question": func(p []byte) { p[24]++ },
		"a question":       func(p []byte) { p[0] = 4<<3 | 3 },
	} {
		q := bytes.Clone(p)
		change(q)
		if off, err := clockOffset(q, sent, got); err == nil {
			t.Errorf("%s gives %v", name, off)
		}
	}
	if far := time.Date(2040, 1, 2, 3, 4, 5, 0, time.UTC); !fromNTP(ntpTime(far)).Equal(far) {
		t.Errorf("2040 becomes %v", fromNTP(ntpTime(far)))
	}
}

// TestFindState lays out disks as sysfs shows them, with partition tables that hold the state's mark.
func TestFindState(t *testing.T) {
	r := root(t.TempDir())
	disk := func(name string, uuid []byte) { gptDisk(t, r, name, uuid) }
	disk("sda", make([]byte, 16))
	if found, err := r.findState(); err != nil || len(found) != 0 {
		t.Errorf("no state: %v, %v", found, err)
	}
	m, _ := fakeModules(t)
	if _, err := r.mountState(m); !errors.Is(err, errNoState) {
		t.Errorf("no state: %v", err)
	}
	id := stateOnDisk()
	if formatGUID(id) != StateUUID {
		t.Fatalf("%s is not %s", formatGUID(id), StateUUID)
	}
	disk("sdb", id[:])
	if found, err := r.findState(); err != nil || cmp.Diff(found, []string{r.path("dev/sdb2")}) != "" {
		t.Errorf("one state: %v, %v", found, err)
	}
	disk("sdc", id[:])
	if _, err := r.mountState(m); err == nil || !strings.Contains(err.Error(), "sdc2 all look like it") {
		t.Errorf("two states: %v", err)
	}
}

// gptDisk lays out a disk whose second partition has a UUID.
func gptDisk(t *testing.T, r root, name string, uuid []byte) {
	t.Helper()
	p := make([]byte, 34*512)
	copy(p[512:], "EFI PART")
	binary.LittleEndian.PutUint64(p[512+72:], 2)
	binary.LittleEndian.PutUint32(p[512+80:], 128)
	binary.LittleEndian.PutUint32(p[512+84:], 128)
	copy(p[1024+128+16:], uuid)
	write(t, r.path("dev/"+name), string(p))
	write(t, r.path("sys/devices/"+name+"/"+name+"2/partition"), "2\n")
	if err := os.MkdirAll(r.path("sys/class/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(r.path("sys/devices/"+name+"/"+name+"2"), r.path("sys/class/block/"+name+"2")); err != nil {
		t.Fatal(err)
	}
}

// stateOnDisk is StateUUID as a table holds it.
func stateOnDisk() (g [16]byte) {
	text := []byte("cairn-mover-stat")
	copy(g[:], text)
	for _, r := range [][2]int{{0, 4}, {4, 6}, {6, 8}} {
		for i, j := r[0], r[1]-1; i < j; i, j = i+1, j-1 {
			g[i], g[j] = g[j], g[i]
		}
	}
	return g
}

func FuzzGPT(f *testing.F) {
	p := make([]byte, 2048)
	copy(p[512:], "EFI PART")
	binary.LittleEndian.PutUint64(p[512+72:], 2)
	binary.LittleEndian.PutUint32(p[512+80:], 128)
	binary.LittleEndian.PutUint32(p[512+84:], 128)
	for q := range boundary.Binary(p[512+64 : 512+96]) {
		f.Add(append(append(append([]byte{}, p[:512+64]...), q...), p[512+96:]...), 2)
	}
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		if n < 1 || n > 128 {
			return
		}
		if id, err := gptUUID(bytes.NewReader(p), n); err == nil && len(id) != 36 {
			t.Errorf("%q", id)
		}
	})
}

func TestFirmware(t *testing.T) {
	sys := t.TempDir()
	if got := firmware(sys); got != "bios" {
		t.Errorf("got %q", got)
	}
	write(t, filepath.Join(sys, "firmware/efi/fw_platform_size"), "64\n")
	if got := firmware(sys); got != "uefi" {
		t.Errorf("got %q", got)
	}
	params := make([]byte, 4096)
	params[0x1ec] = 3
	write(t, filepath.Join(sys, "kernel/boot_params/data"), string(params))
	if got := firmware(sys); got != "uefi, secure boot" {
		t.Errorf("got %q", got)
	}
}

func TestListeners(t *testing.T) {
	dir := t.TempDir()
	const head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	write(t, filepath.Join(dir, "tcp"), head+"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"+
		"   1: 0F02000A:8001 0202000A:20F9 01 00000000:00000000 00:00000000 00000000     0        0 2 1\n")
	write(t, filepath.Join(dir, "udp"), head+"   2: 0F02000A:0044 0202000A:0043 01 00000000:00000000 00:00000000 00000000     0        0 3 1\n"+
		"   3: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 4 1\n")
	if diff := cmp.Diff(listeners(dir), []string{"tcp 0100007F:1F90", "udp 00000000:0044"}); diff != "" {
		t.Error(diff)
	}
	// On this machine itself: a socket that listens is found.
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := fmt.Sprintf("tcp 0100007F:%04X", l.Addr().(*net.TCPAddr).Port)
	if got := listeners("/proc/net"); !slices.Contains(got, port) {
		t.Errorf("%s is not among %v", port, got)
	}
}
