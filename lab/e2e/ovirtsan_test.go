package e2e

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/kvmlab"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
	"github.com/cairn-backup/cairn/lab/sanlab"
)

const (
	ovirtOnSAN = "22222222-0000-4000-8000-000000000001"
	extent     = 128 << 20 // of vdsm's groups
	noVolume   = "00000000-0000-0000-0000-000000000000"
)

// lun is the LUN of a simulated storage domain, as vdsm lays it out, by real lvm2. The simulated hosts keep volumes in files; what is
// frozen of them is copied here.
type lun struct {
	*sanlab.LVM
	s       *site
	dir     string // of the engine's files
	domain  string
	wwn     string
	volumes map[string]string // that are laid out, and what each lies on
	slot    int
}

// newLUN lays out the empty group of a storage domain.
func newLUN(s *site, name, dir string) *lun {
	s.t.Helper()
	found := regexp.MustCompile(`<storage_domain [^>]*id="([0-9a-f-]{36})"`).FindStringSubmatch(s.ask("GET", "/storagedomains?search=name%3D"+name, ""))
	if found == nil {
		s.t.Fatalf("the engine has no storage domain %s", name)
	}
	l := &lun{LVM: sanlab.NewLVM(s.t, 8<<30), s: s, dir: dir, domain: found[1], volumes: map[string]string{}, slot: 4}
	unit := regexp.MustCompile(`<logical_unit [^>]*id="([^"]+)"`).FindStringSubmatch(s.ask("GET", "/storagedomains/"+l.domain, ""))
	if unit == nil {
		s.t.Fatal("the domain has no LUN")
	}
	l.wwn = unit[1]
	l.Run("pvcreate", "-q", "--metadatasize", "128m", "--metadatacopies", "2", "--metadataignore", "n", l.Devices[0])
	l.Run("vgcreate", "-q", "-s", "128m", "--addtag", "RHAT_storage_domain", "--addtag", "MDT_VERSION=5", l.domain, l.Devices[0])
	for _, special := range []string{"metadata", "ids", "leases", "inbox", "outbox", "xleases", "master"} {
		l.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", special, "-L", "128m", l.domain)
	}
	return l
}

// sys is the sysfs of a machine that sees the LUN and no other disk.
func (l *lun) sys() string {
	l.s.t.Helper()
	return sanlab.Disguise(l.s.t, sanlab.Seen{Device: l.Devices[0], WWN: l.wwn, Serial: "s1"}).Sys
}

type engineVolume struct {
	ID     string    `xml:"id,attr"`
	Disk   engineRef `xml:"disk"`
	Parent engineRef `xml:"parent"`
}

type engineRef struct {
	ID string `xml:"id,attr"`
}

// update lays out what the engine has made since the last time. The volume that a guest writes gets bytes that are nobody's:
// who reads it reads what no disk ever held.
func (l *lun) update() {
	s := l.s
	s.t.Helper()
	var all struct {
		Volumes []engineVolume `xml:"disk_snapshot"`
	}
	text := s.ask("GET", "/storagedomains/"+l.domain+"/disksnapshots?include_active=true", "")
	if err := xml.Unmarshal([]byte(text), &all); err != nil || len(all.Volumes) == 0 {
		s.t.Fatalf("volumes of the domain: %v in %s", err, text)
	}
	frozen, there := map[string]bool{}, map[string]bool{}
	for _, v := range all.Volumes {
		frozen[v.Parent.ID], there[v.ID] = true, true
	}
	for id := range l.volumes {
		if !there[id] { // merged
			l.Run("lvremove", "-q", "-f", l.domain+"/"+id)
			delete(l.volumes, id)
		}
	}
	for _, v := range all.Volumes {
		parent := v.Parent.ID
		if parent == "" {
			parent = noVolume
		}
		if l.volumes[v.ID] == "" {
			l.Run("lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", v.ID, "-L", "128m", "--addtag", "IU_"+v.Disk.ID, "--addtag", "PU_"+parent,
				"--addtag", fmt.Sprintf("MD_%d", l.slot), l.domain)
			l.volumes[v.ID] = parent
			l.slot++
		}
		if frozen[v.ID] {
			l.put(v.ID, filepath.Join(l.dir, "images", v.Disk.ID, v.ID))
		} else {
			l.fill(v.ID)
		}
	}
}

