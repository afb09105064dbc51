package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/carry"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
	"github.com/cairn-backup/cairn/store/pack"
)

// porter carries an image as another process would: it has a Carrier, the hash keys, and the keys of its packs.
type porter struct {
	r     *Repository
	c     *Carrier
	carry *carry.Writer
	w     *pack.Writer
	key   uint64
	asked int // chunks that were to be stored
}

func newPorter(r *Repository, c *Carrier) *porter {
	p := &porter{r: r, c: c}
	t := r.Terms()
	p.carry = carry.New(carry.Options{
		Hasher: chunk.NewContent(t.Keys), ChunkBytes: t.ChunkBytes, FrameBytes: t.FrameBytes, Group: 4, Store: p.store,
	})
	return p
}

func (p *porter) store(ctx context.Context, plain []byte, items []pack.Item) error {
	if p.w == nil {
		p.key++
		g, err := p.c.NewPack(ctx, p.key)
		if err != nil {
			return err
		}
		out, err := p.c.CreatePack(ctx, g.Header.ID)
		if err != nil {
			return err
		}
		if p.w, err = pack.NewKeyedWriter(out, g.Header, g.Key, g.Blocks, p.r.coder(), p.r.bufs); err != nil {
			return err
		}
	}
	p.asked += len(items)
	if _, err := p.w.AddFrame(plain, items); err != nil {
		return err
	}
	if p.w.Size() < int64(p.r.o.packBytes) {
		return nil
	}
	return p.flush(ctx)
}

func (p *porter) flush(ctx context.Context) error {
	if p.w == nil {
		return nil
	}
	d, err := p.w.Finish(ctx)
	if err != nil {
		return err
	}
	p.w = nil
	return p.c.PackDone(ctx, d.Header.ID, d.Size())
}

