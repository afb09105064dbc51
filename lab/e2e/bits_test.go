package e2e

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// Every restored disk equals, byte for byte, what a second reader (nbdcopy) saw of the same frozen export; an
// incremental reads what is dirty and at most one per cent more; the restored VM boots, and its guest finds its own
// checksums right.
func TestRestoredDisksAreWhatWasFrozen(t *testing.T) {
	const incrementals = 5
	s := newScene(t, kvmlab.Options{}, kvmlab.Spec{Name: "bits", Disks: []kvmlab.Disk{
		{MiB: 96, Fill: 16 << 20}, {MiB: 32, Raw: true},
	}})
	dir := t.TempDir()
	var points []string
	for round := range 1 + incrementals {
		p := s.pauseAt("backup.transferred")
		run, err := s.startBackup(s.vmID, s.repo.ID, nil)
		if err != nil {
			t.Fatal(err)
		}
		p.reached()
		dirty := map[string]int64{}
		for _, e := range s.exports() {
			s.nbdcopy(e, frozenFile(dir, round, e.disk))
			if e.bitmap != "" {
				dirty[e.disk] = s.dirtyBytes(e)
			}
		}
		p.release()
		point := s.point(s.ended(run.ID, "succeeded", "warning"))
		points = append(points, point.ID)
		for _, d := range point.Disks {
			switch {
			case round > 0 && d.ID == "vda":
				if d.Mode != "incremental" || dirty["vda"] == 0 {
					t.Fatalf("round %d: vda was read as %s (%s), %d bytes dirty", round, d.Mode, d.FullReason, dirty["vda"])
				}
				if d.ReadBytes > dirty["vda"]+dirty["vda"]/100 {
					t.Errorf("round %d: read %d bytes of vda, %d are dirty", round, d.ReadBytes, dirty["vda"])
				}
				t.Logf("round %d: vda dirty %d, read %d", round, dirty["vda"], d.ReadBytes)
			case round > 0 && d.ID == "vdb" && (d.Mode != "full" || d.FullReason == ""):
				t.Errorf("round %d: the raw disk was read as %s, reason %q; want full with a reason", round, d.Mode, d.FullReason)
			}
		}
		s.write(20)
	}
	for round, id := range points {
		name := fmt.Sprintf("%s-r%d", s.guest.Name, round)
		s.restore(map[string]any{"restore_point": id, "mode": "new", "name": name})
		for target, raw := range s.restoredDisks(name) {
			sameContent(t, fmt.Sprintf("round %d %s", round, target), raw, frozenFile(dir, round, target))
		}
		if round < len(points)-1 {
			s.remove(name)
			continue
		}
		vm, err := s.lab.Find(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if err := vm.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		status, err := vm.Status(t.Context())
		if err != nil {
			t.Fatalf("restored guest: %v", err)
		}
		if len(status.Boot) == 0 {
			t.Fatalf("the restored guest checked no disk: %+v", status)
		}
		t.Logf("restored guest: %+v", status.Boot)
		s.remove(name)
	}
	s.noLeftovers()
	s.verifyAll()
}

func frozenFile(dir string, round int, disk string) string {
	return filepath.Join(dir, fmt.Sprintf("frozen-%d-%s.raw", round, disk))
}
