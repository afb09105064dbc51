package remote

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// forger is a mover that says what it likes.
type forger struct {
	*rig
	c *Client
	w *ImageWriter
}

func (g *rig) forger(a Access, size int64) *forger {
	g.t.Helper()
	c := g.client(g.dial(g.addr), a, ClientOptions{})
	w, err := c.NewImage(g.t.Context(), store.ImageOptions{SizeBytes: size})
	if err != nil {
		g.t.Fatal(err)
	}
	return &forger{g, c, w}
}

// ask has the owner ask for the chunk with content p at a place, and returns the item as it is to be stored.
func (f *forger) ask(number int64, p []byte) pack.Item {
	f.t.Helper()
	id := f.c.content.Chunk(p)
	a, err := f.c.rpc.Look(f.c.with(f.t.Context()), &mover.LookRequest{Turn: f.w.turn, Numbers: []int64{number}, Ids: id[:]})
	if err != nil || a.GetStore()[0] != 1 {
		f.t.Fatalf("chunk %d is not asked for: %v, %v", number, a, err)
	}
	prints := make([]chunk.Fingerprint, len(p)/4096)
	zeros := f.c.content.Prints(p, prints)
	q := &mover.PlaceRequest{Turn: f.w.turn, Numbers: []int64{number}, Ids: id[:], Zeros: []uint64{zeros}}
	for i := range prints {
		q.Prints = append(q.Prints, prints[i][:]...)
	}
	b, err := f.c.rpc.Place(f.c.with(f.t.Context()), q)
	if err != nil {
		f.t.Fatal(err)
	}
	e := pack.Entry{Type: pack.Chunk, ID: id, Zeros: zeros, Present: b.GetPresent()[0]}
	e.SetLength()
	return pack.Item{Entry: e, Prints: prints}
}

// newPack gets leave for a pack.
func (f *forger) newPack(key uint64) (pack.Header, seal.Subkey) {
	f.t.Helper()
	a, err := f.c.rpc.NewPack(f.c.with(f.t.Context()), &mover.NewPackRequest{Turn: f.w.turn, Key: key})
	if err != nil {
		f.t.Fatal(err)
	}
	head, err := pack.ParseHeader(a.GetHeader())
	if err != nil {
		f.t.Fatal(err)
	}
	return head, seal.Subkey(a.GetSubkey())
}

// make writes a pack into memory.
func (f *forger) make(head pack.Header, key seal.Subkey, plain []byte, items ...pack.Item) []byte {
	f.t.Helper()
	s := &spool{}
	w, err := pack.NewKeyedWriter(s, head, key, f.c.terms.ChunkBytes/4096, f.c.coder, f.c.bufs)
	if err == nil {
		_, err = w.AddFrame(plain, items)
	}
	if err == nil {
		_, err = w.Finish(f.t.Context())
	}
	if err != nil {
		f.t.Fatal(err)
	}
	return s.p
}

func (f *forger) send(id seal.ID, p []byte) error {
	return fromWire("write pack", f.w.packs.sendOnce(f.c.with(f.t.Context()), id, p, func(int64) {}))
}

func (f *forger) done(id seal.ID, size int) error {
	_, err := f.c.rpc.PackDone(f.c.with(f.t.Context()), &mover.PackDoneRequest{Turn: f.w.turn, Id: id[:], Size: int64(size)})
	return fromWire("index pack", err)
}

// denied fails the test unless err is a refusal in words.
func denied(t *testing.T, what string, err error) {
	t.Helper()
	if fault.KindOf(err) != fault.Denied {
		t.Errorf("%s = %v, want Denied", what, err)
		return
	}
	if meaning, advice := fault.Explanation(err); meaning == "" || advice == "" {
		t.Errorf("%s: no words for the admin: %v", what, err)
	}
}

func content(fill byte) []byte { return bytes.Repeat([]byte{fill, 1, 2, 3}, 64<<10/4) }

