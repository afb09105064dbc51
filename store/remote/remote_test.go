package remote

import (
	"testing"

	"github.com/cairn-backup/cairn/store"
)

// TestFullAndIncremental writes the same disks here and over the wire, to two repositories of one domain.
func TestFullAndIncremental(t *testing.T) {
	rnd := random(t, 1)
	one, two := newRig(t), newRig(t)
	conn := two.dial(two.addr)
	var before []byte
	var ours, theirs *store.ImageRef
	d := disk(rnd, 24<<20+12345)
	for round := range 4 {
		a := one.local(d, before, ours)
		s := two.begin()
		c := two.client(conn, Access{Session: s, Image: "sda", Parent: theirs}, ClientOptions{})
		w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d)), Parent: theirs})
		if err != nil {
			t.Fatal(err)
		}
		if err := put(t.Context(), w, d, before, 1); err != nil {
			t.Fatal(err)
		}
		ref, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		b := two.publish(s, ref)
		two.mustHold(b.Images[0].Ref, d)
		x, y := one.packBytes(), two.packBytes()
		t.Logf("round %d: %d bytes by the local path, %d over the wire; %+v", round, x, y, w.Stats())
		if diff := max(x-y, y-x); diff > x/50 {
			t.Errorf("round %d: %d bytes by the local path, %d over the wire", round, x, y)
		}
		ours, theirs = &a.Images[0].Ref, &b.Images[0].Ref
		before = append([]byte(nil), d...)
		for range 20 {
			n := 4096 * (1 + rnd.IntN(30))
			at := rnd.IntN(len(d) - n)
			copy(d[at:], disk(rnd, n))
		}
		if round == 1 { // and a disk that grows
			d = append(d, disk(rnd, 3<<20)...)
			before = before[:len(before)/segment*segment]
		}
	}
	two.mustCheck()
}

// TestSeveralWorkers writes by eight goroutines, and the same again: nothing is sent then.
func TestSeveralWorkers(t *testing.T) {
	rnd := random(t, 2)
	g := newRig(t)
	conn := g.dial(g.addr)
	d := disk(rnd, 80<<20)
	for round := range 2 {
		s := g.begin()
		c := g.client(conn, Access{Session: s, Image: "sda"}, ClientOptions{})
		w, err := c.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
		if err == nil {
			err = put(t.Context(), w, d, nil, 8)
		}
		if err != nil {
			t.Fatal(err)
		}
		ref, err := w.Finish(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		g.mustHold(g.publish(s, ref).Images[0].Ref, d)
		if st := w.Stats(); round == 1 && (st.BytesStored != 0 || st.ChunksNew != 0) {
			t.Errorf("what was known is stored again: %+v", st)
		}
	}
	g.mustCheck()
}
