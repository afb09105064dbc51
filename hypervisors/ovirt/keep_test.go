package ovirt

import (
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// TestCheckpointsStayDuringABackup tries what the engine refuses until the backup ends, with a caller who ends it only
// afterwards: waiting would be in vain.
func TestCheckpointsStayDuringABackup(t *testing.T) {
	s := newSim(t, true)
	s.d.pace.busy = time.Hour
	req := s.request("keepone")
	req.Track = true
	first := s.freeze(req)
	s.release(first)
	req = s.request("keeptwo")
	req.Track, req.Since = true, first.Info().Checkpoint
	second := s.freeze(req)
	if err := s.d.KeepCheckpoint(t.Context(), webID, second.Info().Checkpoint); fault.KindOf(err) != fault.Conflict {
		t.Errorf("during the backup: %v, want a conflict", err)
	}
	s.release(second)
	if err := s.d.KeepCheckpoint(t.Context(), webID, second.Info().Checkpoint); err != nil {
		t.Errorf("after the backup: %v", err)
	}
	left, err := s.d.Checkpoints(t.Context(), webID)
	if err != nil || len(left) != 1 || left[0].Name != second.Info().Checkpoint {
		t.Errorf("%v, %v are left, want the second one", left, err)
	}
}
