package store

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// A journal says how far an image of a resumable session has come: its options, then, in records that are written with
// each pack that became durable, which content lies where. What is in it is durable, so that a record that is lost, or
// was taken away, costs work and nothing else. A record is sealed, and bound to session, image and place.

const (
	noteBytes  = 48
	journalMax = 8 << 10 // notes in one record
)

// note is a chunk that is in an image, or a run of chunks of zeros.
type note struct {
	number, count int64
	id            Hash
}

// counts are how much of an image was new to the repository, by this owner or those before: a record begins with those of its time,
// as a note of no chunks.
type counts struct{ stored, fresh, chunks, refs int64 }

func (w *ImageWriter) counts() counts {
	return counts{w.stored.Load(), w.fresh.Load(), w.new.Load(), w.refs.Load()}
}

func (w *ImageWriter) restore(c counts) {
	w.stored.Store(c.stored)
	w.fresh.Store(c.fresh)
	w.new.Store(c.chunks)
	w.refs.Store(c.refs)
}

// later is the one of two records' counts that was written later: counts only grow.
func (c counts) later(o counts) counts {
	return counts{max(c.stored, o.stored), max(c.fresh, o.fresh), max(c.chunks, o.chunks), max(c.refs, o.refs)}
}

// note carries the counts.
func (c counts) note() (n note) {
	for i, v := range []int64{c.stored, c.fresh, c.chunks, c.refs} {
		binary.LittleEndian.PutUint64(n.id[8*i:], uint64(v))
	}
	return n
}

// counts reads what counts.note wrote; false, it is another note.
func (n note) counts() (c counts, ok bool) {
	for i, v := range []*int64{&c.stored, &c.fresh, &c.chunks, &c.refs} {
		*v = int64(binary.LittleEndian.Uint64(n.id[8*i:]))
		if *v < 0 {
			return counts{}, false
		}
	}
	return c, n.number == 0 && n.count == 0
}

// journalFile is a record as it is stored.
type journalFile struct {
	Format int         `json:"format"`
	Key    uint32      `json:"key"`
	Cipher seal.Cipher `json:"cipher"`
	Salt   []byte      `json:"salt"`
	Sealed []byte      `json:"sealed"`
}

// journalHead is the plaintext of an image's first record.
type journalHead struct {
	Key       string    `json:"key"`
	SizeBytes int64     `json:"size_bytes"`
	Parent    *ImageRef `json:"parent,omitempty"`
}

// journalName names a record; the first of an image, record 0, has its options.
func journalName(session string, image, record uint32) string {
	return fmt.Sprintf("%s%s.%04x.%08x", leaseFolder, session, image, record)
}

// parseLeaseName tells a session's lease from the records of its journal.
func parseLeaseName(name string) (session string, image, record uint32, journal, ok bool) {
	parts := strings.Split(strings.TrimPrefix(name, leaseFolder), ".")
	session = parts[0]
	if len(parts) == 1 {
		return session, 0, 0, false, true
	}
	if len(parts) != 3 {
		return session, 0, 0, false, false
	}
	if _, err := fmt.Sscanf(parts[1]+" "+parts[2], "%x %x", &image, &record); err != nil || journalName(session, image, record) != name {
		return session, 0, 0, false, false
	}
	return session, image, record, true, true
}

// journalBox seals records of a session. The salt is a record's own.
func (r *Repository) journalBox(f *journalFile, session string) (*seal.Box, error) {
	id, err := ulid.ParseStrict(strings.ToUpper(session))
	if err != nil || len(f.Salt) != len(seal.Salt{}) || f.Key != r.keys.ID || f.Format != formatVersion {
		return nil, errors.New("it is no record of a session's journal that this key opens")
	}
	return seal.NewCipherBox(f.Cipher, r.keys.Data, f.Key, formatVersion, r.id, seal.ID(id), seal.Salt(f.Salt))
}

func journalPlace(image, record uint32) uint64 { return uint64(image)<<32 | uint64(record) }

// putRecord writes a record, behind the fence. Exists: an owner that was overtaken has come between fence and writing.
func (r *Repository) putRecord(ctx context.Context, session string, image, record uint32, plain []byte) error {
	if err := r.fence(ctx); err != nil {
		return err
	}
	salt := seal.NewSalt()
	f := journalFile{Format: formatVersion, Key: r.keys.ID, Cipher: r.o.Cipher, Salt: salt[:]}
	box, err := r.journalBox(&f, session)
	if err != nil {
		return fault.Wrap(fault.Internal, "write journal", session, err)
	}
	f.Sealed = box.Seal(nil, seal.Journal, journalPlace(image, record), uint64(len(plain)), plain)
	p, err := json.Marshal(f)
	if err != nil {
		return fault.Wrap(fault.Internal, "write journal", session, err)
	}
	if err := blob.Put(ctx, r.b, journalName(session, image, record), p); err != nil {
		return fault.Context("write journal", session, err)
	}
	fault.Point("store.journal.record-written")
	return nil
}