// TestForgedPacks has a mover write packs that it was not asked for. None is indexed, and none stays.
func TestForgedPacks(t *testing.T) {
	g := newRig(t)
	tests := map[string]func(f *forger) error{
		"another's pack": func(f *forger) error {
			s := f.begin()
			other := f.forger(Access{Session: s, Image: "other"}, 1<<20)
			head, key := other.newPack(1)
			p := f.make(head, key, content(1), f.ask(0, content(1)))
			if err := other.send(head.ID, p); err != nil {
				f.t.Fatal(err)
			}
			return f.done(head.ID, len(p))
		},
		"another's pack, sent": func(f *forger) error {
			s := f.begin()
			other := f.forger(Access{Session: s, Image: "other"}, 1<<20)
			head, key := other.newPack(1)
			return f.send(head.ID, f.make(head, key, content(1), f.ask(0, content(1))))
		},
		"a pack nobody granted": func(f *forger) error { return f.done(seal.NewID(), 1<<20) },
		"a chunk nobody asked for": func(f *forger) error {
			item := f.ask(0, content(1))
			item.ID = f.c.content.Chunk(content(2))
			head, key := f.newPack(1)
			p := f.make(head, key, content(1), item)
			if err := f.send(head.ID, p); err != nil {
				f.t.Fatal(err)
			}
			return f.done(head.ID, len(p))
		},
		"a chunk that was asked for and not placed": func(f *forger) error {
			p := content(1)
			id := f.c.content.Chunk(p)
			if _, err := f.c.rpc.Look(f.c.with(f.t.Context()), &mover.LookRequest{Turn: f.w.turn, Numbers: []int64{0}, Ids: id[:]}); err != nil {
				f.t.Fatal(err)
			}
			prints := make([]chunk.Fingerprint, 16)
			e := pack.Entry{Type: pack.Chunk, ID: id, Zeros: f.c.content.Prints(p, prints), Present: 1<<16 - 1, Length: 64 << 10}
			head, key := f.newPack(1)
			b := f.make(head, key, p, pack.Item{Entry: e, Prints: prints})
			if err := f.send(head.ID, b); err != nil {
				f.t.Fatal(err)
			}
			return f.done(head.ID, len(b))
		},
		"other blocks than decided": func(f *forger) error {
			item := f.ask(0, content(1))
			item.Present, item.Zeros, item.Length = 1, 1<<16-2, 4096
			head, key := f.newPack(1)
			p := f.make(head, key, content(1)[:4096], item)
			if err := f.send(head.ID, p); err != nil {
				f.t.Fatal(err)
			}
			return f.done(head.ID, len(p))
		},
		"other fingerprints": func(f *forger) error {
			item := f.ask(0, content(1))
			item.Prints[3][3] ^= 1
			head, key := f.newPack(1)
			p := f.make(head, key, content(1), item)
			if err := f.send(head.ID, p); err != nil {
				f.t.Fatal(err)
			}
			return f.done(head.ID, len(p))
		},
		"a chunk twice": func(f *forger) error {
			item := f.ask(0, content(1))
			head, key := f.newPack(1)
			p := f.make(head, key, content(1), item, item)
			if err := f.send(head.ID, p); err != nil {
				f.t.Fatal(err)
			}
			return f.done(head.ID, len(p))
		},
		"another salt": func(f *forger) error {
			item := f.ask(0, content(1))
			head, key := f.newPack(1)
			head.Salt[0] ^= 1
			p := f.make(head, key, content(1), item)
			if err := f.send(head.ID, p); err != nil {
				f.t.Fatal(err)
			}
			return f.done(head.ID, len(p))
		},
		"no pack at all": func(f *forger) error {
			head, _ := f.newPack(1)
			p := bytes.Repeat([]byte("x"), 5000)
			if err := f.send(head.ID, p); err != nil {
				f.t.Fatal(err)
			}
			return f.done(head.ID, len(p))
		},
	}
	for name, forge := range tests {
		t.Run(name, func(t *testing.T) {
			s := g.begin()
			f := g.forger(Access{Session: s, Image: "sda"}, 1<<20)
			denied(t, name, forge(f))
			if err := s.Abort(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	for s := range g.sessions() {
		if err := s.Abort(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if n := g.packFiles(); n != 0 {
		t.Errorf("%d packs are left of what was refused", n)
	}
}

// sessions are those that tests began in passing.
func (g *rig) sessions() map[*store.Session]bool {
	g.desk.mu.Lock()
	defer g.desk.mu.Unlock()
	out := map[*store.Session]bool{}
	for _, a := range g.desk.tickets {
		if a.Session != nil {
			out[a.Session] = true
		}
	}
	return out
}

func (g *rig) packFiles() (n int) {
	g.t.Helper()
	for _, folder := range []string{"packs", "tmp"} {
		err := filepath.WalkDir(filepath.Join(g.dir, folder), func(_ string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				n++
			}
			return nil
		})
		if err != nil {
			g.t.Fatal(err)
		}
	}
	return n
}

// TestTickets uses tickets for what they are not for.
func TestTickets(t *testing.T) {
	g := newRig(t)
	d := disk(random(t, 4), 2<<20)
	p := g.local(d, nil, nil)
	ref := p.Images[0].Ref
	conn := g.dial(g.addr)
	s := g.begin()
	writing := g.client(conn, Access{Session: s, Image: "sda"}, ClientOptions{})
	reading := g.client(conn, Access{Repository: g.repo, Images: []store.ImageRef{ref}}, ClientOptions{})
	if _, err := Open(t.Context(), conn, ClientOptions{Ticket: writing.o.Ticket}); fault.KindOf(err) != fault.Denied {
		t.Errorf("a ticket used twice: %v", err)
	}
	if _, err := Open(t.Context(), conn, ClientOptions{Ticket: "guess"}); fault.KindOf(err) != fault.Denied {
		t.Errorf("a ticket nobody issued: %v", err)
	}
	if _, err := reading.NewImage(t.Context(), store.ImageOptions{SizeBytes: 1 << 20}); fault.KindOf(err) != fault.Denied {
		t.Errorf("writing with a ticket to read: %v", err)
	}
	_, err := reading.rpc.Begin(reading.with(t.Context()), &mover.BeginRequest{SizeBytes: 1 << 20})
	denied(t, "writing with a ticket to read", fromWire("", err))
	_, err = writing.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d)), Parent: &ref})
	denied(t, "building on an image that the ticket does not name", err)

	first, err := writing.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
	if err != nil {
		t.Fatal(err)
	}
	second, err := writing.NewImage(t.Context(), store.ImageOptions{SizeBytes: int64(len(d))})
	if err != nil {
		t.Fatal(err)
	}
	denied(t, "writing after another took over", first.Write(t.Context(), 0, d[:segment]))
	if err := put(t.Context(), second, d, nil, 2); err != nil {
		t.Fatal(err)
	}
	out, err := second.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.publish(s, out)
	denied(t, "writing after the session's end", second.Zero(t.Context(), 0, 65536))
	g.desk.void(writing.o.Ticket)
	_, err = writing.rpc.NewPack(writing.with(t.Context()), &mover.NewPackRequest{Turn: second.turn})
	if fault.KindOf(fromWire("", err)) != fault.Denied {
		t.Errorf("a ticket replayed after its end: %v", err)
	}
	_, err = reading.rpc.Begin(t.Context(), &mover.BeginRequest{})
	denied(t, "a call without a ticket", fromWire("", err))
}

// TestNothingRemoves looks for a call that could remove something: there is none.
func TestNothingRemoves(t *testing.T) {
	for _, m := range mover.Repository_ServiceDesc.Methods {
		for _, word := range []string{"Delete", "Remove", "Prune", "Collect", "Drop", "Rename"} {
			if strings.Contains(m.MethodName, word) {
				t.Errorf("there is a call %s", m.MethodName)
			}
		}
	}
	g := newRig(t)
	var out mover.CloseImageResponse
	err := g.dial(g.addr).Invoke(t.Context(), "/cairn.mover.v1.Repository/Delete", &mover.CloseImageRequest{}, &out)
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("a call nobody defined: %v", err)
	}
}

var (
	_ Files = (blob.Store)(nil)
)
