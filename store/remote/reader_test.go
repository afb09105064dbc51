package remote

import (
	"bytes"
	"context"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/store"
)

// image streams an image into memory; each byte of data comes once.
func image(ctx context.Context, i *ImageReader) ([]byte, error) {
	out := make([]byte, i.Size())
	var mu sync.Mutex
	seen := map[int64]bool{}
	twice := 0
	err := i.Stream(ctx, 0, func(off int64, p []byte) error {
		mu.Lock()
		defer mu.Unlock()
		if seen[off] {
			twice++
		}
		seen[off] = true
		copy(out[off:], p)
		return nil
	})
	if err == nil && twice > 0 {
		err = malformed("stream", "%d ranges come twice", twice)
	}
	return out, err
}

// TestReading restores images of a chain over the wire and from the mounted directory.
func TestReading(t *testing.T) {
	rnd := random(t, 5)
	g := newRig(t)
	d := disk(rnd, 90<<20+777)
	clear(d[20<<20 : 45<<20])
	p := g.local(d, nil, nil)
	first := p.Images[0].Ref
	want := map[store.ImageRef][]byte{first: bytes.Clone(d)}
	list := []store.ImageRef{first}
	for range 3 {
		before := bytes.Clone(d)
		for range 60 { // small changes, which refer to blocks of the days before
			at := rnd.IntN(len(d) - 9000)
			copy(d[at:], disk(rnd, 4096+rnd.IntN(4096)))
		}
		p = g.local(d, before, &list[len(list)-1])
		list = append(list, p.Images[0].Ref)
		want[p.Images[0].Ref] = bytes.Clone(d)
	}
	for name, o := range map[string]ClientOptions{"wire": {}, "mounted": {Files: g.b}} {
		m := &Meter{}
		conn := g.dial(g.addr, m.Option())
		c := g.client(conn, Access{Repository: g.repo, Images: list}, o)
		total := int64(0)
		for _, ref := range list {
			i, err := c.OpenImage(t.Context(), ref)
			if err != nil {
				t.Fatal(err)
			}
			got, err := image(t.Context(), i)
			if err != nil {
				t.Fatal(name, err)
			}
			if !bytes.Equal(got, want[ref]) {
				t.Fatalf("%s: the image is not what was written", name)
			}
			total += int64(len(got))
			for range 20 {
				off := rnd.Int64N(i.Size())
				q := make([]byte, 1+rnd.IntN(300000))
				n, _ := i.ReadAt(q, off)
				if !bytes.Equal(q[:n], want[ref][off:off+int64(n)]) || n == 0 {
					t.Fatalf("%s: ReadAt %d at %d is wrong", name, n, off)
				}
			}
			if err := i.Close(); err != nil {
				t.Error(err)
			}
		}
		t.Logf("%s: %d bytes of images by %d received and %d sent", name, total, m.Received(), m.Sent())
		if name == "mounted" && m.Received()+m.Sent() > total/50 {
			t.Errorf("%d bytes on the wire where only metadata should be", m.Received()+m.Sent())
		}
	}
}

// TestReadingElsewhere tries to read what the ticket does not name.
func TestReadingElsewhere(t *testing.T) {
	rnd := random(t, 6)
	g := newRig(t)
	one, two := g.local(disk(rnd, 4<<20), nil, nil).Images[0].Ref, g.local(disk(rnd, 4<<20), nil, nil).Images[0].Ref
	c := g.client(g.dial(g.addr), Access{Repository: g.repo, Images: []store.ImageRef{one}}, ClientOptions{})
	_, err := c.OpenImage(t.Context(), two)
	denied(t, "opening another image", err)
	i, err := c.OpenImage(t.Context(), one)
	if err != nil {
		t.Fatal(err)
	}
	other := &ImageReader{c: c, root: rootOf(two), size: two.SizeBytes}
	_, err = other.plan(t.Context(), 0, 10)
	denied(t, "planning another image", err)
	denied(t, "reading a chunk of another image", other.chunk(t.Context(), 0, make([]byte, 65536)))

	c2 := g.client(g.dial(g.addr), Access{Repository: g.repo, Images: []store.ImageRef{two}}, ClientOptions{})
	theirs, err := (&ImageReader{c: c2, root: rootOf(two), size: two.SizeBytes}).plan(t.Context(), 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	p := theirs.Packs[0]
	read := func(q *mover.ReadFramesRequest) error {
		return fromWire("", (&frames{i, &p}).read(c.with(t.Context()), q, make([]byte, 1<<20), func(int64) {}))
	}
	id, f := p.Header.ID, p.Frames[0]
	denied(t, "a frame of another image's plan", read(&mover.ReadFramesRequest{Image: rootOf(one), Pack: id[:], Frames: []*mover.PlannedFrame{
		{Offset: f.Info.Offset, Stored: f.Info.Stored, Proof: f.Leave},
	}}))
	ours, err := i.plan(t.Context(), 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	p = ours.Packs[0]
	id, f = p.Header.ID, p.Frames[0]
	denied(t, "more than a frame", read(&mover.ReadFramesRequest{Image: rootOf(one), Pack: id[:], Frames: []*mover.PlannedFrame{
		{Offset: f.Info.Offset, Stored: f.Info.Stored + 16, Proof: f.Leave},
	}}))
	denied(t, "a pack's header", read(&mover.ReadFramesRequest{Image: rootOf(one), Pack: id[:], Frames: []*mover.PlannedFrame{{Offset: 0, Stored: 128}}}))
	if err := read(&mover.ReadFramesRequest{Image: rootOf(one), Pack: id[:], Frames: []*mover.PlannedFrame{
		{Offset: f.Info.Offset, Stored: f.Info.Stored, Proof: f.Leave},
	}}); err == nil {
		t.Error("a frame of another length than was asked for is taken")
	}
}
