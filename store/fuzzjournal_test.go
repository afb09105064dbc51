package store

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/store/campaign/memory"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// FuzzNotes: what a record of a journal names is in the image.
func FuzzNotes(f *testing.F) {
	base := appendNote(appendNote(appendNote(nil, counts{1 << 20, 65536, 1, 0}.note()), note{3, 1, Hash{7}}), note{4, 60, Hash{}})
	boundary.Add(f, base, boundary.Binary(base))
	f.Fuzz(func(t *testing.T, p []byte) {
		const chunks = 64
		boundary.Bounded(t, len(p), 8, func() {
			list, c, err := parseNotes(p, chunks)
			if err != nil {
				return
			}
			var again []byte
			for _, n := range list {
				if n.number < 0 || n.count < 1 || n.number+n.count > chunks {
					t.Errorf("chunks %d+%d of %d", n.number, n.count, chunks)
				}
				again = appendNote(again, n)
			}
			if c.stored < 0 || c.fresh < 0 || c.chunks < 0 || c.refs < 0 {
				t.Errorf("negative counts: %+v", c)
			}
			if string(again) != string(p) && string(appendNote(nil, c.note()))+string(again) != string(p) {
				t.Error("a record is read as another")
			}
		})
	})
}

// FuzzLeaseName: a record of a journal has one name.
func FuzzLeaseName(f *testing.F) {
	base := []byte(journalName("01m80535s294v7sh9hh6568zdn", 1, 7))
	f.Add(string(base))
	for p := range boundary.Text(base) {
		f.Add(string(p))
	}
	f.Fuzz(func(t *testing.T, name string) {
		session, image, record, journal, ok := parseLeaseName(name)
		if ok && journal && journalName(session, image, record) != name {
			t.Errorf("%q is read as record %d of image %d of %q", name, record, image, session)
		}
	})
}

// FuzzJournalRecord puts anything in the place of a record: it is refused, or what was written.
func FuzzJournalRecord(f *testing.F) {
	ctx := context.Background()
	m := memory.New("fuzz")
	if err := Create(ctx, m, Key{}, CreateOptions{Name: "fuzz", ChunkBytes: chunk.MinBytes}); err != nil {
		f.Fatal(err)
	}
	c, id, keys, err := loadConfig(ctx, m, Key{})
	if err != nil {
		f.Fatal(err)
	}
	r := &Repository{b: m, id: id, keys: keys, config: c, o: Options{Cipher: seal.Preferred()}}
	const session = "01m80535s294v7sh9hh6568zdn"
	head, err := json.Marshal(journalHead{Key: "vda", SizeBytes: 1 << 40})
	if err != nil {
		f.Fatal(err)
	}
	if err := r.putRecord(ctx, session, 1, 0, head); err != nil {
		f.Fatal(err)
	}
	good := m.Content(journalName(session, 1, 0))
	boundary.Add(f, good, boundary.Text(good))
	f.Add([]byte(`{"format":1}`))
	f.Fuzz(func(t *testing.T, p []byte) {
		bad := &Repository{b: m.Clone(), id: id, keys: keys, config: c}
		bad.b.(*memory.Store).Set(journalName(session, 1, 0), p)
		boundary.Bounded(t, len(p), textFactor, func() {
			h, err := bad.journalHead(ctx, session, 1, []uint32{0})
			if err == nil && (h.Key != "vda" || h.SizeBytes != 1<<40) {
				t.Errorf("it is read as %+v", h)
			}
			if err != nil && !damaged(err) {
				t.Errorf("refused as %v, not as damaged", err)
			}
		})
	})
}
