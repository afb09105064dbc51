package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/index"
)

// Suspended is a session of an owner before, which can be resumed, or forgotten. Until it has ended, what its journal
// names stays.
type Suspended struct {
	ID     string    `json:"id"`
	Series string    `json:"series"`
	Writer string    `json:"writer"`
	Time   time.Time `json:"time"` // when it was begun
}

// suspended is a session that nobody has resumed yet.
type suspended struct {
	Suspended
	s       *Session
	records map[uint32][]uint32 // of each image
}

// ID names the session: it is what Resume is called with after a restart.
func (s *Session) ID() string { return s.id() }

// leases reads what owners before have left: sessions that can be resumed, with their journals, and what is stale.
func (r *Repository) leases(ctx context.Context) (stale []string, err error) {
	var names []string
	for info, err := range r.b.List(ctx, leaseFolder) {
		if err != nil {
			return nil, fault.Context("read leases of repository", r.b.Location(), err)
		}
		names = append(names, info.Name)
	}
	r.asleep = map[string]*suspended{}
	for _, name := range names {
		id, _, _, journal, ok := parseLeaseName(name)
		if !ok || journal {
			continue
		}
		p, err := blob.Get(ctx, r.b, name, smallObject)
		if err != nil && !damaged(err) {
			return nil, fault.Context("read leases of repository", r.b.Location(), err)
		}
		var f leaseFile
		if err == nil && json.Unmarshal(p, &f) == nil && f.Resumable && f.Session == id && f.Series != "" {
			r.asleep[id] = &suspended{Suspended: Suspended{id, f.Series, f.Writer, f.Time}, records: map[uint32][]uint32{}}
		}
	}
	for _, name := range names {
		id, image, record, journal, ok := parseLeaseName(name)
		z := r.asleep[id]
		switch {
		case !ok || z == nil:
			stale = append(stale, name)
		case journal:
			z.records[image] = append(z.records[image], record)
		}
	}
	return stale, nil
}

