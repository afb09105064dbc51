//go:build linux

package hotadd

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// sectorBytes is the unit of sizes in sysfs, whatever the disk's block size.
const sectorBytes = 512

// virtioSerial is all that a virtio block device shows of a serial.
const virtioSerial = 20

// guest is where the kernel shows what it knows; tests put a tree of their own there.
type guest struct{ blockdev.System }

// disk is what sysfs says of a whole disk.
type disk struct {
	name     string // "sda"
	number   string // "8:0"
	size     int64
	block    int // logical block size
	readOnly bool
}

func (g guest) dir(name string) string { return filepath.Join(g.Sys, "block", name) }

// named returns the disks with a serial.
func (g guest) named(serial string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(g.Sys, "block"))
	if err != nil {
		return nil, fault.Context("list disks", "", err)
	}
	var out []string
	for _, e := range entries {
		if dir := g.dir(e.Name()); blockdev.Attr(dir, "hidden") != "1" && hasSerial(dir, serial) {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// hasSerial says whether a disk is known by a serial.
func hasSerial(dir, serial string) bool {
	if virtio := blockdev.Attr(dir, "serial"); virtio != "" && virtio == serial[:min(len(serial), virtioSerial)] {
		return true
	}
	return slices.ContainsFunc(serials(dir), func(s string) bool {
		return s == serial || len(serial) > virtioSerial && s == serial[:virtioSerial]
	})
}

// serials are all by which a disk is known: that of a virtio disk or NVMe controller, or a SCSI disk's unit serial
// number, designator or world-wide name.
func serials(dir string) []string {
	out := vpdSerials(dir)
	for _, name := range []string{"serial", "device/serial", "device/wwid", "wwid"} {
		if got := blockdev.Attr(dir, name); got != "" {
			out = append(out, got)
		}
	}
	return out
}

// Plugged says whether the disk with this directory in sysfs was plugged in for a transfer: it is somebody else's, and
// nothing on it is meant for the mover.
func Plugged(dir string) bool {
	return slices.ContainsFunc(serials(dir), func(s string) bool { return strings.HasPrefix(s, hypervisors.SerialPrefix) })
}

// vpdSerials reads the two SCSI pages of vital product data that identify a disk: its unit serial number (80h) and its
// designators in ASCII (83h). Their numbers are big-endian.
func vpdSerials(dir string) []string {
	var out []string
	page := func(name string, code byte) []byte {
		b, err := os.ReadFile(filepath.Join(dir, "device", name))
		if err != nil || len(b) < 4 || b[1] != code {
			return nil
		}
		return b[4:min(len(b), 4+int(binary.BigEndian.Uint16(b[2:])))]
	}
	if p := page("vpd_pg80", 0x80); p != nil {
		out = append(out, strings.Trim(string(p), " \x00"))
	}
	for p := page("vpd_pg83", 0x83); len(p) >= 4 && len(p) >= 4+int(p[3]); p = p[4+int(p[3]):] {
		const ascii, vendorSpecific, t10 = 2, 0, 1
		id := string(p[4 : 4+int(p[3])])
		if p[0]&0xf != ascii {
			continue
		}
		switch kind := p[1] & 0xf; {
		case kind == t10 && len(id) > 8: // after the vendor's name
			out = append(out, strings.Trim(id[8:], " \x00"))
		case kind == vendorSpecific:
			out = append(out, strings.Trim(id, " \x00"))
		}
	}
	return out
}

// look reads what sysfs says of a disk.
func (g guest) look(name string) (disk, error) {
	dir := g.dir(name)
	d := disk{name: name, number: blockdev.Attr(dir, "dev"), readOnly: blockdev.Attr(dir, "ro") == "1", block: sectorBytes}
	sectors, err := strconv.ParseInt(blockdev.Attr(dir, "size"), 10, 54)
	if err != nil || sectors < 0 || d.number == "" {
		return d, fault.New(fault.NotFound, "look at disk", name, "it is going away")
	}
	d.size = sectors * sectorBytes
	if n, err := strconv.Atoi(blockdev.Attr(dir, "queue/logical_block_size")); err == nil && n >= sectorBytes && n&(n-1) == 0 {
		d.block = n
	}
	return d, nil
}

// check says why a disk with the right serial must not be opened.
func (g guest) check(d disk, e hypervisors.Export, writing bool) error {
	refuse := func(kind fault.Kind, meaning, advice, format string, args ...any) error {
		return fault.New(kind, "open disk", e.Serial, format, args...).Explain(meaning, advice)
	}
	if want := roundUp(e.SizeBytes, sectorBytes); d.size != want || e.SizeBytes <= 0 {
		return refuse(fault.Conflict, "The disk that was plugged into the mover is not the one that was announced.",
			"Look on the platform which disk the mover has, unplug it, and start the task again.",
			"/dev/%s has %d bytes, and %d were announced", d.name, d.size, e.SizeBytes)
	}
	if writing && d.readOnly {
		return refuse(fault.Denied, "The disk that is to be written was plugged into the mover read-only.",
			"Start the task again; if that does not help, restore over the network.", "/dev/%s is read-only", d.name)
	}
	if use := g.use(d); use != "" {
		return refuse(fault.Conflict, "Something in the mover uses the disk, so that it may change while it is read, or be damaged.",
			"Nothing in a mover may activate or mount disks by itself: switch off LVM, md, multipath and automount there.",
			"/dev/%s %s", d.name, use)
	}
	return nil
}

// use says in words what uses a disk or a partition of it; "" if nothing does.
func (g guest) use(d disk) string {
	names, numbers := []string{d.name}, []string{d.number}
	holders := []string{g.dir(d.name)}
	parts, _ := filepath.Glob(filepath.Join(g.dir(d.name), "*", "partition"))
	for _, p := range parts {
		dir := filepath.Dir(p)
		names, numbers, holders = append(names, filepath.Base(dir)), append(numbers, blockdev.Attr(dir, "dev")), append(holders, dir)
	}
	for _, dir := range holders {
		if h, _ := os.ReadDir(filepath.Join(dir, "holders")); len(h) > 0 {
			return "is in use by " + h[0].Name()
		}
	}
	return g.Occupant(names, numbers)
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

func roundDown(n, unit int64) int64 { return n / unit * unit }