func (r *Repository) record(ctx context.Context, session string, image, record uint32) ([]byte, error) {
	name := journalName(session, image, record)
	p, err := blob.Get(ctx, r.b, name, smallObject)
	if err != nil {
		return nil, err
	}
	var f journalFile
	if err := json.Unmarshal(p, &f); err != nil {
		return nil, fault.Wrap(fault.Corrupt, "read journal", name, err)
	}
	box, err := r.journalBox(&f, session)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, "read journal", name, err)
	}
	plain, err := box.Open(nil, seal.Journal, journalPlace(image, record), uint64(len(f.Sealed)-seal.Overhead), f.Sealed)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, "read journal", name, err)
	}
	return plain, nil
}

func appendNote(dst []byte, n note) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, uint64(n.number))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(n.count))
	return append(dst, n.id[:]...)
}

// parseNotes decodes a record of an image of some chunks. Records before Cairn counted begin with no counts.
func parseNotes(p []byte, chunks int64) (out []note, c counts, err error) {
	if len(p)%noteBytes != 0 {
		return nil, c, fmt.Errorf("a record of %d bytes", len(p))
	}
	for at := 0; at < len(p); at += noteBytes {
		q := p[at:]
		n := note{int64(binary.LittleEndian.Uint64(q)), int64(binary.LittleEndian.Uint64(q[8:])), chunk.Hash(q[16:48])}
		if first, ok := n.counts(); ok && at == 0 {
			c = first
			continue
		}
		if n.number < 0 || n.count < 1 || n.number >= chunks || n.count > chunks-n.number || n.count > 1 && !n.id.IsZero() {
			return nil, counts{}, fmt.Errorf("chunks %d+%d of %d", n.number, n.count, chunks)
		}
		out = append(out, n)
	}
	return out, c, nil
}

// note remembers a chunk that is in the image for the next record.
func (w *ImageWriter) note(ctx context.Context, number int64, id Hash) error {
	return w.addNote(ctx, note{number, 1, id})
}

func (w *ImageWriter) noteZeros(ctx context.Context, from, end int64) error {
	return w.addNote(ctx, note{from, end - from, Hash{}})
}

func (w *ImageWriter) addNote(ctx context.Context, n note) error {
	if !w.journal || n.count == 0 {
		return nil
	}
	w.mu.Lock()
	if last := len(w.notes) - 1; last >= 0 && n.id.IsZero() && w.notes[last].id.IsZero() && w.notes[last].number+w.notes[last].count == n.number {
		w.notes[last].count += n.count
	} else {
		w.notes = append(w.notes, n)
	}
	full := len(w.notes) >= journalMax
	w.mu.Unlock()
	if full {
		return w.checkpoint(ctx)
	}
	return nil
}

// checkpoint makes durable what the image has.
func (w *ImageWriter) checkpoint(ctx context.Context) error {
	if !w.journal {
		return nil
	}
	w.journaling.Lock()
	defer w.journaling.Unlock()
	w.mu.Lock()
	notes := w.notes
	w.notes = nil
	w.mu.Unlock()
	for len(notes) > 0 {
		n := min(len(notes), journalMax)
		p := appendNote(make([]byte, 0, (n+1)*noteBytes), w.counts().note())
		for _, x := range notes[:n] {
			p = appendNote(p, x)
		}
		var err error
		for taken := true; taken; taken = fault.KindOf(err) == fault.Exists {
			w.record++
			err = w.s.r.putRecord(context.WithoutCancel(ctx), w.s.id(), w.ordinal, w.record, p)
		}
		if err != nil {
			return w.s.fail(err)
		}
		notes = notes[n:]
	}
	return nil
}

// beginJournal makes it durable that an image was begun. s.keying is held.
func (w *ImageWriter) beginJournal(ctx context.Context) error {
	p, err := json.Marshal(journalHead{w.key, w.size, w.o.Parent})
	if err != nil {
		return fault.Wrap(fault.Internal, "write journal", w.key, err)
	}
	for taken := true; taken; taken = fault.KindOf(err) == fault.Exists {
		w.ordinal = w.s.ordinals
		w.s.ordinals++
		err = w.s.r.putRecord(ctx, w.s.id(), w.ordinal, 0, p)
	}
	if err != nil {
		return w.s.fail(err)
	}
	w.journal = true
	return nil
}

// id is the session's, as its lease is named.
func (s *Session) id() string { return strings.TrimPrefix(s.lease, leaseFolder) }
