package erasure

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
)

// failsAt is a disk on which the nth file that is made fails, and all after it until n is 0.
func failsAt(b blob.Store, n *atomic.Int64) blob.Store {
	return blobtest.Fails(b, func(op, name string) error {
		if op == "create" && n.Load() > 0 && n.Add(-1) <= 0 {
			n.Store(1)
			return fault.New(fault.Transient, "create object", name, "no answer")
		}
		return nil
	})
}

// A Replace that fails at any of its writes, on the new member or on the others, is repeated with the same place.
func TestReplaceCanBeRepeated(t *testing.T) {
	for _, where := range []string{"new member", "others"} {
		failed := 0
		for n := 1; ; n++ {
			d := newSet(t, Layout{2, 1})
			s := d.open()
			release := d.own(s)
			data := content(7, 300_000)
			mustPut(t, s, "a", data)
			path := filepath.Join(memoryDir(t), "new")
			var left atomic.Int64
			left.Store(int64(n))
			fresh := Member{Path: path}
			_, groups := s.snapshot()
			switch where {
			case "others":
				for _, m := range groups[0].members {
					m.b = failsAt(m.b, &left)
				}
			default:
				b, err := fresh.create()
				if err != nil {
					t.Fatal(err)
				}
				fresh = Member{Store: failsAt(b, &left)}
			}
			_, err := s.Replace(t.Context(), "d1", fresh)
			left.Store(0)
			if err != nil {
				failed++
				if kind := fault.KindOf(err); kind != fault.Transient {
					t.Errorf("%s, write %d: %v, want transient", where, n, err)
				}
			}
			if fresh.Store != nil {
				if err := fresh.Store.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if err == nil {
				release()
				break // there is no nth write
			}
			id, err := s.Replace(t.Context(), "d1", Member{Path: path})
			if err != nil {
				t.Fatalf("%s, repeated after write %d failed: %v", where, n, err)
			}
			if err := s.Rebuild(t.Context(), id, nil); err != nil {
				t.Fatal(err)
			}
			release()
			mustRead(t, d.openWith(Options{}, path, d.paths[2]), "a", data)
		}
		if failed < 2 {
			t.Errorf("%s: only %d writes failed", where, failed)
		}
	}
}

// A Grow that failed is repeated with the same places.
func TestGrowCanBeRepeated(t *testing.T) {
	failed := 0
	for n := 1; ; n++ {
		d := newSet(t, Layout{1, 1})
		s := d.open()
		release := d.own(s)
		mustPut(t, s, "a", []byte("a"))
		var left atomic.Int64
		left.Store(int64(n))
		var broken, more []Member
		dir := memoryDir(t)
		for i := range 2 {
			m := Member{Path: filepath.Join(dir, fmt.Sprint("m", i))}
			more = append(more, m)
			b, err := m.create()
			if err != nil {
				t.Fatal(err)
			}
			broken = append(broken, Member{Store: failsAt(b, &left)})
		}
		_, err := s.Grow(t.Context(), broken, CreateOptions{})
		for _, m := range broken {
			if err := m.Store.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err == nil {
			release()
			break
		}
		failed++
		left.Store(0)
		if _, err := s.Grow(t.Context(), more, CreateOptions{}); err != nil {
			t.Fatalf("repeated after write %d failed: %v", n, err)
		}
		release()
		if h, err := s.Health(t.Context()); err != nil || len(h.Groups) != 2 || h.CanLose != 1 {
			t.Errorf("Health = %+v, %v", h, err)
		}
		mustRead(t, d.openWith(Options{}, d.paths[0], d.paths[1], more[1].Path, more[0].Path), "a", []byte("a"))
	}
	if failed < 4 {
		t.Errorf("only %d writes failed", failed)
	}
}

// What looks like a member of the set but holds anything else is never cleared.
func TestAttemptWithDataIsNotCleared(t *testing.T) {
	d := newSet(t, Layout{2, 1})
	s := d.open()
	defer d.own(s)()
	mustPut(t, s, "a", content(1, 300_000))
	old := d.paths[1]
	if _, err := s.Replace(t.Context(), "d1", Member{Path: filepath.Join(memoryDir(t), "new")}); err != nil {
		t.Fatal(err)
	}
	// The one that was replaced has shards; it is not taken as empty.
	_, err := s.Replace(t.Context(), "d2", Member{Path: old})
	wantRefused(t, "a former member with shards", err, fault.Exists)
	found := 0
	err = filepath.WalkDir(old, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.Contains(path, "a~") {
			found++
		}
		return err
	})
	if err != nil || found != 1 {
		t.Errorf("%d shards on the former member, %v", found, err)
	}
}