// place is where a volume begins on the LUN, by lvm2's own words.
func (l *lun) place(volume string) int64 {
	l.s.t.Helper()
	start := strings.TrimSpace(l.Run("pvs", "--noheadings", "--nosuffix", "--units", "b", "-o", "pe_start", l.Devices[0]))
	devices := l.Run("lvs", "--noheadings", "-o", "devices", l.domain+"/"+volume)
	first := regexp.MustCompile(`\((\d+)\)`).FindAllStringSubmatch(devices, -1)
	if len(first) != 1 {
		l.s.t.Fatalf("volume %s lies on %q", volume, devices)
	}
	a, errA := strconv.ParseInt(start, 10, 64)
	b, errB := strconv.ParseInt(first[0][1], 10, 64)
	if errA != nil || errB != nil {
		l.s.t.Fatalf("the group begins at %q, volume %s at %q", start, volume, devices)
	}
	return a + b*extent
}

func (l *lun) write(volume string, content io.Reader) {
	l.s.t.Helper()
	f, err := os.OpenFile(l.Files[0], os.O_WRONLY, 0)
	if err != nil {
		l.s.t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.Copy(io.NewOffsetWriter(f, l.place(volume)), content); err != nil {
		l.s.t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		l.s.t.Fatal(err)
	}
}

func (l *lun) put(volume, file string) {
	l.s.t.Helper()
	f, err := os.Open(file)
	if err != nil {
		l.s.t.Fatal(err)
	}
	defer f.Close()
	l.write(volume, f)
}

func (l *lun) fill(volume string) {
	l.s.t.Helper()
	l.write(volume, bytes.NewReader(bytes.Repeat([]byte("leaf"), 1<<20)))
}

// sum hashes the LUN's allocated ranges and where they lie.
func (l *lun) sum() [sha256.Size]byte {
	l.s.t.Helper()
	f, err := os.Open(l.Files[0])
	if err != nil {
		l.s.t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	for at := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return [sha256.Size]byte(h.Sum(nil))
		}
		end, errEnd := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err := cmp.Or(err, errEnd); err != nil {
			l.s.t.Fatal(err)
		}
		fmt.Fprintf(h, "%d-%d:", start, end)
		if _, err := io.Copy(h, io.NewSectionReader(f, start, end-start)); err != nil {
			l.s.t.Fatal(err)
		}
		at = end
	}
}

// newSANSite is a site with a VM whose disks lie on a block domain, "iscsi" or "fcp" (all other LUNs), and the directory of the
// engine's files.
func newSANSite(t *testing.T, storage, lun string) (*site, string) {
	t.Helper()
	needLab(t)
	dir, err := os.MkdirTemp("", "san-") // a short path, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return newSite(t, ovirtsim.Config{Dir: dir, Site: ovirtsim.Site{DataCenters: []ovirtsim.DataCenter{{
		Name: "Default", Networks: []string{"ovirtmgmt"}, Storage: []ovirtsim.StorageDomain{{Name: "data1"}, {Name: "san1", Storage: storage, LUN: lun}},
		Clusters: []ovirtsim.Cluster{{Name: "Default", Hosts: []string{"host1"}, VMs: []ovirtsim.VM{
			{ID: ovirtOnSAN, Name: "database", Up: true, Networks: []string{"ovirtmgmt"},
				Disks: []ovirtsim.Disk{{Storage: "san1", NoTracking: true}, {Bytes: 8 << 20, Storage: "san1", Format: "raw"}}},
		}}},
	}}}}), dir
}

