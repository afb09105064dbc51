package store

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// Session is one writer's work towards one restore point. It ends with Publish or Abort; until then a durable lease
// records it, and no Collect removes what it has come to rely on. Its methods may be called from several goroutines.
type Session struct {
	r     *Repository
	o     SessionOptions
	lease string

	// life is held shared by every write, exclusively by what ends the session: so the end waits for the writes.
	life sync.RWMutex
	over bool

	mu       sync.Mutex
	err      error                  // the first failure; nothing can be published after it
	packs    map[pack.Kind]*filling // the pack that frames of a kind go to
	all      map[*filling]struct{}  // packs that are not durable yet
	written  []*pack.Directory      // durable, not indexed yet
	pending  map[Hash]struct{}      // objects on their way: claimed, not in the index
	pins     map[seal.ID]bool       // packs this session relies on or has written; true: without having read all it relies on
	images   map[ImageRef]struct{}  // stored images relied on
	finished map[ImageRef]struct{}  // images written in this session
	metaBufs []*frame
	carriers map[*Carrier]struct{}
	keying   sync.Mutex
	keyed    map[string]*ImageWriter // images that were begun with a key
	ordinals uint32                  // of these

	near near
}

// filling is a pack being written.
type filling struct {
	w     *pack.Writer
	users int
	full  bool
	done  chan struct{} // closed when it is full, has no users and is indexed, or never will be
}

// frame is a frame being filled.
type frame struct {
	plain []byte
	items []pack.Item
}

// Begin starts a session. Its lease is durable on return.
func (r *Repository) Begin(ctx context.Context, o SessionOptions) (*Session, error) {
	ctx, leave, err := r.enter(ctx, "begin session")
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := r.writable("begin session"); err != nil {
		return nil, err
	}
	if o.Series == "" {
		return nil, fault.New(fault.Invalid, "begin session", "", "it names no series")
	}
	if err := checkText("begin session", "name of a series", o.Series, maxSeries); err != nil {
		return nil, err
	}
	if err := checkText("begin session", "name of a writer", o.Writer, maxSeries); err != nil {
		return nil, err
	}
	id := strings.ToLower(ulid.MustNew(ulid.Timestamp(time.Now()), rand.Reader).String())
	p, err := json.Marshal(leaseFile{formatVersion, id, r.epoch, o.Series, o.Writer, time.Now().UTC(), o.Resumable})
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "begin session", o.Series, err)
	}
	if err := blob.Put(ctx, r.b, leaseFolder+id, p); err != nil {
		return nil, fault.Context("begin session", o.Series, err)
	}
	fault.Point("store.session.lease-written")
	s := r.newSession(o, leaseFolder+id)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sessions[s] = struct{}{}
	return s, nil
}

// Lease is the name of the session's object in the backend, which is there as long as the session lives.
func (s *Session) Lease() string { return s.lease }

func (r *Repository) newSession(o SessionOptions, lease string) *Session {
	return &Session{
		r: r, o: o, lease: lease, packs: map[pack.Kind]*filling{}, all: map[*filling]struct{}{},
		pending: map[Hash]struct{}{}, pins: map[seal.ID]bool{}, images: map[ImageRef]struct{}{}, finished: map[ImageRef]struct{}{},
		carriers: map[*Carrier]struct{}{}, keyed: map[string]*ImageWriter{},
	}
}

// Wrote reports whether an image was written in this session, to its end.
func (s *Session) Wrote(ref ImageRef) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.finished[ref]
	return ok
}

// enter lets a write in, unless the session is over or has failed. leave must follow.
func (s *Session) enter() error {
	s.life.RLock()
	err := s.failed()
	if s.over && err == nil {
		err = fault.New(fault.Conflict, "write to session", s.o.Series, "it is over")
	}
	if err != nil {
		s.life.RUnlock()
	}
	return err
}

func (s *Session) ended() bool {
	s.life.RLock()
	defer s.life.RUnlock()
	return s.over
}

func (s *Session) leave() { s.life.RUnlock() }

func (s *Session) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail makes err final: what was claimed may not have been stored, so nothing of this session can be published.
func (s *Session) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	return err
}

// has reports whether an object is stored already, and if so makes sure that it stays: the packs it needs are pinned
// before a collect can decide about them. A copy whose references lead nowhere any more does not count, nor does one
// that needs a pack in which damage was found; while there is such a pack, a copy counts only after it was read.
func (s *Session) has(ctx context.Context, t *trail, id Hash) (bool, error) {
	if known, err := s.hasNear(ctx, t, id); known || err != nil {
		return known, err
	}
	s.r.gc.RLock()
	defer s.r.gc.RUnlock()
	wary := s.r.idx.AnySuspect()
	var buf [4]index.Location
	places, err := s.r.idx.Lookup(buf[:0], id)
	if err != nil {
		return false, fault.Wrap(fault.Internal, "look up", id.Short(), err)
	}
	for _, at := range places {
		packs, ok, err := s.r.sound(ctx, at)
		if ok && err == nil && wary {
			err = s.r.proveCopy(ctx, id, at)
		}
		if err != nil && !damaged(err) {
			return false, err
		}
		if err != nil || !ok {
			continue // it is stored again, which is what a damaged copy needs
		}
		s.pin(packs, !wary)
		s.follow(ctx, t, at)
		return true, nil
	}
	return false, nil
}

