package erasure

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// A disk is replaced while another has rot that no scrub has found. If the old one can still be read, nothing is lost;
// if it cannot, the object is beyond repair, which shows that the rot was there.
func TestReplacedMemberIsRead(t *testing.T) {
	for _, readable := range []bool{true, false} {
		d := newSet(t, Layout{2, 1})
		s := d.open()
		release := d.own(s)
		data := content(9, 700_000)
		mustPut(t, s, "a", data)
		for _, file := range d.shards("a") {
			if strings.HasPrefix(file, d.paths[0]) {
				d.flip(file, headerBytes+100, 4)
			}
		}
		if !readable {
			_, groups := s.snapshot()
			must(t, groups[0].members[1].discharge())
		}
		fresh := filepath.Join(memoryDir(t), "fresh")
		id, err := s.Replace(t.Context(), "d1", Member{Path: fresh})
		must(t, err)
		err = s.Rebuild(t.Context(), id, nil)
		if !readable {
			if fault.KindOf(err) != fault.Corrupt || err == nil {
				t.Errorf("Rebuild without the old disk: %v, want corrupt", err)
			}
			release()
			continue
		}
		must(t, err)
		if len(s.donors) != 0 {
			t.Error("the old disk is still in use after the rebuild")
		}
		mustScrub(t, s)
		release()
		mustRead(t, d.openWith(Options{}, fresh, d.paths[2]), "a", data)
		mustRead(t, d.openWith(Options{}, fresh, d.paths[0]), "a", data)
		if _, err := blob.Get(t.Context(), s, "a", 1<<20); err != nil {
			t.Error(err)
		}
	}
}
