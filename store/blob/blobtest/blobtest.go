// Package blobtest is the conformance suite of blob.Store: every backend passes the same.
//
// It is not a test of durability (crash campaigns are) nor of speed. Its invariant: it uses only what blob.Store
// promises, so a backend that passes can carry a repository.
package blobtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// Run runs the suite. open returns an empty store; again opens the same place a second time, as another process would,
// and may be nil if that cannot be done. Both clean up after themselves.
func Run(t *testing.T, open func(t *testing.T) (s blob.Store, again func() blob.Store)) {
	tests := map[string]func(*testing.T, blob.Store, func() blob.Store){
		"PutOnce": putOnce, "InvisibleBeforeCommit": invisibleBeforeCommit, "Abort": abort, "Sizes": sizes, "ReadBeyond": readBeyond,
		"List": list, "Rename": rename, "Delete": remove, "BadNames": badNames, "Canceled": canceled, "Acquire": acquire,
		"SeenByOthers": seenByOthers, "Together": together, "ManyWritersOneName": manyWriters,
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s, again := open(t)
			test(t, s, again)
		})
	}
}

func put(t *testing.T, s blob.Store, name string, data []byte) {
	t.Helper()
	if err := blob.Put(t.Context(), s, name, data); err != nil {
		t.Fatalf("put %s: %v", name, err)
	}
}

func want(t *testing.T, s blob.Store, name string, data []byte) {
	t.Helper()
	got, err := blob.Get(t.Context(), s, name, 1<<30)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%s: %d bytes, %v; want %d", name, len(got), err, len(data))
	}
}

func wantKind(t *testing.T, what string, err error, kind fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind {
		t.Errorf("%s: %v, want kind %v", what, err, kind)
	}
}

func names(t *testing.T, s blob.Store, prefix string) (out []string) {
	t.Helper()
	for info, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, info.Name)
	}
	slices.Sort(out)
	return out
}

func content(seed uint64, n int) []byte {
	p := make([]byte, n)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

func putOnce(t *testing.T, s blob.Store, _ func() blob.Store) {
	put(t, s, "x/y/one", []byte("first"))
	wantKind(t, "second put", blob.Put(t.Context(), s, "x/y/one", []byte("second")), fault.Exists)
	want(t, s, "x/y/one", []byte("first"))
	_, err := blob.Get(t.Context(), s, "x/y/one", 4)
	wantKind(t, "get of more than allowed", err, fault.Corrupt)
	if diff := cmp.Diff([]string{"x/y/one"}, names(t, s, "")); diff != "" {
		t.Errorf("after a refused put (-want +got):\n%s", diff)
	}
}

func invisibleBeforeCommit(t *testing.T, s blob.Store, _ func() blob.Store) {
	for _, n := range []int{4, 3 << 20} {
		name := fmt.Sprintf("f/%d", n)
		w, err := s.Create(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content(1, n)); err != nil {
			t.Fatal(err)
		}
		if got := names(t, s, "f/"); slices.Contains(got, name) {
			t.Errorf("visible before commit: %v", got)
		}
		_, err = s.Stat(t.Context(), name)
		wantKind(t, "stat before commit", err, fault.NotFound)
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := w.Abort(); err != nil {
			t.Errorf("abort after commit: %v", err)
		}
		want(t, s, name, content(1, n))
	}
}

func abort(t *testing.T, s blob.Store, _ func() blob.Store) {
	for _, n := range []int{0, 10, 3 << 20} {
		w, err := s.Create(t.Context(), "f/one")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content(2, n)); err != nil {
			t.Fatal(err)
		}
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context()); err == nil {
			t.Error("commit after abort")
		}
		if got := names(t, s, ""); len(got) > 0 {
			t.Errorf("visible after abort: %v", got)
		}
	}
	put(t, s, "f/one", []byte("later"))
	want(t, s, "f/one", []byte("later"))
}

