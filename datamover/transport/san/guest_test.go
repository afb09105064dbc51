//go:build linux

package santransport_test

import (
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/sanlab"
)

// attached is a guest on a storage network: two LUNs, on which real lvm2 has made and activated a volume group.
type attached struct {
	*sanlab.Guest
	t     *testing.T
	files []string // of the LUNs, on this machine
	names []string // of the LUNs, as a platform writes them
}

// iscsi is what is attached by the kernel's own iSCSI initiator: two LUNs of tgt, the first of them by two paths.
type iscsi struct {
	attached
	target *sanlab.Target
	tids   []int
}

const lunBytes = 160 * mib

// reader is the program that reads in the guest.
const reader = "./lab/sanlab/sanread"

// lunFiles makes the files of two empty LUNs.
func lunFiles(t *testing.T) (files []string) {
	dir := t.TempDir()
	for _, name := range []string{"lun0", "lun1"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, lunBytes); err != nil {
			t.Fatal(err)
		}
		files = append(files, path)
	}
	return files
}

func attach(t *testing.T) *iscsi {
	a := &iscsi{attached: attached{t: t, files: lunFiles(t), names: []string{"t10.cairn-lun0", "t10.cairn-lun1"}}}
	a.Guest = sanlab.StartGuest(t, sanlab.Machine{Programs: []string{reader}})
	a.target = sanlab.StartTarget(t)
	a.Network()
	var paths []string
	for _, i := range []int{0, 1, 0} {
		iqn, tid := a.target.Export(a.files[i], strings.TrimPrefix(a.names[i], "t10."))
		a.tids = append(a.tids, tid)
		paths = append(paths, a.Login(a.target, iqn))
	}
	if got := strings.Join(paths, " "); got != "sda sdb sdc" {
		t.Fatalf("the LUNs are %s", got)
	}
	t.Logf("WWNs as the kernel names them: %s", strings.Fields(a.Shell("cat /sys/block/sd*/device/wwid")))
	return a
}

// platform makes what a platform keeps on its LUNs, "sd" for /dev/sda and /dev/sdb.
func (a *attached) platform(kind string) {
	a.Shell(strings.ReplaceAll(`exec 2>&1
lvm pvcreate -q /dev/sda /dev/sdb
lvm vgcreate -q -s 1m pool /dev/sda /dev/sdb
lvm lvcreate -q -Zn -Wn -n raw -L 6m pool /dev/sdb
lvm lvcreate -q -Zn -Wn -n base -L 10m pool /dev/sda
lvm lvcreate -q -Zn -Wn -n middle -i 2 -I 16k -L 8m pool
lvm lvcreate -q -Zn -Wn -n top -L 6m pool /dev/sda
lvm lvextend -q -L +4m pool/base /dev/sdb
lvm lvextend -q -L +5m pool/raw /dev/sda
dd if=/dev/urandom of=/tmp/source bs=1M count=5
dd if=/dev/urandom of=/dev/pool/raw bs=1M count=11 conv=fsync
D=/dev/pool
qemu-img create -q -f qcow2 -o compat=0.10 $D/base 20M
qemu-io -f qcow2 -c "write -s /tmp/source 1M 8M" -c "write -c -P 5 18M 64k" $D/base
qemu-img create -q -f qcow2 -o cluster_size=32k,compression_type=zstd -b $D/base -F qcow2 $D/middle 20M
qemu-io -f qcow2 -c "write -s /tmp/source 3M 2M" -c "write -z 6M 1M" -c "write -c -P 7 15M 32k" $D/middle
qemu-img create -q -f qcow2 -o extended_l2=on -b $D/middle -F qcow2 $D/top 24M
qemu-io -f qcow2 -c "write -s /tmp/source 4M 1M" -c "write -s /tmp/source 22M 12k" -c "write -z 23M 512k" $D/top
qemu-img convert -f qcow2 -O raw $D/top /tmp/want-chain
dd if=$D/raw of=/tmp/want-raw bs=1M
sync`, "/dev/sd", "/dev/"+kind))
}

func (a *attached) layer(volume, called string, format hypervisors.DiskFormat) hypervisors.SANLayer {
	a.t.Helper()
	uuid := strings.TrimSpace(a.Run("lvm", "lvs", "-a", "--noheadings", "-o", "lv_uuid", "pool/"+volume))
	return hypervisors.SANLayer{Volume: uuid, VolumeName: volume, Name: called, Format: format}
}

