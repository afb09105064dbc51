package e2e

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/kvmlab"
	"github.com/cairn-backup/cairn/lab/netfault"
)

// TestTransferGoesOn ends the manager or the mover in the middle of a transfer of several packs: the backup goes on from
// the last durable pack, and what is sent twice is what was on its way.
func TestTransferGoesOn(t *testing.T) {
	const (
		pack  = 32 << 20
		held  = 2 * pack // what a mover of two goroutines has on its way
		fill  = 5 * pack
		slack = fill / 16 // ids, fingerprints, headers
	)
	tests := []struct {
		name string
		told string // in the run's events
		end  func(s *scene, m *mover)
		// A manager that is killed may not have written into its journal yet that it knows a pack: its content counts as known then.
		uncounted int64
	}{
		{"manager killed", "The manager was restarted; the task goes on.", func(s *scene, m *mover) {
			s.kill()
			s.start()
			m.proxy.Retarget(s.moversAddr)
		}, held + slack},
		{"manager stopped", "The manager stops; the task goes on when it is started again.", func(s *scene, m *mover) {
			s.stop()
			s.start()
			m.proxy.Retarget(s.moversAddr)
		}, 0},
		{"mover killed", "the mover was lost, and the transfer goes on", func(s *scene, m *mover) {
			m.kill()
			m.start("--fingerprint", s.fingerprint())
		}, 0},
	}
	for n, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newScene(t, kvmlab.Options{}, kvmlab.Spec{
				Name: fmt.Sprint("goeson", n), Rate: 0.5, Disks: []kvmlab.Disk{{MiB: 2 * fill >> 20, Fill: fill}},
			})
			m := s.enrol("m1")
			up := func() int64 { n, _ := m.proxy.Bytes(); return n }
			m.proxy.Set(netfault.Fault{Rate: 16 << 20}) // so that there is a middle
			run, err := s.startBackup(s.vmID, s.repo.ID, map[string]any{"mover": "m1"})
			if err != nil {
				t.Fatal(err)
			}
			begun := up()
			s.wait("the middle of the transfer", func() bool { return up()-begun > held+pack+pack/2 })
			before := up() - begun
			tt.end(s, m)
			if m.proxy.Fired() == 0 {
				t.Error("the link was not narrow")
			}
			m.proxy.Heal()
			ended := s.ended(run.ID, client.StateSucceeded, client.StateWarning)
			twice := up() - begun - fill
			t.Logf("%d bytes sent before, %d in all for %d of content: %d twice or around it", before, up()-begun, fill, twice)
			if up()-begun < fill || twice > held+slack {
				t.Errorf("%d bytes were sent for %d, want at most %d more", up()-begun, fill, held+slack)
			}
			s.countedOnce(s.point(ended), fill, tt.uncounted)
			for _, x := range ended.Tasks[0].Transfers {
				if x.Mover != "m1" {
					t.Errorf("disk %s went through %q", x.Disk, x.Mover)
				}
			}
			var events client.RunEventList
			s.must("GET", "/runs/"+run.ID+"/events?limit=1000", nil, &events)
			if !strings.Contains(fmt.Sprint(events.Items), tt.told) {
				t.Errorf("%q is not in the run's events: %v", tt.told, events.Items)
			}
			s.noLeftovers()
			next := s.backup(s.vmID, s.repo.ID, map[string]any{"mover": "m1"})
			if next.Disks[0].Mode != client.DiskIncremental {
				t.Errorf("the next backup is %s: %v", next.Disks[0].Mode, next.Disks[0].FullReason)
			}
			s.verifyAll()
			s.noLeftovers()
		})
	}
}

// countedOnce checks the counts of the first restore point of a repository, of a disk with so many bytes that are like nothing else,
// against what lies in the repository. So much of it may be uncounted.
func (s *scene) countedOnce(point client.RestorePoint, fill, uncounted int64) {
	s.t.Helper()
	packs := int64(0)
	err := filepath.WalkDir(filepath.Join(s.repo.Path, "packs"), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		packs += info.Size()
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("read %d bytes, %d of them new, stored as %d; the packs have %d", point.ReadBytes, point.NewBytes, point.StoredBytes, packs)
	around := fill / 64 // the disk's own head, and the image's tree
	if point.ReadBytes < fill || point.ReadBytes > fill+around {
		s.t.Errorf("%d bytes were read of %d", point.ReadBytes, fill)
	}
	if point.NewBytes < fill-uncounted || point.NewBytes > point.ReadBytes {
		s.t.Errorf("%d bytes were new of %d", point.NewBytes, point.ReadBytes)
	}
	if point.StoredBytes > packs || point.StoredBytes < packs-around-uncounted {
		s.t.Errorf("%d bytes were stored, the packs have %d", point.StoredBytes, packs)
	}
}
