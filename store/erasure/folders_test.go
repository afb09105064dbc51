package erasure

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
)

// A member whose folders were removed while the set is open cannot be written to. Rebuild must say so, not call the
// member filled; opened anew it can be filled.
func TestRebuildOfAMemberWithoutFolders(t *testing.T) {
	d := newSet(t, Layout{1, 1})
	s := d.open()
	release := d.own(s)
	data := bytes.Repeat([]byte("x"), wholeLimit+1)
	mustPut(t, s, "packs/00/a", data)
	if err := os.RemoveAll(filepath.Join(d.paths[1], objectFolder)); err != nil {
		t.Fatal(err)
	}
	if err := s.Rebuild(t.Context(), "d1", nil); err == nil || fault.KindOf(err) != fault.Transient {
		t.Errorf("rebuild without folders: %v, want transient", err)
	}
	release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = d.open()
	d.own(s)
	if err := s.Rebuild(t.Context(), "d1", nil); err != nil {
		t.Errorf("rebuild after it was opened anew: %v", err)
	}
	h, err := s.Health(t.Context())
	if err != nil || h.CanLose != 1 || h.Groups[0].BelowFull != 0 {
		t.Errorf("health = %+v, %v", h, err)
	}
	mustRead(t, s, "packs/00/a", data)
}
