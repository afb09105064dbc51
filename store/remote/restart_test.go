package remote

import (
	"context"
	"testing"

	"google.golang.org/grpc"

	"github.com/cairn-backup/cairn/store"
)

// TestOwnerRestarts ends the owner's process, as far as one process can, at points of a transfer: server stopped, repository
// closed and opened again, session resumed. Another mover goes on with what is durable.
func TestOwnerRestarts(t *testing.T) {
	rnd := random(t, 17)
	g := newRig(t)
	saved := int64(0)
	for point := range int64(6) {
		d := disk(rnd, 5<<20)
		s, err := g.repo.Begin(t.Context(), store.SessionOptions{Series: "vm", Writer: "test", Resumable: true})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		stop := &cutter{at: 10 + 20*point}
		conn := g.dial(g.addr, grpc.WithUnaryInterceptor(func(c context.Context, method string, q, a any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
			if stop.hit() {
				cancel()
			}
			return invoke(c, method, q, a, conn, o...)
		}))
		c := g.client(conn, Access{Session: s, Image: "sda"}, ClientOptions{})
		c.terms.PackBytes = smallPack
		w, err := c.NewImage(ctx, store.ImageOptions{SizeBytes: int64(len(d))})
		if err == nil {
			_, err = goOn(ctx, w, d, 2)
		}
		if err == nil || !stop.fired.Load() {
			t.Fatalf("point %d: the transfer ended before: %v", point, err)
		}
		c.image = nil
		g.grpc.Stop()
		if err := g.repo.Close(); err != nil {
			t.Fatal(err)
		}
		g.open()
		g.serveAgain()
		if s, err = g.repo.Resume(t.Context(), s.ID()); err != nil {
			t.Fatal(err)
		}
		m := &Meter{}
		c = g.client(g.dial(g.addr, m.Option()), Access{Session: s, Image: "sda"}, ClientOptions{})
		c.terms.PackBytes = smallPack
		if w, err = c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))}); err != nil {
			t.Fatal(err)
		}
		durable := int64(0)
		for r, err := range w.Durable(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			durable += r.Length
		}
		saved += durable
		ref, err := goOn(t.Context(), w, d, 2)
		if err != nil {
			t.Fatal(err)
		}
		if limit := (int64(len(d))-durable)*11/10 + 300_000; m.Sent() > limit {
			t.Errorf("point %d: %d bytes sent, with %d of %d durable before", point, m.Sent(), durable, len(d))
		}
		g.mustHold(g.publish(s, ref).Images[0].Ref, d)
	}
	if saved == 0 {
		t.Error("nothing was durable at any point")
	}
	g.mustBeTight()
	t.Logf("campaign: 6 owners ended, %d bytes were not sent again", saved)
}