func (a *attached) export(size int64, layers ...hypervisors.SANLayer) hypervisors.Export {
	return hypervisors.Export{
		Transport: hypervisors.TransportSAN, Name: "vda", SizeBytes: size,
		SAN: &hypervisors.SAN{LUNs: []hypervisors.LUN{{WWN: a.names[0], SizeBytes: lunBytes}, {WWN: a.names[1], SizeBytes: lunBytes}}, Group: "pool", Layers: layers},
	}
}

// answer is what sanread prints.
type answer struct {
	Read, Skipped        int64
	Error, Kind, Meaning string
	Log                  string
}

// reading starts the reader in the guest; the file stays where out says. With change, it runs between the first byte
// that was read and the rest.
func (a *attached) reading(e hypervisors.Export, out, change string) answer {
	a.t.Helper()
	ask := map[string]any{"export": e, "out": out}
	if change != "" {
		ask["halfway"], ask["go"] = "/tmp/halfway", "/tmp/go"
		a.Shell("rm -f /tmp/halfway /tmp/go")
	}
	in, err := json.Marshal(ask)
	if err != nil {
		a.t.Fatal(err)
	}
	p := a.Start(in, "/bin/sanread")
	if change != "" {
		a.Shell("while [ ! -e /tmp/halfway ]; do sleep 0.05; done; exec 2>&1; " + change + "; touch /tmp/go")
	}
	text, err := p.Wait()
	if err != nil {
		a.t.Fatal(err)
	}
	var got answer
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		a.t.Fatal(err)
	}
	return got
}

// sums are what the LUNs' files hold, on the host.
func (a *attached) sums() (out [2][sha256.Size]byte) {
	a.t.Helper()
	for i := range out {
		f, err := os.Open(a.files[i])
		if err != nil {
			a.t.Fatal(err)
		}
		h := sha256.New()
		_, err = io.Copy(h, f)
		_ = f.Close()
		if err != nil {
			a.t.Fatal(err)
		}
		out[i] = [sha256.Size]byte(h.Sum(nil))
	}
	return out
}

// disks are the two that platform has made: a chain of three images, and a raw one.
func (a *attached) disks() (chain, raw hypervisors.Export) {
	a.t.Helper()
	return a.export(24*mib, a.layer("top", "", hypervisors.QCOW2), a.layer("middle", "/dev/pool/middle", hypervisors.QCOW2),
		a.layer("base", "/dev/pool/base", hypervisors.QCOW2)), a.export(11*mib, a.layer("raw", "", hypervisors.Raw))
}

// full reads both and compares them with what qemu-img and dd read of the activated volumes.
func (a *attached) full(chain, raw hypervisors.Export) {
	a.t.Helper()
	for _, tt := range []struct {
		name string
		e    hypervisors.Export
		most int64
	}{{"chain", chain, 10 * mib}, {"raw", raw, 11 * mib}} {
		got := a.reading(tt.e, "/tmp/got-"+tt.name, "")
		if got.Error != "" || got.Read == 0 || got.Read > tt.most {
			a.t.Errorf("%s: %+v", tt.name, got)
		}
		a.Shell("cmp /tmp/got-" + tt.name + " /tmp/want-" + tt.name)
		a.t.Logf("%s: %d bytes read, %d skipped", tt.name, got.Read, got.Skipped)
	}
}

// partial reads what has changed of the chain into a file that holds something else.
func (a *attached) partial(chain hypervisors.Export) {
	a.t.Helper()
	const d, u = hypervisors.Data, hypervisors.Unchanged
	var err error
	chain.Extents, err = hypervisors.NewExtentMap(24*mib, extents(
		hypervisors.Extent{Offset: 0, Length: 4*mib - 64<<10, State: u}, hypervisors.Extent{Offset: 4*mib - 64<<10, Length: mib, State: d},
		hypervisors.Extent{Offset: 5*mib - 64<<10, Length: 17 * mib, State: u}, hypervisors.Extent{Offset: 22*mib - 64<<10, Length: 2*mib + 64<<10, State: d}))
	if err != nil {
		a.t.Fatal(err)
	}
	a.Shell(`dd if=/dev/urandom of=/tmp/parent bs=64k count=384; cp /tmp/parent /tmp/got-partial; cp /tmp/parent /tmp/want-partial
dd if=/tmp/want-chain of=/tmp/want-partial bs=64k skip=63 seek=63 count=16 conv=notrunc
dd if=/tmp/want-chain of=/tmp/want-partial bs=64k skip=351 seek=351 count=33 conv=notrunc`)
	if got := a.reading(chain, "/tmp/got-partial", ""); got.Error != "" || got.Read > 2*mib {
		a.t.Errorf("%+v", got)
	}
	a.Shell("cmp /tmp/got-partial /tmp/want-partial")
}

