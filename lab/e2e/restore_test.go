package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// What a restore lets one choose: pool, format, network, start; UEFI variables come back, holes stay holes.
func TestRestoreAsNewVMWithChoices(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, kvmlab.Spec{Name: "choice", UEFI: true, NIC: true, Rate: 0.5, Title: "A title",
		Disks: []kvmlab.Disk{{MiB: 256, Fill: 4 << 20}, {MiB: 64, Raw: true}, {MiB: 4, Kind: kvmlab.CDROM}}})
	point := s.backup(s.vmID, s.repo.ID, nil)
	if len(point.Disks) != 2 || len(point.Skipped) != 1 {
		t.Fatalf("%d disks in the restore point, %d skipped; want 2 and the CD-ROM: %+v", len(point.Disks), len(point.Skipped), point.Skipped)
	}
	if point.Skipped[0].Reason == "" {
		t.Error("the CD-ROM is left out and nobody says why")
	}
	pool, dir, _ := s.smallPool(256)
	name := s.guest.Name + "-new"
	run := s.restore(map[string]any{
		"restore_point": point.ID, "mode": "new", "name": name, "start": true, "datastore": pool,
		"disks":    []map[string]any{{"id": "vda", "format": "raw"}, {"id": "vdb", "datastore": s.lab.Pool(), "format": "qcow2"}},
		"networks": map[string]string{"user": ""},
	})
	t.Logf("result: %+v", run.Tasks[0].Result)
	vm, err := s.lab.Find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	disks, err := vm.Disks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(disks["vda"], dir+"/") || !strings.HasPrefix(disks["vdb"], s.lab.PoolDir()+"/") {
		t.Errorf("disks lie in %v, want vda in the small pool and vdb in the lab's", disks)
	}
	xml, err := vm.XML(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"type='raw'", "type='qcow2'", "<title>A title</title>", "<nvram"} {
		if !strings.Contains(xml, want) {
			t.Errorf("the restored VM has no %s", want)
		}
	}
	if strings.Contains(xml, "<interface type='user'>") && !strings.Contains(xml, "<link state='down'/>") {
		t.Error("the NIC is connected although the network was mapped to nothing")
	}
	if original := s.virsh("dumpxml", s.guest.Name); strings.Contains(xml, between(original, "<mac address='", "'")) {
		t.Error("the restored VM has the MAC address of the original")
	}
	var st syscall.Stat_t
	if err := syscall.Stat(disks["vda"], &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 256<<20 || st.Blocks*512 > 64<<20 {
		t.Errorf("the raw disk has %d bytes of which %d are allocated; want 256 MiB, sparse", st.Size, st.Blocks*512)
	}
	status, err := vm.Status(t.Context()) // it was started by the restore
	if err != nil || len(status.Boot) == 0 {
		t.Fatalf("restored guest: %+v, %v", status, err)
	}
	s.remove(name)
	s.noLeftovers()
}

func between(s, from, to string) string {
	_, s, _ = strings.Cut(s, from)
	s, _, _ = strings.Cut(s, to)
	return s
}

// An original gets its disks back in place, byte for byte as they were frozen, and goes on being backed up.
func TestRestoreInPlace(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, kvmlab.Spec{Name: "place", Rate: -1, Disks: []kvmlab.Disk{{MiB: 64, Fill: 8 << 20}, {MiB: 32}}})
	s.write(10)
	want, err := s.guest.Hashes(t.Context()) // it writes only when told to
	if err != nil {
		t.Fatal(err)
	}
	point := s.backup(s.vmID, s.repo.ID, nil)
	s.write(10)
	before, err := s.guest.Disks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.guest.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.restore(map[string]any{"restore_point": point.ID, "mode": "in-place"})
	after, err := s.guest.Disks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for target, image := range after {
		got, err := s.lab.HashImage(t.Context(), image)
		if err != nil {
			t.Fatal(err)
		}
		if got != want[target] {
			t.Errorf("%s is not what was frozen", target)
		}
		if _, err := os.Stat(before[target]); before[target] != image && err == nil {
			t.Errorf("the replaced disk %s is still there", before[target])
		}
	}
	s.guestRuns()
	s.write(3)
	next := s.backup(s.vmID, s.repo.ID, nil)
	t.Logf("the backup after the restore: %s, %s", next.Disks[0].Mode, next.Disks[0].FullReason)
	s.oneDiskInPlace(next)
	s.noLeftovers()
	s.verifyAll()
}

