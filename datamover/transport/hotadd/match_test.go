//go:build linux

package hotadd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const serial = "cairn-abcdefgh234567"

// tree is what a kernel would show, by path; a "/" at the end makes a directory.
type tree map[string]string

// guestWith makes a tree of a guest's own.
func guestWith(t *testing.T, files tree) guest {
	t.Helper()
	root := t.TempDir()
	g := guest{blockdev.System{Sys: filepath.Join(root, "sys"), Dev: filepath.Join(root, "dev"), Proc: filepath.Join(root, "proc")}}
	for _, dir := range []string{filepath.Join(g.Sys, "block"), g.Dev, g.Proc} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plug(t, root, files)
	return g
}

func plug(t *testing.T, root string, files tree) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		err := os.MkdirAll(dir, 0o755)
		if err == nil && dir != path {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// page makes a page of vital product data.
func page(code byte, body string) string {
	return string([]byte{0, code, byte(len(body) >> 8), byte(len(body))}) + body
}

// designator makes one entry of page 83h.
func designator(set, kind byte, id string) string {
	return string([]byte{set, kind, 0, byte(len(id))}) + id
}

func TestNamed(t *testing.T) {
	const uuid = "6f8e5c60-1111-4000-8000-0123456789ab"
	const short = "7f8e5c60-1111-4000-8000-0123456789ab" // older oVirt gives also SCSI disks only 20 of its characters
	files := tree{
		"sys/block/vda/serial":              serial + "\n",
		"sys/block/vdb/serial":              uuid[:20],
		"sys/block/vdc/serial":              serial[:10],
		"sys/block/sda/device/vpd_pg80":     page(0x80, "scsi-one"),
		"sys/block/sdb/device/vpd_pg83":     page(0x83, designator(1, 3, "naa-bits")+designator(2, 0, "scsi-two")),
		"sys/block/sdc/device/vpd_pg83":     page(0x83, designator(2, 1, "VENDOR  scsi-three ")),
		"sys/block/sdd/device/wwid":         "naa.6000c29000000001\n",
		"sys/block/sde/device/vpd_pg80":     page(0x80, "  padded  "),
		"sys/block/sdf/device/vpd_pg80":     page(0x81, "other-page"),
		"sys/block/sdi/device/vpd_pg80":     page(0x80, short[:20]),
		"sys/block/sdg/device/vpd_pg83":     page(0x83, designator(2, 0, "cut"))[:9],
		"sys/block/sdh/device/vpd_pg80":     "\x00",
		"sys/block/nvme0n1/device/serial":   "nvme-one            ",
		"sys/block/nvme0c0n1/device/serial": "nvme-one",
		"sys/block/nvme0c0n1/hidden":        "1\n",
		"sys/block/loop0/size":              "0",
		"sys/block/vdd/serial":              "same",
		"sys/block/vde/serial":              "same",
	}
	g := guestWith(t, files)
	for want, names := range map[string][]string{
		serial: {"vda"}, uuid: {"vdb"}, "scsi-one": {"sda"}, "scsi-two": {"sdb"}, "scsi-three": {"sdc"}, "naa.6000c29000000001": {"sdd"},
		"padded": {"sde"}, short: {"sdi"}, short[:20] + "-other": {"sdi"}, "nvme-one": {"nvme0n1"}, "same": {"vdd", "vde"},
		"cairn-": nil, "other-page": nil, "naa-bits": nil, "cut": nil, "SCSI-ONE": nil, uuid[:20]: {"vdb"}, uuid[:19]: nil,
	} {
		got, err := g.named(want)
		if diff := cmp.Diff(names, got); diff != "" || err != nil {
			t.Errorf("disks with the serial %q (-want +got), %v:\n%s", want, err, diff)
		}
	}
	if _, err := (guest{blockdev.System{Sys: "/nowhere"}}).named(serial); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without sysfs: %v", err)
	}
}

// mib is a disk of 1 MiB, "sda", in a tree of its own, with more files.
func mib(more tree) tree {
	out := tree{"sys/block/sda/device/vpd_pg80": page(0x80, serial), "sys/block/sda/dev": "8:0\n", "sys/block/sda/ro": "0\n", "sys/block/sda/size": "2048\n"}
	for k, v := range more {
		out[k] = v
	}
	return out
}