// TestGuest reads real LUNs in a real guest. It is one test, for the guest takes its time to boot.
func TestGuest(t *testing.T) {
	a := attach(t)
	a.platform("sd")
	chain, raw := a.disks()

	t.Run("full, of LUNs that refuse writes and with nothing activated", func(t *testing.T) {
		a.Run("lvm", "vgchange", "-q", "-an", "pool")
		before := a.sums()
		for _, tid := range a.tids {
			a.target.ReadOnly(tid, true)
		}
		if out, err := a.Try("sh", "-c", "dd if=/dev/zero of=/dev/sdb bs=4096 count=1 conv=fsync oflag=direct seek=30000"); err == nil {
			t.Errorf("the LUN takes writes: %s", out)
		}
		a.full(chain, raw)
		if a.sums() != before {
			t.Error("the LUNs have changed")
		}
		if out := a.Run("dmsetup", "ls"); !strings.Contains(out, "No devices found") {
			t.Errorf("something is activated: %s", out)
		}
		for _, tid := range a.tids {
			a.target.ReadOnly(tid, false)
		}
		a.Run("lvm", "vgchange", "-q", "-ay", "pool")
	})
	t.Run("partial", func(t *testing.T) {
		a.partial(chain)
	})
	t.Run("a path that fails while it is read", func(t *testing.T) {
		got := a.reading(raw, "/tmp/got-path", "echo offline >/sys/block/sda/device/state")
		if got.Error != "" || !strings.Contains(got.Log, "failed on a path") {
			t.Errorf("%+v", got)
		}
		a.Shell("cmp /tmp/got-path /tmp/want-raw; echo running >/sys/block/sda/device/state")
	})
	t.Run("changes while it is read", func(t *testing.T) {
		for _, tt := range []struct {
			name, change string
			e            hypervisors.Export
			noticed      bool
		}{
			{"another volume", "lvm lvcreate -q -Zn -Wn -n other -L 1m pool", chain, false},
			{"extended", "lvm lvextend -q -L +1m pool/base", chain, true},
			{"snapshot", "lvm lvcreate -q -s -n shot -L 2m pool/raw", raw, true},
			{"moved", "lvm lvremove -q -f pool/shot; lvm pvmove -q -i 1 -n top /dev/sda /dev/sdb", chain, true},
		} {
			got := a.reading(tt.e, "/tmp/got-changed", tt.change)
			if noticed := got.Kind == "transient" && strings.Contains(got.Meaning, "changed the disk"); noticed != tt.noticed || !tt.noticed && got.Error != "" {
				t.Errorf("%s: %+v", tt.name, got)
			}
		}
	})
	t.Run("refused", func(t *testing.T) {
		a.Shell(`exec 2>&1
lvm lvcreate -q -s -n shot -L 2m pool/raw
lvm lvcreate -q --type raid1 -m1 --nosync -n mirrored -L 4m pool
lvm lvcreate -q --type mirror -m1 --nosync --mirrorlog core -n old -L 4m pool
lvm lvcreate -q --type thin-pool -Zn -n thinpool -L 4m pool
lvm lvcreate -q -T -V 8m -n thin pool/thinpool`)
		for volume, words := range map[string]string{
			"shot": "store of a snapshot", "mirrored": "RAID", "old": "mirror", "thinpool": "thin pool", "thin": "thin volume", "mirrored_rimage_0": "part of another",
		} {
			got := a.reading(a.export(mib, a.layer(volume, "", hypervisors.Raw)), "/tmp/refused", "")
			if got.Kind != "unsupported" || !strings.Contains(got.Error, words) {
				t.Errorf("%s: %+v", volume, got)
			}
		}
		other := filepath.Join(t.TempDir(), "other") // another LUN under the name of the second
		if err := os.WriteFile(other, make([]byte, lunBytes), 0o600); err != nil {
			t.Fatal(err)
		}
		iqn, _ := a.target.Export(other, "cairn-lun1")
		a.Login(a.target, iqn)
		if got := a.reading(raw, "/tmp/refused", ""); got.Kind != "conflict" || !strings.Contains(got.Error, "not the same LUN") {
			t.Errorf("two LUNs with one WWN: %+v", got)
		}
	})
	if name := os.Getenv("CAIRN_SAVE_METADATA"); name != "" { // for testdata of package lvm2
		if err := os.WriteFile(name, []byte(a.Shell("lvm pvck --dump metadata /dev/sda")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