// TestOVirtSAN backs up a VM whose disks lie on an iSCSI domain by a mover that sees the domain's LUN and has the repository's storage
// mounted: neither a host nor the network between mover and manager carries the data. What is stored is what the engine had
// frozen, also where a snapshot of somebody else's lies below ours.
func TestOVirtSAN(t *testing.T) {
	s, dir := newSANSite(t, "iscsi", "")
	l := newLUN(s, "san1", dir)
	m := s.enrolIn(l.sys(), "m1")
	m.kill()
	m.start("--fingerprint", s.fingerprint(), "--repository", s.repo.Path)
	s.online(m)
	vm := s.named("database")

	var points []string
	var frozen []map[string][32]byte
	for round := range 3 {
		ended, lan := s.overSAN(m, vm, map[string]any{"transport": "san"}, l.update)
		s.through(ended, "m1", "san")
		point := s.point(ended)
		t.Logf("backup %d: read %d bytes, stored %d; LAN: %v", round, point.ReadBytes, point.StoredBytes, lan)
		if round == 0 && lan.up+lan.down > point.StoredBytes/4 {
			t.Errorf("%d bytes went over the LAN for %d stored", lan.up+lan.down, point.StoredBytes)
		}
		points, frozen = append(points, point.ID), append(frozen, s.frozenHashes(ovirtOnSAN))
		if round == 0 {
			s.ask("POST", "/vms/"+ovirtOnSAN+"/snapshots", "<snapshot><description>before the update</description><persist_memorystate>false</persist_memorystate></snapshot>")
			s.wait("the snapshot", func() bool {
				return !strings.Contains(s.ask("GET", "/vms/"+ovirtOnSAN+"/snapshots", ""), "<snapshot_status>locked")
			})
		}
		if err := s.engine.Write(t.Context(), ovirtOnSAN, 4); err != nil {
			t.Fatal(err)
		}
	}
	if sent := s.engine.Images().Stats().BytesSent; sent != 0 {
		t.Errorf("the hosts have sent %d bytes of disks", sent)
	}
	stored := s.stored(points)
	for i, p := range points {
		for disk, want := range frozen[i] {
			if stored[p][disk] != want {
				t.Errorf("backup %d holds something else of disk %s than was frozen", i, disk)
			}
		}
	}

	// Where the LUN does not say that another volume lies on the one that is to be read, somebody may write that one: it is not read.
	before := s.engine.Images().Stats().BytesSent
	ended, _ := s.overSAN(m, vm, map[string]any{"transport": "san", "fallback": true}, func() {
		l.update()
		for id, parent := range l.volumes {
			if parent != noVolume {
				l.Run("lvchange", "-q", "--deltag", "PU_"+parent, l.domain+"/"+id)
			}
		}
	})
	for _, x := range ended.Tasks[0].Transfers {
		if x.Transport != "imageio" {
			t.Errorf("disk %s of volumes that nothing lies on went by %s", x.Disk, x.Transport)
		}
	}
	if s.engine.Images().Stats().BytesSent == before {
		t.Error("the hosts have sent nothing")
	}
	if words := fmt.Sprint(ended.Tasks[0].Warnings); ended.State != client.StateWarning || !strings.Contains(words, "san") {
		t.Errorf("the fall-back is not said: %s, %s", ended.State, words)
	}
	order := s.disks(ovirtOnSAN)
	run := s.restore(map[string]any{"restore_point": points[len(points)-1], "mode": "new", "name": "database-copy", "transport": "network"})
	s.sameDisks("the copy", s.named("database-copy").PlatformID, order, frozen[len(frozen)-1])
	t.Logf("restored by run %s", run.ID)
	s.removeVM(s.named("database-copy").PlatformID)
	for _, left := range s.leftovers("") {
		if !strings.Contains(left, "before the update") {
			t.Errorf("left on the engine: %s", left)
		}
	}
	s.verifyAll()
}

// overSAN backs a VM up and lays out on the LUN what the engine has frozen, once it is.
func (s *site) overSAN(m *mover, vm client.VM, how map[string]any, layOut func()) (client.Run, traffic) {
	s.t.Helper()
	return s.backUpPaused(m, "backup.frozen", vm.ID, how, layOut)
}