func TestRefusedInWords(t *testing.T) {
	part := tree{"sys/block/sda/sda1/partition": "1", "sys/block/sda/sda1/dev": "8:1"}
	with := func(base, more tree) tree {
		out := tree{}
		for _, m := range []tree{base, more} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	tests := map[string]struct {
		files   tree
		size    int64
		writing bool
		kind    fault.Kind
		words   string
	}{
		"two with the serial":   {mib(tree{"sys/block/vda/serial": serial}), 1 << 20, false, fault.Conflict, "2 disks have this serial: sda, vda"},
		"too large":             {mib(nil), 1<<20 - 512, false, fault.Conflict, "has 1048576 bytes, and 1048064 were announced"},
		"too small":             {mib(nil), 1<<20 + 1, false, fault.Conflict, "1048577 were announced"},
		"read-only target":      {mib(tree{"sys/block/sda/ro": "1"}), 1 << 20, true, fault.Denied, "read-only"},
		"mounted":               {mib(tree{"proc/self/mountinfo": "26 1 8:0 / /data rw - ext4 /dev/sda rw\n"}), 1 << 20, false, fault.Conflict, "mounted at /data"},
		"its root":              {mib(with(part, tree{"proc/self/mountinfo": "26 1 8:1 / / rw - ext4 /dev/root rw\n"})), 1 << 20, true, fault.Conflict, "mounted at /"},
		"mounted by its name":   {mib(with(part, tree{"proc/self/mountinfo": "26 1 0:33 / /data rw - btrfs /dev/sda1 rw\n"})), 1 << 20, false, fault.Conflict, "mounted at /data"},
		"held":                  {mib(tree{"sys/block/sda/holders/dm-0": ""}), 1 << 20, false, fault.Conflict, "in use by dm-0"},
		"a partition held":      {mib(with(part, tree{"sys/block/sda/sda1/holders/md0": ""})), 1 << 20, false, fault.Conflict, "in use by md0"},
		"swap":                  {mib(with(part, tree{"proc/swaps": "Filename Type\n/dev/sda1 partition 1 0 -2\n"})), 1 << 20, false, fault.Conflict, "swap"},
		"no serial":             {mib(nil), 1 << 20, false, fault.Invalid, "no serial"},
		"no size":               {mib(nil), 0, false, fault.Invalid, "size of 0"},
		"never appears":         {mib(tree{"sys/block/sda/device/vpd_pg80": page(0x80, "another")}), 1 << 20, false, fault.Transient, "did not appear within"},
		"without a node in dev": {mib(nil), 1 << 20, false, fault.Transient, "did not appear within"},
	}
	for name, tt := range tests {
		o := Options{Wait: 20 * time.Millisecond, System: guestWith(t, tt.files).System}
		e := hypervisors.Export{Transport: hypervisors.TransportHotadd, Serial: serial, SizeBytes: tt.size, Writable: tt.writing}
		if name == "no serial" {
			e.Serial = ""
		}
		var err error
		if tt.writing {
			_, err = o.OpenTarget(t.Context(), e)
		} else {
			_, err = o.OpenSource(t.Context(), e)
		}
		if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.words) {
			t.Errorf("%s: %v (%v), want %v with %q", name, err, fault.KindOf(err), tt.kind, tt.words)
			continue
		}
		if meaning, advice := fault.Explanation(err); tt.kind != fault.Invalid && (meaning == "" || advice == "") {
			t.Errorf("%s: %v is not explained", name, err)
		}
	}
}

func TestOpenCanBeCanceled(t *testing.T) {
	o := Options{System: guestWith(t, nil).System}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	_, err := o.OpenSource(ctx, hypervisors.Export{Transport: hypervisors.TransportHotadd, Serial: serial, SizeBytes: 512})
	if fault.KindOf(err) != fault.Canceled {
		t.Errorf("canceled while waiting: %v", err)
	}
	_, err = o.OpenSource(t.Context(), hypervisors.Export{Transport: hypervisors.TransportNBD, Serial: serial, SizeBytes: 512})
	if fault.KindOf(err) != fault.Invalid {
		t.Errorf("export of another transport: %v", err)
	}
	_, err = o.OpenSource(t.Context(), hypervisors.Export{Transport: hypervisors.TransportHotadd, Serial: serial, SizeBytes: 512, Extents: hypervisors.ExtentMap{1, 16, 9, 0}})
	if fault.KindOf(err) != fault.Invalid {
		t.Errorf("extents of another disk: %v", err)
	}
}