func sizes(t *testing.T, s blob.Store, _ func() blob.Store) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for _, n := range []int{0, 1, 2, 4095, 65535, 65536, 65537, 1<<18 - 1, 1 << 18, 1<<20 - 1, 1 << 20, 1<<20 + 1, 5<<20 + 12345} {
		name := fmt.Sprintf("sizes/%d", n)
		data := content(uint64(n), n)
		w, err := s.Create(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		for rest := data; len(rest) > 0; {
			piece := rest[:min(len(rest), 1+rnd.IntN(300<<10))]
			if k, err := w.Write(piece); err != nil || k != len(piece) {
				t.Fatalf("write = %d, %v", k, err)
			}
			rest = rest[len(piece):]
		}
		if err := w.Commit(t.Context()); err != nil {
			t.Fatal(err)
		}
		if info, err := s.Stat(t.Context(), name); err != nil || info != (blob.Info{Name: name, Size: int64(n)}) {
			t.Errorf("Stat = %+v, %v", info, err)
		}
		want(t, s, name, data)
		for range 20 {
			off := rnd.IntN(n + 1)
			p := make([]byte, rnd.IntN(min(n-off, 600<<10)+1))
			if err := s.ReadAt(t.Context(), name, p, int64(off)); err != nil || !bytes.Equal(p, data[off:off+len(p)]) {
				t.Fatalf("%d bytes at %d of %d: %v, or other bytes", len(p), off, n, err)
			}
		}
	}
	total := 0
	for info, err := range s.List(t.Context(), "sizes/") {
		if err != nil || info.Name != fmt.Sprintf("sizes/%d", info.Size) {
			t.Errorf("List: %+v, %v", info, err)
		}
		total++
	}
	if total != 13 {
		t.Errorf("%d objects listed, want 13", total)
	}
}

func readBeyond(t *testing.T, s blob.Store, _ func() blob.Store) {
	put(t, s, "a", []byte("0123456789"))
	wantKind(t, "read beyond the end", s.ReadAt(t.Context(), "a", make([]byte, 5), 6), fault.Corrupt)
	wantKind(t, "read far beyond the end", s.ReadAt(t.Context(), "a", make([]byte, 5), 1<<40), fault.Corrupt)
	wantKind(t, "read of nothing there", s.ReadAt(t.Context(), "b", make([]byte, 5), 0), fault.NotFound)
	_, err := s.Stat(t.Context(), "b")
	wantKind(t, "stat of nothing there", err, fault.NotFound)
}

func list(t *testing.T, s blob.Store, _ func() blob.Store) {
	for _, name := range []string{"config", "p/aa/1", "p/bb/2", "p/3", "pp/4", "q/_/5", "_q/6"} {
		put(t, s, name, []byte(name))
	}
	for prefix, expected := range map[string][]string{
		"p/": {"p/3", "p/aa/1", "p/bb/2"}, "p/aa/": {"p/aa/1"}, "none/": nil, "q/": {"q/_/5"}, "_q/": {"_q/6"},
		"": {"_q/6", "config", "p/3", "p/aa/1", "p/bb/2", "pp/4", "q/_/5"},
	} {
		if diff := cmp.Diff(expected, names(t, s, prefix)); diff != "" {
			t.Errorf("List(%q) (-want +got):\n%s", prefix, diff)
		}
	}
	for range s.List(t.Context(), "p/") {
		break // a caller may stop
	}
}

func rename(t *testing.T, s blob.Store, _ func() blob.Store) {
	small, large := []byte("small"), content(3, 2<<20)
	put(t, s, "q/small", small)
	put(t, s, "q/large", large)
	wantKind(t, "rename onto another", s.Rename(t.Context(), "q/small", "q/large"), fault.Exists)
	for range 2 {
		for name, data := range map[string][]byte{"small": small, "large": large} {
			if err := s.Rename(t.Context(), "q/"+name, "t/u/"+name); err != nil {
				t.Fatal(err)
			}
			want(t, s, "t/u/"+name, data)
			wantKind(t, "read of what was renamed", s.ReadAt(t.Context(), "q/"+name, make([]byte, 1), 0), fault.NotFound)
			if err := s.Rename(t.Context(), "t/u/"+name, "q/"+name); err != nil {
				t.Fatal(err)
			}
			want(t, s, "q/"+name, data)
		}
	}
	wantKind(t, "rename of nothing", s.Rename(t.Context(), "q/none", "q/other"), fault.NotFound)
	if diff := cmp.Diff([]string{"q/large", "q/small"}, names(t, s, "")); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

func remove(t *testing.T, s blob.Store, _ func() blob.Store) {
	for round := range 3 {
		data := content(uint64(round), 1+round<<20)
		put(t, s, "d/1", data)
		want(t, s, "d/1", data)
		if err := s.Delete(t.Context(), "d/1"); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "second delete", s.Delete(t.Context(), "d/1"), fault.NotFound)
		wantKind(t, "read after delete", s.ReadAt(t.Context(), "d/1", make([]byte, 1), 0), fault.NotFound)
		if got := names(t, s, ""); len(got) > 0 {
			t.Errorf("after delete: %v", got)
		}
	}
}

