//go:build linux

package guest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/nocloud"
)

// Where disks are in a machine, as sysfs has it.
const (
	atVirtioBlk  = "sys/devices/pci0000:00/0000:00:05.0/virtio2/block/"
	atVirtioSCSI = "sys/devices/pci0000:00/0000:00:06.0/virtio3/host2/target2:0:0/2:0:0:1/block/"
	atSATA       = "sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/"
	atISCSI      = "sys/devices/platform/host4/session1/target4:0:0/4:0:0:1/block/"
	atFC         = "sys/devices/pci0000:00/0000:00:07.0/host5/rport-5:0-0/target5:0:0/5:0:0:1/block/"
	atNVMeTCP    = "sys/devices/virtual/nvme-fabrics/ctl/nvme1/"
	atNVMe       = "sys/devices/pci0000:00/0000:00:08.0/nvme/nvme0/"
)

func TestOwner(t *testing.T) {
	for _, tt := range []struct {
		where, name, serial string
		want                owner
	}{
		{atVirtioBlk, "vda", "", own},
		{atSATA, "sda", "", own},
		{atNVMe, "nvme0n1", "", own},
		{atVirtioSCSI, "sr0", "", own},
		{atVirtioSCSI, "sda", "", unknown},
		{atVirtioSCSI, "sda", hypervisors.NewSerial(), foreign},
		{atVirtioBlk, "vdb", hypervisors.NewSerial(), foreign},
		{atISCSI, "sda", "", foreign},
		{atISCSI, "sr0", "", foreign},
		{atFC, "sda", "", foreign},
		{atNVMeTCP, "nvme1n1", "", foreign},
		{"sys/devices/virtual/block/", "dm-0", "", foreign},
	} {
		r := root(t.TempDir())
		attach(t, r, tt.where, tt.name, tt.serial)
		for _, name := range []string{tt.name, tt.name + "2"} {
			if got := r.ownerOf(name); got != tt.want {
				t.Errorf("%s at %s (serial %q): owner %d, want %d", name, tt.where, tt.serial, got, tt.want)
			}
		}
	}
	if got := root(t.TempDir()).ownerOf("gone"); got != foreign {
		t.Errorf("a disk that is gone: owner %d, want %d", got, foreign)
	}
}

// attach makes a machine see a disk and its second partition.
func attach(t *testing.T, r root, where, name, serial string) {
	t.Helper()
	dir := where + name
	write(t, r.path(dir+"/size"), "100\n")
	write(t, r.path(dir+"/"+name+"2/size"), "50\n")
	write(t, r.path(dir+"/"+name+"2/partition"), "2\n")
	if serial != "" {
		write(t, r.path(dir+"/serial"), serial)
	}
	if err := os.MkdirAll(r.path("sys/class/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{name: dir, name + "2": dir + "/" + name + "2"} {
		if err := os.Symlink(r.path(to), r.path("sys/class/block/"+link)); err != nil {
			t.Fatal(err)
		}
	}
}

// bait is a disk that has all that a mover looks for: a NoCloud seed whose first blocks hold a table with a mover's state.
func bait(manager string) []byte {
	p := nocloud.Seed("i", "n", []byte("cairn: {manager: \""+manager+"\"}\n"))
	id := stateOnDisk()
	copy(p[512:], "EFI PART")
	binary.LittleEndian.PutUint64(p[512+72:], 2)
	binary.LittleEndian.PutUint32(p[512+80:], 128)
	binary.LittleEndian.PutUint32(p[512+84:], 128)
	copy(p[1024+128+16:], id[:])
	return p
}

// machineWith is a machine in which disks with baits are attached.
type machineWith struct {
	*testing.T
	root
	keep string
}

func newMachine(t *testing.T) machineWith {
	return machineWith{t, root(t.TempDir()), filepath.Join(t.TempDir(), "keep")}
}

// userData finds the document in a bait, as a mount would.
func userData(device, fs string) ([]byte, error) {
	p, err := os.ReadFile(device)
	_, p, ok := bytes.Cut(p, []byte("cairn: {"))
	p, _, end := bytes.Cut(p, []byte("}"))
	if err != nil || !ok || !end || fs != "iso9660" {
		return nil, fmt.Errorf("%s: there is no bait on its %s: %w", device, fs, err)
	}
	return fmt.Appendf(nil, "cairn: {%s}\n", p), nil
}

// plug attaches the disk that names a manager.
func (m machineWith) plug(where, name, manager string) {
	m.Helper()
	attach(m.T, m.root, where, name, "")
	write(m.T, m.path("dev/"+name), string(bait(manager)))
}

func (m machineWith) unplug(name string) {
	m.Helper()
	for _, link := range []string{"sys/class/block/" + name, "sys/class/block/" + name + "2", "dev/" + name} {
		if err := os.Remove(m.path(link)); err != nil {
			m.Fatal(err)
		}
	}
}

// manager is the manager that the machine would go to now.
func (m machineWith) manager() string {
	m.Helper()
	cfg, err := m.readConfig(m.Context(), m.keep, userData)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err.Error()
	}
	return cfg.Manager
}