func (s *Session) pin(packs []seal.ID, unread bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range packs {
		s.pins[id] = s.pins[id] || unread
	}
}

// claim reports whether the caller is to store an object that the index does not have.
func (s *Session) claim(id Hash) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.pending[id]; ok {
		return false
	}
	s.pending[id] = struct{}{}
	return true
}

// storeFrame seals a frame into a pack of the kind and answers how many bytes it took.
func (s *Session) storeFrame(ctx context.Context, kind pack.Kind, f *frame) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, s.fail(err)
	}
	p, err := s.borrow(ctx, kind)
	if err != nil {
		return 0, s.fail(err)
	}
	n, err := p.w.AddFrame(f.plain, f.items)
	fault.Point("store.session.frame-written")
	if err != nil {
		err = s.fail(fault.Context("write pack", pack.Name(p.w.ID()), err))
	}
	return n, errors.Join(err, s.giveBack(ctx, kind, p))
}

// borrow returns the pack that frames of a kind go to.
func (s *Session) borrow(ctx context.Context, kind pack.Kind) (*filling, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.packs[kind]; p != nil {
		p.users++
		return p, nil
	}
	id := seal.NewID()
	out, err := s.r.b.Create(ctx, pack.Name(id))
	if err != nil {
		return nil, err
	}
	head := pack.Header{Kind: kind, Cipher: s.r.o.Cipher, Repository: s.r.id, ID: id, KeyID: s.r.keys.ID, Salt: seal.NewSalt()}
	w, err := pack.NewWriter(out, head, s.r.keys.Data, s.r.blocks, s.r.coder(), s.r.bufs)
	if err != nil {
		return nil, errors.Join(err, out.Abort())
	}
	fault.Point("store.session.pack-created")
	p := &filling{w: w, users: 1, done: make(chan struct{})}
	s.packs[kind] = p
	s.all[p] = struct{}{}
	s.pins[id] = true
	return p, nil
}

// giveBack ends a use; the last user of a full pack makes it durable and indexes it.
func (s *Session) giveBack(ctx context.Context, kind pack.Kind, p *filling) error {
	size := p.w.Size()
	s.mu.Lock()
	p.users--
	if size >= int64(s.r.o.packBytes) && s.packs[kind] == p {
		p.full = true
		delete(s.packs, kind)
	}
	last, failed := p.full && p.users == 0, s.err != nil
	s.mu.Unlock()
	if !last {
		return nil
	}
	defer close(p.done)
	if failed {
		return nil
	}
	fault.Point("store.session.pack-full")
	d, err := s.finishPack(ctx, p)
	if err == nil {
		fault.Point("store.session.pack-durable")
		err = s.indexPack(d)
		fault.Point("store.session.pack-indexed")
	}
	if err != nil {
		return s.fail(err)
	}
	return nil
}

