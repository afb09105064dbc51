package store

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/pack"
)

// suspend leaves a session of one image, half written, to the next owner.
func (g *rig) suspend(disk []byte, parent *ImageRef) (id string) {
	g.t.Helper()
	s, err := g.repo.Begin(g.t.Context(), SessionOptions{Series: "vm", Resumable: true})
	if err != nil {
		g.t.Fatal(err)
	}
	g.carryOn(s, disk, parent, len(disk)/testChunk/2)
	g.reopen()
	return s.ID()
}

// carryOn writes the first chunks of the image, durably.
func (g *rig) carryOn(s *Session, disk []byte, parent *ImageRef, end int) *porter {
	g.t.Helper()
	w, err := s.Image(g.t.Context(), "sda", ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := w.Attach(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	p := newPorter(g.repo, c)
	if err := errors.Join(p.write(g.t.Context(), disk, 0, end), p.flush(g.t.Context())); err != nil {
		g.t.Fatal(err)
	}
	return p
}

// end finishes and publishes what carryOn began.
func (g *rig) end(s *Session, p *porter, disk []byte) {
	g.t.Helper()
	if err := p.write(g.t.Context(), disk, 0, 1000); err != nil {
		g.t.Fatal(err)
	}
	ref, err := p.finish(g.t.Context())
	if err != nil {
		g.t.Fatal(err)
	}
	g.mustHold(g.publish(s, ref), disk)
}

func (g *rig) leases() (names []string) {
	g.t.Helper()
	for info, err := range g.b.List(g.t.Context(), leaseFolder) {
		if err != nil {
			g.t.Fatal(err)
		}
		names = append(names, info.Name)
	}
	return names
}

// TestForget gives up a session of an owner before without resuming it.
func TestForget(t *testing.T) {
	g := newRig(t)
	disk := randomDisk(rand.New(rand.NewPCG(63, 1)), 2<<20)
	id := g.suspend(disk, nil)
	if rep, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil || rep.PacksFreed != 0 {
		t.Errorf("beside a session to be resumed a collect freed %d packs: %v", rep.PacksFreed, err)
	}
	if err := g.repo.Forget(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if left := g.leases(); len(left)+len(g.repo.Suspended()) != 0 {
		t.Errorf("left over: %v, %v", left, g.repo.Suspended())
	}
	if rep, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil || rep.PacksFreed == 0 {
		t.Errorf("after it a collect freed %d packs: %v", rep.PacksFreed, err)
	}
	_, err := g.repo.Resume(t.Context(), id)
	for _, err := range []error{err, g.repo.Forget(t.Context(), id)} {
		if fault.KindOf(err) != fault.NotFound {
			t.Errorf("after it: %v", err)
		}
	}
}

// balky is a backend that fails after so many reads.
type balky struct {
	blob.Store
	left atomic.Int64
}

func (b *balky) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if b.left.Add(-1) < 0 {
		return fault.New(fault.Transient, "read", name, "the backend is away")
	}
	return b.Store.ReadAt(ctx, name, p, off)
}

// TestResumeFails resumes a session from a backend that fails at each of its reads: it can be resumed still.
func TestResumeFails(t *testing.T) {
	g := newRig(t)
	disk := randomDisk(rand.New(rand.NewPCG(64, 1)), 2<<20)
	parent := g.backup(disk, nil, nil).Images[0].Ref
	fill(rand.New(rand.NewPCG(64, 2)), disk[:testChunk])
	b := &balky{Store: g.b}
	b.left.Store(1 << 40)
	g.b = b
	id := g.suspend(disk, &parent)
	var s *Session
	failed := 0
	for ; s == nil; failed++ {
		g.repo.directories.Clear()
		g.repo.frames.Clear()
		g.repo.nodes.Clear()
		b.left.Store(int64(failed))
		var err error
		s, err = g.repo.Resume(t.Context(), id)
		b.left.Store(1 << 40)
		if err == nil {
			break
		}
		if n := len(g.repo.Suspended()); n != 1 {
			t.Fatalf("cut off at step %d (%v), %d sessions can be resumed", failed, err, n)
		}
		if _, err := g.repo.Collect(t.Context(), CollectOptions{Compact: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if failed == 0 {
		t.Error("nothing was cut off")
	}
	if n := len(g.repo.sessions); n != 1 {
		t.Errorf("%d sessions are held, of one", n)
	}
	p := g.carryOn(s, disk, &parent, 0)
	g.end(s, p, disk)
}

// TestParentLost takes away the head of the image that a suspended session builds on: collects go on, and so does the
// session, but for that image.
func TestParentLost(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(65, 1))
	disk := randomDisk(rnd, 2<<20)
	point := g.backup(disk, nil, nil)
	parent := point.Images[0].Ref
	s, err := g.repo.Begin(t.Context(), SessionOptions{Series: "vm", Resumable: true})
	if err != nil {
		t.Fatal(err)
	}
	fill(rnd, disk[:testChunk])
	g.carryOn(s, disk, &parent, 4)
	if err := g.repo.Prune(t.Context(), point.ID); err != nil {
		t.Fatal(err)
	}
	lost := 0
	for _, p := range g.repo.idx.Packs() {
		if p.Kind == pack.Meta {
			lost++
			if err := os.Remove(filepath.Join(g.dir, pack.Name(p.ID))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if lost == 0 {
		t.Fatal("nothing is lost")
	}
	g.reopen()
	if _, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil {
		t.Errorf("collect beside a session whose parent is lost: %v", err)
	}
	if s, err = g.repo.Resume(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	p := g.carryOn(s, disk, nil, 4) // a full, anew
	g.end(s, p, disk)
}

// TestJournalNamesTaken begins images in a session some of whose records' names are taken: by an image that cannot be
// read any more, and by an owner that was overtaken and does not know.
func TestJournalNamesTaken(t *testing.T) {
	g := newRig(t)
	disk := randomDisk(rand.New(rand.NewPCG(66, 1)), 2<<20)
	id := g.suspend(disk, nil)
	head := filepath.Join(g.dir, journalName(id, 0, 0))
	if err := errors.Join(os.Remove(head), os.WriteFile(head, []byte("damaged"), 0o600)); err != nil {
		t.Fatal(err)
	}
	g.reopen()
	s, err := g.repo.Resume(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{journalName(id, 1, 0), journalName(id, 1, 1), journalName(id, 2, 1), journalName(id, 2, 2)} {
		if err := os.WriteFile(filepath.Join(g.dir, name), []byte("by another owner"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := g.carryOn(s, disk, nil, 24)
	if p.c.w.ordinal != 2 || p.c.w.record != 3 {
		t.Errorf("the image has record %d of ordinal %d", p.c.w.record, p.c.w.ordinal)
	}
	g.end(s, p, disk)
	if left := g.leases(); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

// TestOvertakenOwnerKeepsItsHandsOff has an owner that was overtaken go on with, and end, a session that the next owner
// has resumed: that one loses nothing.
func TestOvertakenOwnerKeepsItsHandsOff(t *testing.T) {
	g := newRig(t)
	disk := randomDisk(rand.New(rand.NewPCG(67, 1)), 4<<20)
	old := g.repo
	s, err := old.Begin(t.Context(), SessionOptions{Series: "vm", Resumable: true})
	if err != nil {
		t.Fatal(err)
	}
	p := g.carryOn(s, disk, nil, 16)
	if err := os.Remove(filepath.Join(g.dir, "lock")); err != nil {
		t.Fatal(err)
	}
	b, err := file.Open(g.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	g.b = b
	g.open() // the next owner
	next, err := g.repo.Resume(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	before := g.leases()
	err = errors.Join(p.write(t.Context(), disk, 16, 32), p.flush(t.Context()))
	if fault.KindOf(err) != fault.Conflict {
		t.Errorf("the owner before goes on: %v", err)
	}
	if err := s.Abort(t.Context()); fault.KindOf(err) != fault.Conflict {
		t.Errorf("the owner before ends the session: %v", err)
	}
	for _, name := range before {
		if _, err := b.Stat(t.Context(), name); err != nil {
			t.Errorf("%s, which the next owner needs: %v", name, err)
		}
	}
	p = g.carryOn(next, disk, nil, 20)
	g.end(next, p, disk)
	_ = old.Close()
}