// TestOVirtSANFromMoverVM: a Debian mover's VM is deployed with the target of the storage domain, to which it logs in by CHAP. It sees
// the LUN, reads the frozen volumes there, and writes nothing to it.
func TestOVirtSANFromMoverVM(t *testing.T) {
	if os.Getenv("CAIRN_SOAK") != "1" {
		t.Skip("makes an image of a whole Debian system and starts it; set CAIRN_SOAK=1")
	}
	const id, user, secret = "cairn-vmdata", "mover", "S3cret/12345"
	s, dir := newSANSite(t, "iscsi", "t10."+id)
	l := newLUN(s, "san1", dir)
	target := sanlab.StartTarget(t)
	iqn, tid := target.Export(l.Files[0], id)
	target.CHAP(tid, user, secret)
	target.ReadOnly(tid, true)

	s.overSANFromMoverVM(l, fmt.Sprintf("iscsi://%s:%s@10.0.2.2:%d/%s", user, url.PathEscape(secret), target.Port, iqn))
	files, err := filepath.Glob(filepath.Join(s.data, "catalog.db*"))
	if err != nil || len(files) == 0 {
		t.Errorf("no catalog: %v", err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || bytes.Contains(b, []byte("S3cret")) {
			t.Errorf("%s shows the secret, or cannot be read: %v", f, err)
		}
	}
	s.withoutMover("m3")
}

// TestOVirtSANFromMoverVMOverNVMe: the same over NVMe/TCP. The target is the kernel of another VM, whose disk the LUN is; the engine
// knows the namespace by its NGUID.
func TestOVirtSANFromMoverVMOverNVMe(t *testing.T) {
	if os.Getenv("CAIRN_SOAK") != "1" {
		t.Skip("makes an image of a whole Debian system and starts it; set CAIRN_SOAK=1")
	}
	const nqn, nguid = "nqn.2026-01.test.cairn:vmdata", "6e2d9a40-1c77-4f0e-8a55-3b90aa51c203"
	s, dir := newSANSite(t, "fcp", "eui."+strings.ReplaceAll(nguid, "-", ""))
	l := newLUN(s, "san1", dir)
	port := sanlab.FreePort(t)
	array := sanlab.StartGuest(t, sanlab.Machine{Disks: l.Files[:1], Forward: map[int]int{port: sanlab.NVMePort}})
	array.Network()
	array.ServeNVMe(nqn, 1, sanlab.Namespace{Device: "/dev/vda", UUID: "8f3c1e52-77f1-4b57-9d3a-0c6a55b0e103", NGUID: nguid})
	s.overSANFromMoverVM(l, fmt.Sprintf("nvme+tcp://10.0.2.2:%d/%s", port, nqn))
	s.withoutMover("m3")
}

// overSANFromMoverVM backs the VM up twice by a Debian mover's VM that is deployed with a session on the storage network. Nothing
// is written to the LUN meanwhile.
func (s *site) overSANFromMoverVM(l *lun, session string) {
	s.t.Helper()
	s.lab = kvmlab.New(s.t, kvmlab.Options{Private: true})
	ovirt := s.connection
	s.connection = s.connect("lab", s.lab.URI())
	m := s.deployed("m3", kvmlab.MoverImage(s.t, "mover-debian"), map[string]any{"sessions": []string{session}, "memory_bytes": 1 << 30})
	s.connection = ovirt
	vm := s.named("database")
	for round := range 2 {
		var before [sha256.Size]byte
		ended, _ := s.overSAN(m, vm, map[string]any{"transport": "san"}, func() {
			l.update()
			before = l.sum()
		})
		s.through(ended, "m3", "san")
		if l.sum() != before {
			s.t.Errorf("backup %d has written to the LUN", round)
		}
		point := s.point(ended).ID
		stored := s.stored([]string{point})[point]
		for disk, want := range s.frozenHashes(ovirtOnSAN) {
			if stored[disk] != want {
				s.t.Errorf("backup %d holds something else of disk %s than was frozen", round, disk)
			}
		}
		if err := s.engine.Write(s.t.Context(), ovirtOnSAN, 4); err != nil {
			s.t.Fatal(err)
		}
	}
}

// withoutMover removes the mover's VM, after which nothing is left.
func (s *site) withoutMover(name string) {
	s.t.Helper()
	s.must("DELETE", "/movers/"+s.movers()[name].ID, nil, nil)
	s.clean("", "in the end")
	s.verifyAll()
}