// awaken makes sessions of those that can be resumed: until they are, or end, they keep what their journals name.
func (r *Repository) awaken(ctx context.Context) error {
	for id, z := range r.asleep {
		z.s = r.newSession(SessionOptions{Series: z.Series, Writer: z.Writer, Resumable: true}, leaseFolder+id)
		r.sessions[z.s] = struct{}{}
		for image, records := range z.records {
			slices.Sort(records)
			z.s.ordinals = max(z.s.ordinals, image+1) // also those that cannot be read have their names
			head, err := r.journalHead(ctx, id, image, records)
			if err == nil && head.Parent != nil {
				_, err = r.imageHead(ctx, *head.Parent) // as a root it would keep each collect from deciding
			}
			if err != nil {
				if !damaged(err) {
					return err
				}
				r.log.Warn("image of a session cannot be resumed", "session", id, "err", err)
				delete(z.records, image)
				continue
			}
			if head.Parent != nil {
				z.s.images[*head.Parent] = struct{}{}
			}
			_, err = r.notes(ctx, id, image, records, head.SizeBytes, func(n note) error { return z.s.keepNote(ctx, n) })
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Repository) journalHead(ctx context.Context, id string, image uint32, records []uint32) (h journalHead, err error) {
	if len(records) == 0 || records[0] != 0 {
		return h, fault.New(fault.Corrupt, "read journal", id, "image %d has no first record", image)
	}
	p, err := r.record(ctx, id, image, 0)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(p, &h); err != nil || h.SizeBytes < 0 || h.Key == "" {
		return h, fault.New(fault.Corrupt, "read journal", id, "image %d has no options: %v", image, err)
	}
	return h, nil
}

// notes gives everything that an image's records say to use. A record that is damaged is left out: what it names is
// sent again.
//
// It returns what the last of them says to have been stored.
func (r *Repository) notes(ctx context.Context, id string, image uint32, records []uint32, size int64, use func(note) error) (stored counts, err error) {
	chunks := (size + int64(r.config.ChunkBytes) - 1) / int64(r.config.ChunkBytes)
	for _, record := range records[1:] {
		p, err := r.record(ctx, id, image, record)
		var list []note
		if err == nil {
			var c counts
			list, c, err = parseNotes(p, chunks)
			if stored = stored.later(c); err != nil {
				err = fault.Wrap(fault.Corrupt, "read journal", id, err)
			}
		}
		if err != nil && !damaged(err) {
			return stored, err
		}
		if err != nil {
			r.log.Warn("record of a session's journal is damaged; what it names is stored again", "session", id, "err", err)
			continue
		}
		for _, n := range list {
			if err := use(n); err != nil {
				return stored, err
			}
		}
	}
	return stored, nil
}

// keepNote pins the packs that a chunk needs, if it is there.
func (s *Session) keepNote(ctx context.Context, n note) error {
	if n.id.IsZero() {
		return nil
	}
	var buf [4]index.Location
	places, err := s.r.idx.Lookup(buf[:0], n.id)
	if err != nil {
		return fault.Wrap(fault.Internal, "look up", n.id.Short(), err)
	}
	for _, at := range places {
		packs, ok, err := s.r.sound(ctx, at)
		if err != nil && !damaged(err) {
			return err
		}
		if err == nil && ok {
			s.pin(packs, true)
			return nil
		}
	}
	return nil
}

// Suspended lists the sessions of owners before that can be resumed, oldest first.
func (r *Repository) Suspended() []Suspended {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Suspended
	for _, z := range r.asleep {
		out = append(out, z.Suspended)
	}
	slices.SortFunc(out, func(a, b Suspended) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Resume goes on with a session of an owner before. Its images are those that were begun with a key: Image returns them,
// and Durable says what they have. NotFound: it has ended, or its restore point may have been published. After another
// error it may be resumed again, or be forgotten.
func (r *Repository) Resume(ctx context.Context, id string) (*Session, error) {
	ctx, leave, err := r.enter(ctx, "resume session")
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := r.writable("resume session"); err != nil {
		return nil, err
	}
	z, err := r.wake("resume session", id)
	if err != nil {
		return nil, err
	}
	for _, image := range slices.Sorted(maps.Keys(z.records)) { // of those with one key, the last counts
		if err := z.s.resumeImage(ctx, image, z.records[image]); err != nil {
			return nil, errors.Join(fault.Context("resume session", id, err), r.sleepAgain(ctx, z))
		}
	}
	return z.s, nil
}

// Forget gives up a session of an owner before: what its journal names is not kept any longer. NotFound as of Resume.
func (r *Repository) Forget(ctx context.Context, id string) error {
	ctx, leave, err := r.enter(ctx, "forget session")
	if err != nil {
		return err
	}
	defer leave()
	if err := r.writable("forget session"); err != nil {
		return err
	}
	z, err := r.wake("forget session", id)
	if err != nil {
		return err
	}
	return z.s.Abort(ctx)
}

// wake takes a session from those that are to be resumed.
func (r *Repository) wake(op, id string) (*suspended, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	z := r.asleep[id]
	if z == nil {
		return nil, fault.New(fault.NotFound, op, id, "there is none to be resumed").Explain(
			"The session had ended, or was about to publish, when the process before stopped.", "Look for its restore point; else begin the backup anew: what is stored is not stored again.")
	}
	delete(r.asleep, id)
	return z, nil
}

// sleepAgain makes a session that could not be resumed one that can be, or be forgotten: it keeps what it kept.
func (r *Repository) sleepAgain(ctx context.Context, z *suspended) error {
	half := z.s
	z.s = r.newSession(half.o, half.lease)
	half.mu.Lock()
	z.s.pins, z.s.images, z.s.ordinals = maps.Clone(half.pins), maps.Clone(half.images), half.ordinals
	half.mu.Unlock()
	r.mu.Lock()
	r.sessions[z.s] = struct{}{}
	r.asleep[z.ID] = z
	r.mu.Unlock()
	return half.stop(ctx, true)
}

// resumeImage makes an image what its journal says.
func (s *Session) resumeImage(ctx context.Context, image uint32, records []uint32) error {
	head, err := s.r.journalHead(ctx, s.id(), image, records)
	if err != nil {
		return err
	}
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: head.SizeBytes, Parent: head.Parent})
	if err != nil {
		return err
	}
	w.key, w.ordinal, w.record = head.Key, image, records[len(records)-1]
	w.carried()
	var t trail
	if before := s.keyed[head.Key]; before != nil { // it was begun anew
		w.restore(before.counts())
	}
	stored, err := s.r.notes(ctx, s.id(), image, records, head.SizeBytes, func(n note) error {
		if n.id.IsZero() {
			off := n.number * int64(w.ChunkBytes())
			if err := w.zeroRange(ctx, off, min(n.count*int64(w.ChunkBytes()), w.size-off)); err != nil {
				return err
			}
			w.mark(n.number, n.number+n.count)
			return nil
		}
		known, err := s.has(ctx, &t, n.id)
		if err != nil || !known {
			return err
		}
		return w.settle(ctx, n.number, n.id)
	})
	if err != nil {
		return err
	}
	w.restore(w.counts().later(stored))
	w.journal = true
	s.keyed[head.Key] = w
	return nil
}
