package imageiotransport

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
)

// scribble writes and zeroes parts of a disk at random, some over others, by several goroutines each in its own stripe, and
// returns what the disk must hold then.
func scribble(t testing.TB, d hypervisors.TargetDisk, seed uint64) []byte {
	t.Helper()
	want := make([]byte, d.Size())
	const stripes = 4
	width := d.Size() / stripes
	var wg sync.WaitGroup
	for i := range int64(stripes) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			for range 30 {
				off := i*width + rnd.Int64N(width)
				n := min(1+rnd.Int64N(200_000), (i+1)*width-off)
				part := want[off : off+n]
				if rnd.IntN(4) == 0 {
					clear(part)
					if err := d.Zero(t.Context(), off, n); err != nil {
						t.Error(err)
						return
					}
				} else {
					for j := range part {
						part[j] = byte(rnd.Uint32())
					}
					if _, err := d.WriteAt(part, off); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	return want
}

func TestTarget(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		seed := seeded.Seed(t)
		o := quick
		o.JournalBytes = 3 * mib
		d := openTarget(t, o, export(p))
		want := scribble(t, d, seed)
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, p.content(), want)
		if _, ok := p.(oddPeer); ok {
			if most, _ := p.seen(); most > 2 { // one, and one that the daemon has ended without having noticed yet
				t.Errorf("%d connections at once where one writer is allowed", most)
			}
		}
		if _, err := d.WriteAt([]byte{1}, size); !errors.Is(err, io.ErrShortWrite) {
			t.Errorf("write behind the end: %v", err)
		}
		if err := d.Zero(t.Context(), size-1, 2); fault.KindOf(err) != fault.Invalid {
			t.Errorf("zero behind the end: %v", err)
		}
		same(t, readAll(t, openSource(t, quick, export(p))), want)
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestWritesGoOn lets everything go wrong that a write survives, at every kind of request.
func TestWritesGoOn(t *testing.T) {
	for _, method := range []string{"PUT", "PATCH"} {
		for _, what := range []string{"drop", "500", "forget", "crash"} {
			t.Run(what+" at "+method, func(t *testing.T) {
				peers(t, func(t *testing.T, p peer) {
					seed := seeded.Seed(t)
					o := quick
					o.JournalBytes = 2 * mib
					fired := p.spoil(method, 5, 4, what)
					d := openTarget(t, o, export(p))
					want := scribble(t, d, seed)
					if err := d.Flush(t.Context()); err != nil {
						t.Fatal(err)
					}
					same(t, p.content(), want)
					if fired() != 4 {
						t.Errorf("it went wrong %d times, want 4", fired())
					}
				})
			})
		}
	}
}

// TestCrashBetweenWriteAndFlush loses what was acknowledged and nobody had flushed: between two requests, so that only the next one
// can notice.
func TestCrashBetweenWriteAndFlush(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		o := quick
		o.Connections = 2
		d := openTarget(t, o, export(p))
		want := make([]byte, size)
		put := func(b byte, off int) {
			part := want[off : off+3*block]
			copy(part, bytes.Repeat([]byte{b}, len(part)))
			if _, err := d.WriteAt(part, int64(off)); err != nil {
				t.Fatal(err)
			}
		}
		put(1, 0)
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, p.content(), want)
		put(2, 5*mib)
		put(3, 5*mib+block) // over it
		p.crash()
		if p.lost() == 0 {
			t.Fatal("nothing was lost")
		}
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, p.content(), want)
		put(4, 7*mib)
		p.crash()
		put(5, 9*mib) // on the daemon's second life: the one before is still lost
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		same(t, p.content(), want)
	})
}

func TestFlushIsNotRepeatedWithoutNeed(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		d := openTarget(t, quick, export(p))
		for i := range 10 {
			if _, err := d.WriteAt(bytes.Repeat([]byte{1}, block), int64(i)*block); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, n := p.seen(); n("PUT") != 10 || n("PATCH") != 1 {
			t.Errorf("%d PUTs and %d PATCHes for 10 writes and a flush", n("PUT"), n("PATCH"))
		}
	})
}

func TestWritesGiveUp(t *testing.T) {
	for what, want := range map[string]fault.Kind{"drop": fault.Transient, "500": fault.Transient, "403": fault.Denied} {
		for _, method := range []string{"PUT", "PATCH"} {
			t.Run(what+" at "+method, func(t *testing.T) {
				peers(t, func(t *testing.T, p peer) {
					o := quick
					o.Attempts = 3
					d := openTarget(t, o, export(p))
					fired := p.spoil(method, 0, 100, what)
					_, err := d.WriteAt([]byte{1}, 0)
					if method == "PATCH" {
						err = d.Flush(t.Context())
					}
					checkError(t, "write", err, want)
					if fired() == 0 {
						t.Error("nothing went wrong")
					}
				})
			})
		}
	}
}

func TestTicketsForOneDirection(t *testing.T) {
	peers(t, func(t *testing.T, p peer) {
		switch p := p.(type) {
		case oddPeer: // only writing
			p.blind = true
			d := openTarget(t, quick, export(p))
			if _, err := d.WriteAt([]byte{1}, 0); err != nil {
				t.Error(err)
			}
			_, err := quick.OpenSource(t.Context(), export(p))
			checkError(t, "read", err, fault.Denied)
		case *sim:
			e := export(p)
			e.Imageio.TransferURL = hypervisors.TicketURL("https://" + p.addr + "/images/" + p.readOnly(t))
			openSource(t, quick, e)
			_, err := quick.OpenTarget(t.Context(), e)
			if fault.KindOf(err) != fault.Denied {
				t.Errorf("open for writing: %v", err)
			}
		}
	})
}