func badNames(t *testing.T, s blob.Store, _ func() blob.Store) {
	for _, name := range []string{"../outside", "/etc/passwd", "", ".", "a/../../outside", "a//b", "a/"} {
		wantKind(t, "put "+name, blob.Put(t.Context(), s, name, nil), fault.Invalid)
		wantKind(t, "read "+name, s.ReadAt(t.Context(), name, make([]byte, 1), 0), fault.Invalid)
		wantKind(t, "delete "+name, s.Delete(t.Context(), name), fault.Invalid)
	}
}

func canceled(t *testing.T, s blob.Store, _ func() blob.Store) {
	put(t, s, "c/1", []byte("stays"))
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Create(ctx, "c/2")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	wantKind(t, "commit", w.Commit(ctx), fault.Canceled)
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
	wantKind(t, "delete", s.Delete(ctx, "c/1"), fault.Canceled)
	wantKind(t, "rename", s.Rename(ctx, "c/1", "c/3"), fault.Canceled)
	for _, err = range s.List(ctx, "c/") {
	}
	wantKind(t, "list", err, fault.Canceled)
	want(t, s, "c/1", []byte("stays"))
	if diff := cmp.Diff([]string{"c/1"}, names(t, s, "")); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
}

func acquire(t *testing.T, s blob.Store, again func() blob.Store) {
	put(t, s, "x/1", []byte("1"))
	if w, err := s.Create(t.Context(), "x/2"); err != nil { // never committed
		t.Fatal(err)
	} else if _, err := w.Write(content(1, 2<<20)); err != nil {
		t.Fatal(err)
	}
	release, err := s.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again != nil {
		_, err = again().Acquire(t.Context())
		wantKind(t, "second owner", err, fault.Conflict)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}
	if again != nil {
		if release, err = again().Acquire(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := release(); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff([]string{"x/1"}, names(t, s, "")); diff != "" {
		t.Errorf("List (-want +got):\n%s", diff)
	}
	want(t, s, "x/1", []byte("1"))
}

func seenByOthers(t *testing.T, s blob.Store, again func() blob.Store) {
	if again == nil {
		t.Skip("this store cannot be opened twice")
	}
	other := again()
	data := content(9, 1<<20+5)
	put(t, s, "o/1", data)
	want(t, other, "o/1", data)
	wantKind(t, "put by another", blob.Put(t.Context(), other, "o/1", nil), fault.Exists)
	if err := other.Rename(t.Context(), "o/1", "o/2"); err != nil {
		t.Fatal(err)
	}
	want(t, s, "o/2", data)
	wantKind(t, "read of what another renamed", s.ReadAt(t.Context(), "o/1", make([]byte, 1), 0), fault.NotFound)
	if err := s.Delete(t.Context(), "o/2"); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "read of what another deleted", other.ReadAt(t.Context(), "o/2", make([]byte, 1), 0), fault.NotFound)
	put(t, other, "o/2", []byte("new"))
	want(t, s, "o/2", []byte("new"))
}

func together(t *testing.T, s blob.Store, _ func() blob.Store) {
	var wg sync.WaitGroup
	for worker := range 6 {
		wg.Go(func() {
			for i := range 10 {
				name := fmt.Sprintf("w%d/%d", worker%3, worker*100+i)
				data := content(uint64(worker*100+i), 1+(i*worker*20000)%700000)
				if err := blob.Put(t.Context(), s, name, data); err != nil {
					t.Error(err)
					return
				}
				got, err := blob.Get(t.Context(), s, name, 1<<30)
				if err != nil || !bytes.Equal(got, data) {
					t.Errorf("%s: %v, or other bytes", name, err)
				}
				if i%3 == 0 {
					err = s.Delete(t.Context(), name)
				} else if i%3 == 1 {
					err = s.Rename(t.Context(), name, "moved/"+name)
				}
				if err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	wg.Wait()
	if got := names(t, s, ""); len(got) != 6*6 {
		t.Errorf("%d objects, want 36: %v", len(got), got)
	}
}

// manyWriters: of several that put the same name at once at most one succeeds, and what is there then is its.
func manyWriters(t *testing.T, s blob.Store, _ func() blob.Store) {
	for round := range 20 {
		name := fmt.Sprintf("race/%d", round)
		var wg sync.WaitGroup
		var won [4]bool
		for i := range won {
			wg.Go(func() {
				err := blob.Put(t.Context(), s, name, []byte{byte(i)})
				won[i] = err == nil
				if err != nil && fault.KindOf(err) != fault.Exists {
					t.Errorf("put: %v, want exists", err)
				}
			})
		}
		wg.Wait()
		winner := slices.Index(won[:], true)
		if n := len(slices.DeleteFunc(won[:], func(ok bool) bool { return !ok })); n != 1 {
			t.Fatal(errors.New("round"), round, ": winners:", n)
		}
		want(t, s, name, []byte{byte(winner)})
	}
}
