package store

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// TestCallsCutOff ends each kind of call at each of its steps: the session goes on.
func TestCallsCutOff(t *testing.T) {
	rnd := rand.New(rand.NewPCG(74, 1))
	disk := make([]byte, 300*testChunk) // a leaf and some more
	fill(rnd, disk)
	clear(disk[290*testChunk:])
	g := newRig(t)
	parent := g.backup(disk, nil, nil).Images[0].Ref
	for n := range 40 {
		fill(rnd, disk[n*testChunk:][:4096])
	}
	calls := 0
	s, err := g.repo.Begin(t.Context(), SessionOptions{Series: "vm", Resumable: true})
	if err != nil {
		t.Fatal(err)
	}
	// cutOff makes a call again and again, each time ended one step later, until it is not.
	cutOff := func(what string, call func(ctx context.Context) error) {
		for steps := 0; ; steps++ {
			ctx := &dying{Context: t.Context()}
			ctx.left.Store(int64(steps))
			err := call(ctx)
			if err == nil {
				calls += steps
				return
			}
			if failed := s.failed(); failed != nil {
				t.Fatalf("%s cut off at step %d ended the session: %v", what, steps, failed)
			}
			if !errors.Is(err, context.Canceled) && fault.KindOf(err) != fault.Canceled {
				t.Fatalf("%s cut off at step %d: %v", what, steps, err)
			}
		}
	}
	var w *ImageWriter
	cutOff("begin", func(ctx context.Context) (err error) {
		w, err = s.Image(ctx, "sda", ImageOptions{SizeBytes: int64(len(disk)), Parent: &parent})
		return err
	})
	c, err := w.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := newPorter(g.repo, c)
	cut := &cutDecider{c, cutOff}
	for n := range 290 {
		if err := p.carry.Write(t.Context(), cut, int64(n), disk[n*testChunk:][:testChunk]); err != nil {
			t.Fatal(err)
		}
	}
	cutOff("zero", func(ctx context.Context) error { return c.Zero(ctx, 290*testChunk, 10*testChunk) })
	if err := errors.Join(p.carry.Flush(t.Context()), p.flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	var ref ImageRef
	cutOff("finish", func(ctx context.Context) (err error) {
		ref, err = c.Finish(ctx)
		return err
	})
	if calls == 0 {
		t.Error("nothing was cut off")
	}
	g.mustHold(g.publish(s, ref), disk)
}

// cutDecider is a carrier whose calls are cut off.
type cutDecider struct {
	c      *Carrier
	cutOff func(what string, call func(ctx context.Context) error)
}

func (d *cutDecider) Look(_ context.Context, chunks []carry.Chunk) error {
	d.cutOff("look", func(ctx context.Context) error { return d.c.Look(ctx, chunks) })
	return nil
}

func (d *cutDecider) Place(_ context.Context, placings []carry.Placing) error {
	d.cutOff("place", func(ctx context.Context) error { return d.c.Place(ctx, placings) })
	return nil
}

// TestKnownToWhoHasIt asks for another machine's chunk by its id alone: it is in the image only of who has its content.
func TestKnownToWhoHasIt(t *testing.T) {
	g := newRig(t)
	p := make([]byte, testChunk)
	fill(rand.New(rand.NewPCG(75, 1)), p)
	g.backup(p, nil, nil)
	c := newCarrier(t, g.repo, 4*testChunk)
	content := chunk.NewContent(g.repo.Terms().Keys)
	ask := func(number int64) carry.Placing {
		t.Helper()
		list := []carry.Chunk{{Number: number, ID: content.Chunk(p)}}
		if err := c.Look(t.Context(), list); err != nil {
			t.Fatal(err)
		}
		if !list[0].Store {
			t.Fatal("an id alone put a chunk into the image")
		}
		prints := make([]chunk.Fingerprint, g.repo.blocks)
		e := pack.Entry{Type: pack.Chunk, ID: list[0].ID, Zeros: content.Prints(p, prints)}
		return carry.Placing{Number: number, Item: pack.Item{Entry: e, Prints: prints}}
	}
	guess := ask(0)
	for i := 1; i < len(guess.Prints); i++ { // one block is the same, as a reference would have said
		guess.Prints[i][3] ^= 1
	}
	list := []carry.Placing{guess}
	if err := c.Place(t.Context(), list); err != nil || list[0].Known {
		t.Errorf("other fingerprints: %v, known %v", err, list[0].Known)
	}
	if c.w.isThere(0) {
		t.Error("the chunk is in the image")
	}
	c2 := newCarrier(t, g.repo, 4*testChunk)
	c = c2
	list = []carry.Placing{ask(1)}
	for range 2 { // the answer may be lost
		if err := c.Place(t.Context(), list); err != nil || !list[0].Known {
			t.Fatalf("the right fingerprints: %v, known %v", err, list[0].Known)
		}
	}
	ref, err := c.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 4*testChunk)
	copy(want[testChunk:], p)
	g.mustHold(g.publish(c.w.s, ref), want)
}

// TestCarriedLimits goes beyond what a mover may ask for: it is told so in words, and costs nothing.
func TestCarriedLimits(t *testing.T) {
	g := newRig(t)
	s := g.begin()
	defer func() { _ = s.Abort(context.Background()) }()
	refused := func(what string, want fault.Kind, err error) {
		t.Helper()
		meaning, advice := fault.Explanation(err)
		if fault.KindOf(err) != want || meaning == "" || advice == "" {
			t.Errorf("%s: %v (%s; %s), want %v in words", what, err, meaning, advice, want)
		}
	}
	for _, size := range []int64{maxCarried + 1, 1 << 62} {
		_, err := s.Image(t.Context(), "huge", ImageOptions{SizeBytes: size})
		refused("a disk of that size", fault.Invalid, err)
	}
	var err error
	for n := 0; n <= maxAnew && err == nil; n++ {
		var w *ImageWriter
		if w, err = s.Image(t.Context(), "sda", ImageOptions{SizeBytes: 1 << 20, Anew: true}); err == nil {
			_, err = w.Attach(t.Context())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := len(s.carriers); n != 1 {
		t.Errorf("%d carriers are held for one image", n)
	}
	_, err = s.Image(t.Context(), "sda", ImageOptions{SizeBytes: 1 << 20, Anew: true})
	refused("one image anew for ever", fault.Conflict, err)
}

// TestOneChunkEverywhere asks for one content at more places than are remembered.
func TestOneChunkEverywhere(t *testing.T) {
	g := newRig(t)
	c := newCarrier(t, g.repo, (hardWaiting+maxAsk)*testChunk)
	var err error
	places := 0
	for err == nil && places <= hardWaiting {
		list := make([]carry.Chunk, maxAsk)
		for i := range list {
			list[i].Number = int64(places + i)
			binary.LittleEndian.PutUint64(list[i].ID[:], 1)
		}
		if err = c.Look(t.Context(), list); err == nil {
			places += len(list)
		}
	}
	if places != hardWaiting || fault.KindOf(err) != fault.Transient {
		t.Errorf("after %d places: %v", places, err)
	}
}