// finishPack makes a pack durable.
func (s *Session) finishPack(ctx context.Context, p *filling) (*pack.Directory, error) {
	d, err := p.w.Finish(ctx)
	if err != nil {
		return nil, fault.Context("write pack", pack.Name(p.w.ID()), s.r.overtaken(ctx, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, p)
	return d, nil
}

// indexPack makes a durable pack known.
func (s *Session) indexPack(d *pack.Directory) error {
	if err := s.r.idx.Add(d); err != nil {
		return fault.Wrap(fault.Internal, "index pack", pack.Name(d.Header.ID), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range d.Entries {
		delete(s.pending, d.Entries[i].ID)
	}
	return nil
}

// flush makes everything stored so far durable. No write may be running, except with kinds that are not flushed.
func (s *Session) flush(ctx context.Context, kinds ...pack.Kind) ([]*pack.Directory, error) {
	var done []*pack.Directory
	for _, kind := range kinds {
		s.mu.Lock()
		p := s.packs[kind]
		delete(s.packs, kind)
		s.mu.Unlock()
		if p == nil {
			continue
		}
		d, err := s.finishPack(ctx, p)
		if err != nil {
			return nil, s.fail(err)
		}
		done = append(done, d)
	}
	return done, nil
}

// putObject stores a node, image head or document piece, unless it is stored already.
func (s *Session) putObject(ctx context.Context, typ pack.EntryType, p []byte) (Hash, error) {
	id := s.r.objectID(typ, p)
	known, err := s.has(ctx, nil, id)
	if err != nil {
		return id, s.fail(err)
	}
	if known || !s.claim(id) {
		return id, nil
	}
	f := s.takeMeta()
	if len(f.plain) > 0 && len(f.plain)+len(p) > frameTarget {
		if _, err := s.storeFrame(ctx, pack.Meta, f); err != nil {
			return id, err
		}
		f.plain, f.items = f.plain[:0], nil
	}
	f.items = append(f.items, pack.Item{Entry: pack.Entry{Type: typ, ID: id, Offset: uint32(len(f.plain)), Length: uint32(len(p))}})
	f.plain = append(f.plain, p...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.metaBufs = append(s.metaBufs, f)
	return id, nil
}

func (s *Session) takeMeta() *frame {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.metaBufs)
	if n == 0 {
		return &frame{plain: make([]byte, 0, frameTarget)}
	}
	f := s.metaBufs[n-1]
	s.metaBufs = s.metaBufs[:n-1]
	return f
}

// storeMeta stores the frames of objects that are not full.
func (s *Session) storeMeta(ctx context.Context) error {
	s.mu.Lock()
	bufs := s.metaBufs
	s.metaBufs = nil
	s.mu.Unlock()
	for _, f := range bufs {
		if len(f.plain) == 0 {
			continue
		}
		if _, err := s.storeFrame(ctx, pack.Meta, f); err != nil {
			return err
		}
	}
	return nil
}

// readableMeta makes objects stored in this session readable.
func (s *Session) readableMeta(ctx context.Context) error {
	if err := s.storeMeta(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	p := s.packs[pack.Meta]
	if p != nil {
		p.full = true
		delete(s.packs, pack.Meta)
		p.users++
	}
	s.mu.Unlock()
	if p == nil {
		return nil
	}
	if err := s.giveBack(ctx, pack.Meta, p); err != nil {
		return err
	}
	select {
	case <-p.done:
		return s.failed()
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Abort gives the session up: its unfinished packs are removed, its finished ones wait for Collect (a next session
// finds their chunks until then). After Publish it does nothing. It does its work even if ctx is cancelled.
func (s *Session) Abort(ctx context.Context) error { return s.stop(ctx, false) }

// stop is Abort, or, with keep, leaves a session to be resumed by another owner.
func (s *Session) stop(ctx context.Context, keep bool) error {
	_ = s.fail(fault.New(fault.Canceled, "write to session", s.o.Series, "it was aborted"))
	s.life.Lock()
	defer s.life.Unlock()
	if s.over {
		return nil
	}
	s.over = true
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for p := range s.all {
		errs = append(errs, p.w.Abort())
	}
	errs = append(errs, s.endCarriers(ctx))
	fault.Point("store.abort.packs-removed")
	// A finished pack that no index names would be found at the next open only.
	for _, d := range s.written {
		errs = append(errs, s.indexPack(d))
	}
	if keep {
		errs = append(errs, s.suspend(ctx))
	} else {
		errs = append(errs, s.end(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fault.Context("abort session", s.o.Series, err)
	}
	return nil
}

// endCarriers ends what other processes may do in the session, which nobody is in any more.
func (s *Session) endCarriers(ctx context.Context) error {
	var errs []error
	for c := range s.carriers {
		errs = append(errs, c.end(ctx))
	}
	return errors.Join(errs...)
}

// suspend leaves lease and journal to the next owner.
func (s *Session) suspend(ctx context.Context) error {
	var errs []error
	for _, w := range s.keyed {
		errs = append(errs, w.checkpoint(ctx))
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	delete(s.r.sessions, s)
	return errors.Join(errs...)
}

// end takes the session off the books. Its pins end here.
func (s *Session) end(ctx context.Context) error {
	s.r.mu.Lock()
	delete(s.r.sessions, s)
	s.r.mu.Unlock()
	err := s.endLease(ctx)
	if !s.o.Resumable || err != nil {
		return err
	}
	return s.endJournal(ctx)
}

// endLease removes the lease: nobody resumes the session from now on. That of one which can be resumed may be another
// owner's by now.
func (s *Session) endLease(ctx context.Context) error {
	if s.o.Resumable {
		if err := s.r.fence(ctx); err != nil {
			return err
		}
	}
	err := s.r.b.Delete(ctx, s.lease)
	fault.Point("store.session.lease-removed")
	if fault.KindOf(err) == fault.NotFound {
		return nil
	}
	return err
}

// endJournal removes the records of the session's images. Without the lease the next open does it, too.
func (s *Session) endJournal(ctx context.Context) error {
	var names []string
	for info, err := range s.r.b.List(ctx, leaseFolder) {
		if err != nil {
			return err
		}
		if id, _, _, journal, _ := parseLeaseName(info.Name); journal && id == s.id() {
			names = append(names, info.Name)
		}
	}
	for _, name := range names {
		if err := s.r.b.Delete(ctx, name); err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
	}
	return nil
}
