package erasure

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// remembering is a made set with a memory apart from it.
type remembering struct {
	*made
	known Generation
}

func (r *remembering) options() Options {
	return Options{Name: "mirror", Known: r.known, Remember: func(_ context.Context, g Generation) error {
		r.known = g
		return nil
	}}
}

// puts lets an owner of some members put an object.
func (r *remembering) puts(name string, paths ...string) {
	r.t.Helper()
	s, err := OpenPaths(r.t.Context(), r.options(), paths...)
	if err != nil {
		r.t.Fatal(err)
	}
	release := r.own(s)
	mustPut(r.t, s, name, []byte(name))
	release()
	must(r.t, s.Close())
}

func (r *remembering) refused(what string, paths ...string) {
	r.t.Helper()
	s, err := OpenPaths(r.t.Context(), r.options(), paths...)
	if err == nil {
		must(r.t, s.Close())
	}
	wantRefused(r.t, what, err, fault.Transient)
	if _, advice := fault.Explanation(err); !strings.Contains(advice, "cairn repository trust mirror d") {
		r.t.Errorf("%s: the advice names no command: %s", what, advice)
	}
}

func memberAt(path string) []Member { return []Member{{Path: path}} }

// A half of a mirror does not know that the other was used alone; who used it does.
func TestHalfThatWasLeftBehindIsRefused(t *testing.T) {
	r := &remembering{made: newSet(t, Layout{1, 1})}
	left, right := r.paths[0], r.paths[1]
	r.puts("both", left, right)
	r.puts("left", left)
	r.refused("the half that was away", right)
	r.puts("with both", right, left)

	r.puts("left again", left)
	before := r.known
	wantRefused(t, "trust in who is not there", Trust(t.Context(), memberAt(right), r.options(), "d0"), fault.Transient)
	wantRefused(t, "trust in nobody", Trust(t.Context(), memberAt(left), r.options(), "d7"), fault.NotFound)
	wantRefused(t, "trust that is not needed", Trust(t.Context(), memberAt(left), r.options(), "d0"), fault.Conflict)
	if r.known != before {
		t.Errorf("what was refused is remembered: %+v, was %+v", r.known, before)
	}
	must(t, Trust(t.Context(), memberAt(right), r.options(), right+"/"))
	r.refused("the half that is given up", left)
	r.puts("right", right)

	s, err := OpenPaths(t.Context(), r.options(), left, right)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	defer r.own(s)()
	for _, name := range []string{"both", "left", "with both", "left again", "right"} {
		mustRead(t, s, name, []byte(name))
	}
}

// Older copies of all members know of nothing that came after them.
func TestOlderCopiesOfAllAreRefused(t *testing.T) {
	r := &remembering{made: newSet(t, Layout{2, 1})}
	r.puts("a", r.paths...)
	var copies []string
	for i, p := range r.paths {
		copies = append(copies, filepath.Join(memoryDir(t), r.plan.Groups[0][i].ID))
		must(t, os.CopyFS(copies[i], os.DirFS(p)))
	}
	r.puts("b", r.paths...)
	r.refused("copies", copies...)
	r.puts("c", copies[0], r.paths[1], r.paths[2])
}

// Nothing is acknowledged before it is remembered that only some members have it.
func TestNothingCountsThatIsNotRemembered(t *testing.T) {
	d := newSet(t, Layout{1, 1})
	var full bool
	o := Options{Remember: func(context.Context, Generation) error {
		if full {
			return fault.New(fault.Internal, "write", "catalog", "no space")
		}
		return nil
	}}
	s := d.openWith(o, d.paths...)
	release := d.own(s)
	must(t, os.RemoveAll(d.paths[1]))
	full = true
	if err := blob.Put(t.Context(), s, "a", nil); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("a write on one half that nobody remembers: %v", err)
	}
	if _, err := s.Stat(t.Context(), "a"); err == nil || fault.KindOf(err) != fault.NotFound {
		t.Errorf("it is there: %v", err)
	}
	release()
	if _, err := s.Acquire(t.Context()); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("Acquire that nobody remembers: %v", err)
	}
	full = false
	release = d.own(s)
	mustPut(t, s, "b", nil) // whether a is there nobody was told
	release()
}