// oneDiskInPlace gives the VM its second disk back as a restore point has it, whose freeze was of what it holds now. The first one
// stays, and keeps no record of changes that nobody asks for any more.
func (s *scene) oneDiskInPlace(point client.RestorePoint) {
	s.t.Helper()
	want, err := s.guest.Hashes(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(10)
	if err := s.guest.Stop(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	before, err := s.guest.Disks(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	stays, err := s.lab.HashImage(s.t.Context(), before["vda"])
	if err != nil {
		s.t.Fatal(err)
	}
	s.restore(map[string]any{"restore_point": point.ID, "mode": "in-place", "only_disks": []string{"vdb"}})
	after, err := s.guest.Disks(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	if after["vda"] != before["vda"] || after["vdb"] == before["vdb"] {
		s.t.Errorf("the VM had the disks %v and has %v", before, after)
	}
	for image, want := range map[string]string{after["vda"]: stays, after["vdb"]: want["vdb"]} {
		if got, err := s.lab.HashImage(s.t.Context(), image); err != nil || got != want {
			s.t.Errorf("%s holds %s, want %s (%v)", image, got, want, err)
		}
		if info := command(s.t, "qemu-img", "info", "--output=json", image); strings.Contains(info, "bitmaps") {
			s.t.Errorf("%s has records of changes: %s", image, info)
		}
	}
	s.backup(s.vmID, s.repo.ID, nil) // off: its guest would see that its disks are not of one instant
}

// A stopped VM is backed up without being started, and its next backup while running goes on from there.
func TestStoppedVM(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, kvmlab.Spec{Name: "off", Rate: -1, Disks: []kvmlab.Disk{{MiB: 64, Fill: 8 << 20}}})
	s.backup(s.vmID, s.repo.ID, nil)
	s.write(10)
	if err := s.guest.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	disks, err := s.guest.Disks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for target, image := range disks {
		if want[target], err = s.lab.HashImage(t.Context(), image); err != nil {
			t.Fatal(err)
		}
	}
	point := s.backup(s.vmID, s.repo.ID, nil)
	t.Logf("stopped: %s %q, read %d bytes", point.Disks[0].Mode, point.Disks[0].FullReason, point.Disks[0].ReadBytes)
	if state, err := s.guest.State(t.Context()); err != nil || state != "shut off" {
		t.Errorf("the VM is %s, %v", state, err)
	}
	s.guestRuns()
	s.write(5)
	running := s.backup(s.vmID, s.repo.ID, nil)
	t.Logf("running again: %s %q", running.Disks[0].Mode, running.Disks[0].FullReason)
	name := s.guest.Name + "-copy"
	s.restore(map[string]any{"restore_point": point.ID, "mode": "new", "name": name})
	vm, err := s.lab.Find(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	restored, err := vm.Disks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for target, image := range restored {
		if got, err := s.lab.HashImage(t.Context(), image); err != nil || got != want[target] {
			t.Errorf("%s is not what the stopped VM had: %v", target, err)
		}
	}
	s.remove(name)
	s.noLeftovers()
	s.verifyAll()
}

// With a guest agent the file system is frozen for the instant of the freeze, thawed in every case, and the restore
// point says so; without one it says that it is crash consistent, and why.
func TestQuiesce(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, kvmlab.Spec{Name: "agent", Agent: true, Disks: []kvmlab.Disk{{MiB: 64, Kind: kvmlab.FileSystem}}})
	if err := s.guest.WaitAgent(t.Context()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		quiesce, consistency string
		recovery             bool
	}{{"require", "filesystem", false}, {"never", "crash", true}}
	for _, tt := range tests {
		s.write(5)
		point := s.backup(s.vmID, s.repo.ID, map[string]any{"quiesce": tt.quiesce})
		if string(point.Consistency) != tt.consistency {
			t.Errorf("quiesce %s: %s consistent (%s), want %s", tt.quiesce, point.Consistency, point.ConsistencyNote, tt.consistency)
		}
		if status := s.virsh("qemu-agent-command", s.guest.Name, `{"execute":"guest-fsfreeze-status"}`); !strings.Contains(status, "thawed") {
			t.Errorf("quiesce %s: the guest is left %s", tt.quiesce, status)
		}
		name := s.guest.Name + "-" + tt.quiesce
		s.restore(map[string]any{"restore_point": point.ID, "mode": "new", "name": name})
		f, err := os.Open(s.restoredDisks(name)["vda"])
		if err != nil {
			t.Fatal(err)
		}
		dirty, err := kvmlab.NeedsRecovery(f)
		_ = f.Close()
		if err != nil || dirty != tt.recovery {
			t.Errorf("quiesce %s: the restored file system needs recovery: %v, want %v (%v)", tt.quiesce, dirty, tt.recovery, err)
		}
		s.remove(name)
	}
	s.noLeftovers()
}