// write gives the chunks of disk from one up to another that are not durable; zeros by Zero.
func (p *porter) write(ctx context.Context, disk []byte, from, end int) error {
	size := p.r.ChunkBytes()
	there := map[int64]bool{}
	for d, err := range p.c.Durable(ctx, 0) {
		if err != nil {
			return err
		}
		for at := d.Offset; at < d.Offset+d.Length; at += int64(size) {
			there[at/int64(size)] = true
		}
	}
	for n := from; n < end && n*size < len(disk); n++ {
		if there[int64(n)] {
			continue
		}
		q := disk[n*size : min((n+1)*size, len(disk))]
		var err error
		if chunk.IsZero(q) {
			err = p.c.Zero(ctx, int64(n*size), int64(len(q)))
		} else {
			err = p.carry.Write(ctx, p.c, int64(n), q)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(p.carry.Flush(ctx))
}

func (p *porter) finish(ctx context.Context) (ImageRef, error) {
	if err := p.flush(ctx); err != nil {
		return ImageRef{}, err
	}
	return p.c.Finish(ctx)
}

// TestResume closes a repository in the middle of a session, and goes on with it in the next process.
func TestResume(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(61, 1))
	t.Log("seed 61")
	disk := randomDisk(rnd, 6<<20)
	clear(disk[1<<20 : 2<<20])
	parent := g.backup(disk, nil, nil).Images[0].Ref
	for range 40 {
		fill(rnd, disk[rnd.IntN(90)*65536:][:65536])
	}
	s, err := g.repo.Begin(t.Context(), SessionOptions{Series: "vm", Writer: "mover 1", Resumable: true})
	if err != nil {
		t.Fatal(err)
	}
	o := ImageOptions{SizeBytes: int64(len(disk)), Parent: &parent}
	begin := func(s *Session) *porter {
		w, err := s.Image(t.Context(), "sda", o)
		if err != nil {
			t.Fatal(err)
		}
		c, err := w.Attach(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return newPorter(g.repo, c)
	}
	p := begin(s)
	if err := errors.Join(p.write(t.Context(), disk, 0, 50), p.flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	first := p.asked
	if err := p.write(t.Context(), disk, 50, 60); err != nil { // these need not be durable
		t.Fatal(err)
	}
	g.reopen()
	list := g.repo.Suspended()
	if len(list) != 1 || list[0].ID != s.ID() || list[0].Series != "vm" || list[0].Writer != "mover 1" {
		t.Fatalf("sessions to be resumed: %+v", list)
	}
	if err := g.repo.Prune(t.Context(), mustPoints(t, g.repo)[0].ID); err != nil { // the parent
		t.Fatal(err)
	}
	if _, err := g.repo.Collect(t.Context(), CollectOptions{Compact: 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := g.repo.Resume(t.Context(), "01arz3ndektsv4rrffq69g5fav"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("resuming a session that is not there = %v", err)
	}
	if s, err = g.repo.Resume(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	if len(g.repo.Suspended()) != 0 {
		t.Error("the session is to be resumed still")
	}
	p = begin(s)
	total := int64(0)
	for d, err := range p.c.Durable(t.Context(), 0) {
		if err != nil {
			t.Fatal(err)
		}
		total += d.Length
	}
	if total < 50*65536 || total > 60*65536 {
		t.Errorf("%d bytes are durable, want %d or some more", total, 50*65536)
	}
	if err := p.write(t.Context(), disk, 0, 1000); err != nil {
		t.Fatal(err)
	}
	if p.asked == 0 || first == 0 || p.asked > 46 {
		t.Errorf("%d chunks were stored before the restart, %d after it", first, p.asked)
	}
	ref, err := p.finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.mustHold(g.publish(s, ref), disk)
	g.reopen()
	if len(g.repo.Suspended()) != 0 {
		t.Error("a published session is to be resumed")
	}
	for info, err := range g.b.List(t.Context(), leaseFolder) {
		t.Error("left over:", info.Name, err)
	}
}

func mustPoints(t *testing.T, r *Repository) []RestorePoint {
	t.Helper()
	list, err := r.RestorePoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// TestResumeAbort gives a session up that an owner before left.
func TestResumeAbort(t *testing.T) {
	g := newRig(t)
	s, err := g.repo.Begin(t.Context(), SessionOptions{Series: "vm", Resumable: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Image(t.Context(), "sda", ImageOptions{SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	g.reopen()
	if s, err = g.repo.Resume(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	if err := s.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
	for info, err := range g.b.List(t.Context(), leaseFolder) {
		t.Error("left over:", info.Name, err)
	}
}

// TestJournalTampered changes records: what they name is not there, and never something else.
func TestJournalTampered(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(62, 1))
	t.Log("seed 62")
	disk := randomDisk(rnd, 4<<20)
	s, err := g.repo.Begin(t.Context(), SessionOptions{Series: "vm", Resumable: true})
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Image(t.Context(), "sda", ImageOptions{SizeBytes: int64(len(disk))})
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p := newPorter(g.repo, c)
	for at := range 4 {
		if err := errors.Join(p.write(t.Context(), disk, 16*at, 16*at+16), p.flush(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
	g.close()
	swap := func(from, to string) { // the record of another place
		b := must(os.ReadFile(g.dir + "/" + from))
		if err := errors.Join(os.Remove(g.dir+"/"+to), os.WriteFile(g.dir+"/"+to, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	swap(journalName(s.ID(), 0, 2), journalName(s.ID(), 0, 1))
	name := g.dir + "/" + journalName(s.ID(), 0, 3)
	b := must(os.ReadFile(name))
	b[len(b)/2] ^= 1
	if err := errors.Join(os.Remove(name), os.WriteFile(name, b, 0o600)); err != nil {
		t.Fatal(err)
	}
	g.open()
	if s, err = g.repo.Resume(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	w, err = s.Image(t.Context(), "sda", ImageOptions{SizeBytes: int64(len(disk))})
	if err != nil {
		t.Fatal(err)
	}
	total := int64(0)
	for d := range w.Durable(t.Context()) {
		total += d.Length
	}
	if total != 2<<20 {
		t.Errorf("%d bytes are durable by two of four records, want %d", total, 2<<20)
	}
	c, err = w.Attach(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p = newPorter(g.repo, c)
	if err := p.write(t.Context(), disk, 0, 1000); err != nil {
		t.Fatal(err)
	}
	if p.asked != 0 {
		t.Errorf("%d chunks stored again that are in the repository", p.asked)
	}
	ref, err := p.finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	g.mustHold(g.publish(s, ref), disk)
}

// TestCampaignResume cuts a session of a carried image off after every operation, in several ways, and goes on with it:
// the image is the right one, or resuming is refused in words; a Collect before that takes nothing it needs.
func TestCampaignResume(t *testing.T) {
	rounds := 1
	if os.Getenv("CAIRN_SOAK") != "" {
		rounds = 20
	}
	states, resumed, refused, durable := 0, 0, 0, 0
	for round := range rounds {
		seed := uint64(71 + round)
		l := newLife(seed, plant{}, "")
		disk := make([]byte, 26*chunk.MinBytes+100)
		fill(l.rnd, disk)
		clear(disk[5*chunk.MinBytes : 9*chunk.MinBytes])
		old := bytes.Clone(disk)
		for range 14 {
			fill(l.rnd, disk[l.rnd.IntN(24)*chunk.MinBytes:][:chunk.MinBytes])
		}
		var id string
		var begun, publish, done int
		err := l.record(func(l *life) {
			l.open()
			ref := l.backup(old, nil).Images[0].Ref
			s := must(l.r.Begin(context.Background(), SessionOptions{Series: "vm", Resumable: true}))
			id, begun = s.ID(), l.fs.Ops()
			w := must(s.Image(context.Background(), "sda", ImageOptions{SizeBytes: int64(len(disk)), Parent: &ref}))
			p := newPorter(l.r, must(w.Attach(context.Background())))
			check(p.write(context.Background(), disk, 0, 9), p.write(context.Background(), disk, 9, 18))
			p = newPorter(l.r, must(w.Attach(context.Background()))) // another takes over
			check(p.write(context.Background(), disk, 0, 1000))
			out := must(p.finish(context.Background()))
			publish = l.fs.Ops()
			must(s.Publish(context.Background(), Manifest{Images: []NamedImage{{Name: "sda", Ref: out}}}))
			done = l.fs.Ops()
			check(l.r.Close())
		})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for cut := l.fs.Disk(); ; {
			if cut.At() >= begun {
				for n := range 3 {
					states++
					v := verdict{fs: cut.Crash(crashfs.Loss(n), lossAt(seed, cut.At(), n)), key: l.key}
					where := fmt.Sprintf("seed %d cut after operation %d (%s), loss %d", seed, cut.At(), cut.Last(3), n)
					had, ok, err := goOnAfter(v, id, disk, states%2 == 0)
					if err != nil {
						t.Fatalf("%s: %v", where, err)
					}
					durable += had
					if ok {
						resumed++
					} else {
						refused++
					}
					if !ok && cut.At() < publish {
						t.Fatalf("%s: the session cannot be resumed", where)
					}
				}
			}
			if !cut.Step() || cut.At() >= done {
				break
			}
		}
	}
	t.Logf("campaign: resume: %d states, %d sessions resumed with %d chunks durable, %d refused in words after Publish began", states, resumed, durable, refused)
	if resumed == 0 || durable == 0 || refused == 0 {
		t.Error("the campaign missed something")
	}
}

// goOnAfter resumes a session, if it is there, and publishes the disk; had is how many chunks were durable.
func goOnAfter(v verdict, id string, disk []byte, collect bool) (had int, resumed bool, err error) {
	ctx := context.Background()
	r, err := v.open()
	if err != nil {
		return 0, false, fmt.Errorf("does not open: %w", err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if collect {
		if _, err := r.Collect(ctx, CollectOptions{Compact: 1}); err != nil {
			return 0, false, fmt.Errorf("collect: %w", err)
		}
	}
	s, err := r.Resume(ctx, id)
	if fault.KindOf(err) == fault.NotFound {
		if meaning, _ := fault.Explanation(err); meaning == "" {
			return 0, false, fmt.Errorf("refused without words: %w", err)
		}
		return 0, false, v.holds(ctx, r)
	}
	if err != nil {
		return 0, false, fmt.Errorf("resume: %w", err)
	}
	points, err := r.RestorePoints(ctx)
	if err != nil || len(points) != 1 {
		return 0, false, fmt.Errorf("%d restore points and a session: %w", len(points), err)
	}
	w, err := s.Image(ctx, "sda", ImageOptions{SizeBytes: int64(len(disk)), Parent: &points[0].Images[0].Ref})
	if err != nil {
		return 0, false, err
	}
	c, err := w.Attach(ctx)
	if err != nil {
		return 0, false, err
	}
	for d := range c.Durable(ctx, 0) {
		had += int(d.Length / chunk.MinBytes)
	}
	p := newPorter(r, c)
	if err := p.write(ctx, disk, 0, 1000); err != nil {
		return had, false, fmt.Errorf("go on: %w", err)
	}
	ref, err := p.finish(ctx)
	if err != nil {
		return had, false, fmt.Errorf("finish: %w", err)
	}
	point, err := s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "sda", Ref: ref}}})
	if err != nil {
		return had, false, fmt.Errorf("publish: %w", err)
	}
	return had, true, errors.Join(sameDisk(ctx, r, point, disk), v.holds(ctx, r))
}
