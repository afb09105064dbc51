package remote

import (
	"context"
	"fmt"
	mathrand "math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// requests decodes a message for each call of the service and makes the call.
var requests = []func(s *Server, ctx context.Context, p []byte, turn uint64, root *mover.Root) error{
	func(s *Server, ctx context.Context, p []byte, _ uint64, _ *mover.Root) error {
		return unary(ctx, p, &mover.BeginRequest{}, func(*mover.BeginRequest) {}, s.Begin)
	},
	func(s *Server, ctx context.Context, p []byte, turn uint64, _ *mover.Root) error {
		return unary(ctx, p, &mover.DurableRequest{}, func(q *mover.DurableRequest) { q.Turn = turn }, s.Durable)
	},
	func(s *Server, ctx context.Context, p []byte, turn uint64, _ *mover.Root) error {
		return unary(ctx, p, &mover.LookRequest{}, func(q *mover.LookRequest) { q.Turn = turn }, s.Look)
	},
	func(s *Server, ctx context.Context, p []byte, turn uint64, _ *mover.Root) error {
		return unary(ctx, p, &mover.PlaceRequest{}, func(q *mover.PlaceRequest) { q.Turn = turn }, s.Place)
	},
	func(s *Server, ctx context.Context, p []byte, turn uint64, _ *mover.Root) error {
		return unary(ctx, p, &mover.ZeroRequest{}, func(q *mover.ZeroRequest) { q.Turn = turn }, s.Zero)
	},
	func(s *Server, ctx context.Context, p []byte, turn uint64, _ *mover.Root) error {
		return unary(ctx, p, &mover.NewPackRequest{}, func(q *mover.NewPackRequest) { q.Turn = turn }, s.NewPack)
	},
	func(s *Server, ctx context.Context, p []byte, turn uint64, _ *mover.Root) error {
		return unary(ctx, p, &mover.PackDoneRequest{}, func(q *mover.PackDoneRequest) { q.Turn = turn }, s.PackDone)
	},
	func(s *Server, ctx context.Context, p []byte, _ uint64, root *mover.Root) error {
		return unary(ctx, p, &mover.ExtentsRequest{}, func(q *mover.ExtentsRequest) { q.Image = root }, s.Extents)
	},
	func(s *Server, ctx context.Context, p []byte, _ uint64, root *mover.Root) error {
		return unary(ctx, p, &mover.PlanRequest{}, func(q *mover.PlanRequest) { q.Image = root }, s.Plan)
	},
	func(s *Server, ctx context.Context, p []byte, _ uint64, root *mover.Root) error {
		return unary(ctx, p, &mover.ReadChunkRequest{}, func(q *mover.ReadChunkRequest) { q.Image = root }, s.ReadChunk)
	},
	func(s *Server, ctx context.Context, p []byte, _ uint64, _ *mover.Root) error {
		return unary(ctx, p, &mover.OpenImageRequest{}, func(*mover.OpenImageRequest) {}, s.OpenImage)
	},
}

func unary[Q proto.Message, A any](ctx context.Context, p []byte, q Q, set func(Q), call func(context.Context, Q) (A, error)) error {
	if proto.Unmarshal(p, q) != nil {
		return nil
	}
	set(q)
	_, err := call(ctx, q)
	return fromWire("", err)
}

// FuzzServer gives the calls whatever a mover may send: they answer, or refuse, and never fail within.
func FuzzServer(f *testing.F) {
	g := makeRig(f)
	f.Cleanup(func() {
		g.grpc.Stop()
		_ = g.repo.Close()
	})
	d := disk(mathrand.New(mathrand.NewPCG(31, 31)), 1<<20)
	s := g.begin()
	w, err := s.NewImage(f.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
	if err == nil {
		err = put(f.Context(), w, d, nil, 1)
	}
	if err != nil {
		f.Fatal(err)
	}
	ref, err := w.Finish(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	g.publish(s, ref)
	id := make([]byte, 32)
	id[0] = 1
	for n, m := range []proto.Message{
		&mover.BeginRequest{SizeBytes: 1 << 20}, &mover.DurableRequest{From: 65536}, &mover.LookRequest{Numbers: []int64{1}, Ids: id},
		&mover.PlaceRequest{Numbers: []int64{1}, Ids: id, Zeros: []uint64{1}, Prints: make([]byte, 256)}, &mover.ZeroRequest{Offset: 65536, Length: 65536},
		&mover.NewPackRequest{Key: 3}, &mover.PackDoneRequest{Id: id[:16], Size: 5000}, &mover.ExtentsRequest{First: 3},
		&mover.PlanRequest{First: 1, Count: 10}, &mover.ReadChunkRequest{Number: 3}, &mover.OpenImageRequest{Image: rootOf(ref)},
	} {
		p, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		boundary.Add(f, append([]byte{byte(n)}, p...), boundary.Binary(append([]byte{byte(n)}, p...)))
	}
	s = g.begin()
	var inputs atomic.Int64
	f.Fuzz(func(t *testing.T, p []byte) {
		if len(p) == 0 {
			return
		}
		image := fmt.Sprint("sda", inputs.Add(1)/64) // an image may not be begun anew for ever
		a := Access{Session: s, Image: image, Repository: g.repo, Images: []store.ImageRef{ref}}
		ticket := g.desk.issue(a)
		ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs(ticketKey, ticket, openerKey, "me"))
		if _, err := g.desk.Open(ctx, ticket, "me"); err != nil {
			t.Fatal(err)
		}
		w, err := s.Image(ctx, image, store.ImageOptions{SizeBytes: 1 << 20, Anew: true})
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.Attach(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := requests[int(p[0])%len(requests)](g.srv, ctx, p[1:], c.Turn(), rootOf(ref)); err != nil {
			if kind := fault.KindOf(err); kind == fault.Internal || kind == fault.Corrupt {
				t.Errorf("the call fails within: %v", err)
			}
		}
		g.srv.End(ticket)
		g.desk.void(ticket)
	})
}

// liar answers plans and questions as it likes.
type liar struct {
	mover.RepositoryClient
	plan  func(*mover.PlanResponse)
	look  func(*mover.LookResponse)
	place func(*mover.PlaceResponse)
	pack  func(*mover.NewPackResponse)
}

func (l *liar) Plan(ctx context.Context, q *mover.PlanRequest, o ...grpc.CallOption) (*mover.PlanResponse, error) {
	a, err := l.RepositoryClient.Plan(ctx, q, o...)
	if err == nil && l.plan != nil {
		l.plan(a)
	}
	return a, err
}

func (l *liar) Look(ctx context.Context, q *mover.LookRequest, o ...grpc.CallOption) (*mover.LookResponse, error) {
	a, err := l.RepositoryClient.Look(ctx, q, o...)
	if err == nil && l.look != nil {
		l.look(a)
	}
	return a, err
}

func (l *liar) Place(ctx context.Context, q *mover.PlaceRequest, o ...grpc.CallOption) (*mover.PlaceResponse, error) {
	a, err := l.RepositoryClient.Place(ctx, q, o...)
	if err == nil && l.place != nil {
		l.place(a)
	}
	return a, err
}

func (l *liar) NewPack(ctx context.Context, q *mover.NewPackRequest, o ...grpc.CallOption) (*mover.NewPackResponse, error) {
	a, err := l.RepositoryClient.NewPack(ctx, q, o...)
	if err == nil && l.pack != nil {
		l.pack(a)
	}
	return a, err
}

// TestLyingOwner has an owner answer what cannot be: the mover fails, and hands out no wrong byte.
func TestLyingOwner(t *testing.T) {
	rnd := random(t, 32)
	g := newRig(t)
	d := disk(rnd, 2<<20)
	ref := g.local(d, nil, nil).Images[0].Ref
	conn := g.dial(g.addr)
	for name, lie := range map[string]func(a *mover.PlanResponse){
		"no end":                  func(a *mover.PlanResponse) { a.End = 0 },
		"an end beyond":           func(a *mover.PlanResponse) { a.End = 1 << 40 },
		"a short key":             func(a *mover.PlanResponse) { a.Packs[0].Subkey = a.Packs[0].Subkey[:31] },
		"a short header":          func(a *mover.PlanResponse) { a.Packs[0].Header = a.Packs[0].Header[:100] },
		"a frame far off":         func(a *mover.PlanResponse) { a.Packs[0].Frames[0].Number = 1 << 30 },
		"a frame too large":       func(a *mover.PlanResponse) { a.Packs[0].Frames[0].Plain = 1 << 31 },
		"a frame twice":           func(a *mover.PlanResponse) { a.Packs[0].Frames = append(a.Packs[0].Frames, a.Packs[0].Frames[0]) },
		"a codec nobody knows":    func(a *mover.PlanResponse) { a.Packs[0].Frames[0].Codec = 1 << 8 },
		"a part of another pack":  func(a *mover.PlanResponse) { a.Chunks[0].Parts[0].Pack = 7 },
		"a part of no frame":      func(a *mover.PlanResponse) { a.Chunks[0].Parts[0].Frame = 1 << 19 },
		"a part beyond its frame": func(a *mover.PlanResponse) { a.Chunks[0].Parts[0].Offset = 1<<32 - 1 },
		"takes beyond the chunk":  func(a *mover.PlanResponse) { a.Chunks[0].Parts[0].Takes = []byte{0, 16} },
		"takes beyond the part":   func(a *mover.PlanResponse) { a.Chunks[0].Parts[0].Takes = []byte{200, 1} },
		"half a take":             func(a *mover.PlanResponse) { a.Chunks[0].Parts[0].Takes = []byte{1} },
		"a chunk elsewhere":       func(a *mover.PlanResponse) { a.Chunks[0].Numbers[0] = 1 << 50 },
		"a chunk nowhere":         func(a *mover.PlanResponse) { a.Chunks[0].Numbers = nil },
		"a short id":              func(a *mover.PlanResponse) { a.Chunks[0].Id = a.Chunks[0].Id[:31] },
		"another id":              func(a *mover.PlanResponse) { a.Chunks[0].Id[5] ^= 1 },
	} {
		c := g.client(conn, Access{Repository: g.repo, Images: []store.ImageRef{ref}}, ClientOptions{})
		fired := false
		c.rpc = &liar{RepositoryClient: c.rpc, plan: func(a *mover.PlanResponse) {
			fired = true
			lie(a)
		}}
		i, err := c.OpenImage(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := image(t.Context(), i); err == nil || !fired {
			t.Errorf("%s: the mover believes it", name)
		}
	}
	for name, l := range map[string]*liar{
		"too few answers":    {look: func(a *mover.LookResponse) { a.Store = a.Store[1:] }},
		"blocks not there":   {place: func(a *mover.PlaceResponse) { a.Present[0] = 1 << 40 }},
		"half a reference":   {place: func(a *mover.PlaceResponse) { a.Targets = append(a.Targets, 1) }},
		"missing references": {place: func(a *mover.PlaceResponse) { a.Present[0] &^= 1 << 15 }},
		"no placements":      {place: func(a *mover.PlaceResponse) { a.Present = nil }},
		"a short subkey":     {pack: func(a *mover.NewPackResponse) { a.Subkey = a.Subkey[:16] }},
		"another repository": {pack: func(a *mover.NewPackResponse) { a.Header[20] ^= 1 }},
	} {
		s := g.begin()
		c := g.client(conn, Access{Session: s, Image: "sda"}, ClientOptions{})
		l.RepositoryClient = c.rpc
		c.rpc = l
		w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: 1 << 20})
		if err == nil {
			fresh := make([]byte, 1<<20)
			for i := range fresh {
				fresh[i] = byte(rnd.Uint32())
			}
			if err = put(t.Context(), w, fresh, nil, 1); err == nil {
				_, err = w.Finish(t.Context())
			}
		}
		if err == nil {
			t.Errorf("%s: the mover believes it", name)
		}
		if err := s.Abort(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// TestLateAnswers has answers come late and in another order than the questions.
func TestLateAnswers(t *testing.T) {
	rnd := random(t, 33)
	g := newRig(t)
	conn := g.dial(g.addr, grpc.WithUnaryInterceptor(func(ctx context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
		err := invoke(ctx, method, q, a, conn, o...)
		late := time.NewTimer(time.Duration(mathrand.IntN(20)) * time.Millisecond)
		select {
		case <-late.C:
		case <-ctx.Done():
		}
		return err
	}))
	d := disk(rnd, 12<<20)
	s := g.begin()
	c := g.client(conn, Access{Session: s, Image: "sda"}, ClientOptions{})
	c.terms.PackBytes = smallPack
	w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
	var ref store.ImageRef
	if err == nil {
		ref, err = goOn(t.Context(), w, d, 8)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got, want := w.Stats().ChunksNew, unique(c, d); got != want {
		t.Errorf("%d chunks stored of %d contents", got, want)
	}
	g.mustHold(g.publish(s, ref).Images[0].Ref, d)
	g.mustBeTight()
}
