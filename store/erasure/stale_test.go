package erasure

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// paths makes a set in directories.
func paths(t *testing.T, l Layout) []string {
	t.Helper()
	var members []Member
	var out []string
	for i := range l.Members() {
		out = append(out, filepath.Join(t.TempDir(), "disk"+string(rune('0'+i))))
		members = append(members, Member{Path: out[i]})
	}
	if _, err := Create(t.Context(), members, l, CreateOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	return out
}

// own runs f as the owner of the set of these members.
func own(t *testing.T, f func(*Store), paths ...string) {
	t.Helper()
	s, err := OpenPaths(t.Context(), Options{}, paths...)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	release, err := s.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f(s)
	if err := release(); err != nil {
		t.Error(err)
	}
}

// What was renamed while a disk was away has no old name for a reader who opens the set with the disk that is back,
// before an owner has let it catch up.
func TestReaderDoesNotSeeTheOldNameOfAMemberThatIsBehind(t *testing.T) {
	for _, size := range []int{100, 200_000} {
		disks := paths(t, Layout{Data: 2, Parity: 1})
		data := make([]byte, size)
		own(t, func(s *Store) { must(t, blob.Put(t.Context(), s, "packs/aa/x", data)) }, disks...)
		own(t, func(s *Store) { must(t, s.Rename(t.Context(), "packs/aa/x", "quarantine/packs/aa/x")) }, disks[1:]...)
		look := func(when string) {
			s, err := OpenPaths(t.Context(), Options{}, disks...)
			must(t, err)
			defer s.Close()
			if _, err := s.Stat(t.Context(), "packs/aa/x"); fault.KindOf(err) != fault.NotFound || err == nil {
				t.Errorf("%s: the old name of %d bytes: %v", when, size, err)
			}
			for info, err := range s.List(t.Context(), "packs/") {
				t.Errorf("%s: %v is listed, %v", when, info, err)
			}
			got, err := blob.Get(context.Background(), s, "quarantine/packs/aa/x", 1<<20)
			if err != nil || len(got) != size {
				t.Errorf("%s: the new name: %d bytes, %v", when, len(got), err)
			}
		}
		look("before it caught up")
		own(t, func(*Store) {}, disks...) // it catches up
		own(t, func(*Store) {}, disks...) // nobody is behind any more: marks go
		look("after it caught up")
		for _, d := range disks {
			if left, err := filepath.Glob(filepath.Join(d, deadFolder, "*")); err != nil || len(left) > 0 {
				t.Errorf("marks are left: %v, %v", left, err)
			}
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