// TestHostileDisk has disks of a customer's in a mover that starts. Each of them would send it to another manager, if it were taken
// for a seed, and would be written to, if it were taken for the mover's state.
func TestHostileDisk(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(m machineWith)
		want string
	}{
		{"beside the machine's own", func(m machineWith) { m.plug(atVirtioBlk, "vda", "own:1") }, "own:1"},
		{"beside a CD", func(m machineWith) { m.plug(atSATA, "sr0", "own:1") }, "own:1"},
		{"beside the command line", func(m machineWith) { write(m.T, m.path("proc/cmdline"), "cairn.manager=own:1\n") }, "own:1"},
		{"after the first start", func(m machineWith) {
			m.unplug("sda")
			m.plug(atVirtioSCSI, "sdb", "own:1")
			if got := m.manager(); got != "own:1" {
				m.Errorf("its first start: %q", got)
			}
			m.unplug("sdb")
			m.plug(atVirtioSCSI, "sda", "customer:1")
		}, "own:1"},
		{"in a mover that has enrolled", func(m machineWith) { write(m.T, m.path(StateDir+"/identity.pem"), "key") }, ""},
		{"in a mover that has tried to enrol", func(m machineWith) { write(m.T, m.path(StateDir+"/pending.pem"), "key") }, ""},
		{"at the first start", func(m machineWith) { m.plug(atVirtioSCSI, "sdb", "own:1") }, "are both NoCloud seeds of a mover, and differ"},
		{"with nothing else", func(machineWith) {}, "customer:1"}, // the bait is one, and no platform plugs a disk into a machine that is no mover yet
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(t)
			m.plug(atVirtioSCSI, "sda", "customer:1")
			tt.do(m)
			for range 2 { // also when it starts once more
				if got := m.manager(); got != tt.want && (tt.want == "" || !strings.Contains(got, tt.want)) {
					t.Errorf("it goes to %q, want %q", got, tt.want)
				}
			}
		})
	}
	m := newMachine(t)
	for name, where := range map[string]string{"sda": atISCSI, "sdb": atFC, "nvme1n1": atNVMeTCP} {
		m.plug(where, name, "customer:1")
	}
	if got := m.manager(); got != "" {
		t.Errorf("a LUN sends it to %q", got)
	}
	if found, err := m.findState(); err != nil || len(found) > 0 {
		t.Errorf("a LUN is the mover's state: %v, %v", found, err)
	}
}

// TestHostileState: the machine's own state is taken whatever others have; where that cannot be told apart, all are named.
func TestHostileState(t *testing.T) {
	m := newMachine(t)
	m.plug(atVirtioSCSI, "sda", "customer:1")
	for _, tt := range []struct {
		where, name string
		want        []string
	}{
		{atVirtioSCSI, "sdb", []string{m.path("dev/sda2"), m.path("dev/sdb2")}},
		{atVirtioBlk, "vda", []string{m.path("dev/vda2")}},
	} {
		m.plug(tt.where, tt.name, "own:1")
		found, err := m.findState()
		if err != nil || strings.Join(found, " ") != strings.Join(tt.want, " ") {
			t.Errorf("state on %v, %v, want %v", found, err, tt.want)
		}
	}
}
