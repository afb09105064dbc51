package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// killAt starts cairnd so that it kills itself at a fault point, lets begin do something that gets there, and starts
// cairnd again.
func (s *scene) killAt(point string, begin func()) {
	s.t.Helper()
	s.stop()
	s.start("CAIRN_FAULT_POINT=" + point + "=kill")
	begin()
	select {
	case <-s.exited:
	case <-s.t.Context().Done():
	case <-time.After(patience):
		s.t.Fatalf("cairnd was not killed at %s", point)
	}
	if !strings.Contains(s.log.String(), "fault point "+point+": kill") {
		s.t.Fatalf("cairnd ended, but not at %s", point)
	}
	s.start()
}

// settled waits until no run is under way.
func (s *scene) settled() {
	s.t.Helper()
	s.wait("runs to end", func() bool {
		for _, state := range []string{"queued", "running"} {
			var list client.RunList
			s.must("GET", "/runs?state="+state, nil, &list)
			if len(list.Items) > 0 {
				return false
			}
		}
		return true
	})
}

// The manager killed at each step of a backup: it opens again by itself, finished restore points are whole, no half
// one is visible, nothing is left on the platform, and the next backup works.
func TestKillManagerDuringBackup(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, kvmlab.Spec{Name: "killb", Rate: 0.5, Disks: []kvmlab.Disk{{MiB: 64, Fill: 8 << 20}}})
	s.backup(s.vmID, s.repo.ID, nil)
	killed := 0
	for _, point := range fault.Points {
		if !strings.HasPrefix(point, "backup.") {
			continue
		}
		t.Run(point, func(t *testing.T) {
			s.in(t, func() {
				before := len(s.points())
				s.killAt(point, func() { _, _ = s.startBackup(s.vmID, s.repo.ID, nil) })
				s.settled()
				s.wait("leftovers to go", func() bool { return len(s.leftovers()) == 0 })
				after := s.points()
				if n := len(after); n != before && n != before+1 {
					t.Errorf("%d restore points before the kill, %d after", before, n)
				}
				s.write(2)
				p := s.backup(s.vmID, s.repo.ID, nil)
				t.Logf("killed; %d -> %d points; next backup read vda as %s %s", before, len(after), p.Disks[0].Mode, p.Disks[0].FullReason)
				s.noLeftovers()
				killed++
			})
		})
	}
	if killed < 12 {
		t.Errorf("the manager was killed at %d points of a backup only", killed)
	}
	s.verifyAll()
}

// The manager killed at each step of a restore: no half-made VM or disk stays, and the restore can be done again.
func TestKillManagerDuringRestore(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, kvmlab.Spec{Name: "killr", Rate: 0.5, Disks: []kvmlab.Disk{{MiB: 64, Fill: 8 << 20}}})
	point := s.backup(s.vmID, s.repo.ID, nil)
	killed := 0
	for _, at := range fault.Points {
		if !strings.HasPrefix(at, "restore.") {
			continue
		}
		t.Run(at, func(t *testing.T) {
			s.in(t, func() {
				name := s.guest.Name + "-new"
				request := map[string]any{"restore_point": point.ID, "mode": "new", "name": name, "start": at == "restore.started"}
				if at == "restore.original-removed" {
					if err := s.guest.Stop(t.Context()); err != nil {
						t.Fatal(err)
					}
					s.vm(s.connection.ID, s.guest.Name)
					request = map[string]any{"restore_point": point.ID, "mode": "in-place"}
				}
				s.killAt(at, func() { _, _ = s.startRestore(request) })
				s.settled()
				s.wait("leftovers to go", func() bool { return len(s.leftovers()) == 0 })
				_, err := s.lab.Find(t.Context(), name)
				made := err == nil
				t.Logf("killed; VM made: %v", made)
				if made {
					s.remove(name)
				}
				if at == "restore.original-removed" {
					s.guestRuns()
				} else {
					s.restore(request)
					s.remove(name)
				}
				s.noLeftovers()
				killed++
			})
		})
	}
	if killed < 8 {
		t.Errorf("the manager was killed at %d points of a restore only", killed)
	}
	s.backup(s.vmID, s.repo.ID, nil)
	s.verifyAll()
}

// guestRuns starts the guest and lets it check its disks.
func (s *scene) guestRuns() {
	s.t.Helper()
	if err := s.guest.Start(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.guest.Status(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
}
