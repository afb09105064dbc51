package images

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const (
	pageBytes = 8192
	baseFile  = 64 * mib // of the database's files, the last one may be smaller
	walBytes  = 16 * mib
	databases = "var/lib/appdb/base/"
)

// makeDatabase makes files of pages of 8 KiB that hold rows.
func (w *world) makeDatabase(n int) error {
	for i, left := 0, n*mib; left > 0; i++ {
		size := min(left, baseFile)
		var b bytes.Buffer
		b.Grow(size)
		for b.Len() < size {
			b.Write(w.page())
		}
		if err := w.write(fmt.Sprintf("%s%05d", databases, 16384+i), b.Bytes()); err != nil {
			return err
		}
		left -= size
	}
	return nil
}

// page has a header of 24 bytes and rows of numbers, times and texts; a tenth of it is free.
func (w *world) page() []byte {
	p := make([]byte, pageBytes)
	binary.LittleEndian.PutUint64(p, w.rng.Uint64()>>16)
	for at := 24; at < pageBytes*9/10; {
		at += copy(p[at:], w.row())
	}
	return p
}

func (w *world) row() []byte {
	r := binary.LittleEndian.AppendUint64(nil, w.rng.Uint64()>>20)
	r = binary.LittleEndian.AppendUint64(r, 1767225600000000+uint64(w.day)*86400000000+w.rng.Uint64N(86400000000))
	r = binary.LittleEndian.AppendUint32(r, uint32(w.rng.IntN(1000)))
	return append(r, w.text(w.between(40, 200))...)
}

// updatePages updates pages in place: anywhere, as by the keys of customers and articles, or mostly in a hot fifth of
// each file, as by what is new.
func (w *world) updatePages(share float64, uniform bool) error {
	files, err := w.names(strings.TrimSuffix(databases, "/"))
	if err != nil {
		return err
	}
	for _, name := range files {
		if err := w.updateFile(name, share, uniform); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) updateFile(name string, share float64, uniform bool) (err error) {
	f, err := w.root.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	pages := int(info.Size() / pageBytes)
	p := make([]byte, pageBytes)
	for range int(share * float64(pages)) {
		at := w.rng.IntN(pages)
		if !uniform && w.rng.IntN(10) < 7 {
			at = pages/2 + at/5
		}
		off := int64(at) * pageBytes
		if _, err := f.ReadAt(p, off); err != nil {
			return err
		}
		binary.LittleEndian.PutUint64(p, w.rng.Uint64()>>16)
		for range w.between(1, 4) {
			copy(p[w.between(24, pageBytes-400):], w.row())
		}
		if _, err := f.WriteAt(p, off); err != nil {
			return err
		}
	}
	return nil
}

// writeWALs overwrites write-ahead log segments, of which there are four that take turns.
func (w *world) writeWALs(n int) error {
	for i := range n {
		var b bytes.Buffer
		for b.Len() < walBytes {
			b.Write(w.row())
			b.Write(make([]byte, w.rng.IntN(24)))
		}
		if err := w.write(fmt.Sprintf("var/lib/appdb/wal/%04d", (w.day*n+i)%4), b.Bytes()[:walBytes]); err != nil {
			return err
		}
	}
	return nil
}

// script inserts rows into a SQLite database and updates others.
const script = `
import random, sqlite3, sys
path, seed, insert, update = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
r = random.Random(seed)
db = sqlite3.connect(path)
db.execute("create table if not exists t (id integer primary key, k text, v blob)")
db.execute("create index if not exists tk on t (k)")
top = db.execute("select coalesce(max(id), 0) from t").fetchone()[0]
for i in range(insert):
    db.execute("insert into t (k, v) values (?, ?)", ("%012x" % r.getrandbits(48), (b"%d " % r.getrandbits(20)) * r.randrange(8, 60)))
for i in range(update if top else 0):
    db.execute("update t set v = ? where id = ?", ((b"%d " % r.getrandbits(20)) * r.randrange(8, 60), r.randrange(1, top + 1)))
db.commit()
db.close()
`

func (w *world) sqlite(ctx context.Context, insert, update int) error {
	if insert+update == 0 {
		return nil
	}
	const folder = "var/lib/app"
	if err := w.root.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "/usr/bin/python3", "-c", script, filepath.Join(w.dir, folder, "app.db"),
		fmt.Sprint(w.seed+uint64(w.day)), fmt.Sprint(insert), fmt.Sprint(update))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("update SQLite database: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}
