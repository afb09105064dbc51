package remote

import (
	"bytes"
	"context"
	"iter"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/store"
)

// frozen is a disk in memory that counts what is read of it.
type frozen struct {
	p    []byte
	read atomic.Int64
}

func (f *frozen) ReadAt(p []byte, off int64) (int, error) {
	f.read.Add(int64(len(p)))
	return bytes.NewReader(f.p).ReadAt(p, off)
}
func (f *frozen) Size() int64                   { return int64(len(f.p)) }
func (f *frozen) Confirm(context.Context) error { return nil }
func (f *frozen) Close() error                  { return nil }
func (f *frozen) Extents(context.Context) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		yield(hypervisors.Extent{Length: int64(len(f.p)), State: hypervisors.Data}, nil)
	}
}

// target is a disk in memory.
type target struct {
	mu sync.Mutex
	p  []byte
}

func (d *target) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return copy(d.p[off:], p), nil
}
func (d *target) Zero(_ context.Context, off, n int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.p[off : off+n])
	return nil
}
func (d *target) Flush(context.Context) error { return nil }
func (d *target) Size() int64                 { return int64(len(d.p)) }
func (d *target) Close() error                { return nil }

// TestTransfer backs up a disk by two movers, of which the first ends in the middle, and restores it by a third. What was
// durable is not read again.
func TestTransfer(t *testing.T) {
	rnd := random(t, 41)
	g := newRig(t)
	src := &frozen{p: disk(rnd, 24<<20+512)}
	s := g.begin()
	o := store.ImageOptions{SizeBytes: src.Size()}
	access := Access{Session: s, Image: "sda"}
	ctx, cancel := context.WithCancel(t.Context())
	kill := &cutter{at: 90}
	c := g.client(g.dial(g.addr, grpc.WithUnaryInterceptor(func(c context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
		if kill.hit() {
			cancel()
		}
		return invoke(c, method, q, a, conn, o...)
	})), access, ClientOptions{})
	c.terms.PackBytes = smallPack
	w, err := c.NewImage(ctx, o)
	if err == nil {
		_, err = transfer.Backup(ctx, src, w, transfer.Options{Workers: 2, BufferBytes: 256 << 10})
	}
	if err == nil || !kill.fired.Load() {
		t.Fatalf("the first transfer did not end in the middle: %v", err)
	}
	c.image = nil
	src.read.Store(0)
	c = g.client(g.dial(g.addr), access, ClientOptions{})
	if w, err = c.NewImage(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	durable := int64(0)
	for r := range w.Durable(t.Context()) {
		durable += r.Length
	}
	res, err := transfer.Backup(t.Context(), src, w, transfer.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := w.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if durable == 0 || src.read.Load() != src.Size()-durable || res.BytesKept != durable || res.BytesRead+res.BytesSkipped != src.Size() {
		t.Errorf("%d bytes read of %d, of which %d were durable; %+v", src.read.Load(), src.Size(), durable, res)
	}
	g.mustHold(g.publish(s, ref).Images[0].Ref, src.p)
	c = g.client(g.dial(g.addr), Access{Repository: g.repo, Images: []store.ImageRef{ref}}, ClientOptions{})
	i, err := c.OpenImage(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	dst := &target{p: bytes.Repeat([]byte{7}, len(src.p))}
	back := func(context.Context) (hypervisors.FrozenDisk, error) { return &frozen{p: dst.p}, nil }
	if _, err := transfer.Restore(t.Context(), i, dst, transfer.Options{SeedZero: true, VerifyTarget: back}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(dst.p, src.p) {
		t.Error("the restored disk is not the one that was backed up")
	}
	if err := i.Close(); err != nil {
		t.Error(err)
	}
}

// TestBeginAnew begins an image again whose source has changed: nothing of what was written before is in it.
func TestBeginAnew(t *testing.T) {
	rnd := random(t, 42)
	g := newRig(t)
	d := disk(rnd, 4<<20)
	s := g.begin()
	access := Access{Session: s, Image: "sda"}
	var ref store.ImageRef
	for round := range 3 {
		c := g.client(g.dial(g.addr), access, ClientOptions{})
		c.terms.PackBytes = smallPack
		w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d)), Anew: true})
		if err != nil {
			t.Fatal(err)
		}
		for r := range w.Durable(t.Context()) {
			t.Fatalf("round %d: %+v counts as written", round, r)
		}
		if round < 2 {
			if err := put(t.Context(), w, d, nil, 2); err != nil {
				t.Fatal(err)
			}
			copy(d[1<<20:], disk(rnd, 1<<20))
			clear(d[3<<20 : 3<<20+300_000])
			c.image = nil // it ends without a word
			continue
		}
		if ref, err = goOn(t.Context(), w, d, 2); err != nil {
			t.Fatal(err)
		}
	}
	g.mustHold(g.publish(s, ref).Images[0].Ref, d)
}
