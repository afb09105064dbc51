// Package workload is the life of a small repository: what campaigns do to it while they break the ground under it,
// and what they ask of what is left.
//
// It is not a benchmark and no model of a VM. Its invariant: every restore point carries the hashes of its disks in
// its labels, so whoever sees it can say whether it is whole, and everything a caller was promised is acknowledged.
package workload

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// ChunkBytes is the chunk size of the repositories: the smallest, so that little data has much structure.
const ChunkBytes = 16 << 10

const diskBytes = 40*ChunkBytes + 1000

// Config says where a life is lived.
type Config struct {
	Dir      string // of the repository
	IndexDir string
	KeyFile  string // made if it is not there
	Seed     uint64
	Lives    int  // opens; 0 is 3
	Big      bool // with a disk that fills a pack
	Set      bool // on an erasure set, whose members are folders of Dir; its disks rot, are replaced, and get more
	Heal     bool // what is damaged is healed from a copy
	FS       file.FS
	Acks     io.Writer // gets one line per Write
}

// worker is a life at work.
type worker struct {
	c      Config
	rnd    *rand.Rand
	key    store.Key
	b      blob.Store
	r      *store.Repository
	disks  map[string][]byte // per series, as last backed up
	points []store.RestorePoint
}

// Run lives through it. The same seed does the same.
func Run(ctx context.Context, c Config) error {
	if c.FS == nil {
		c.FS = file.OS{}
	}
	if c.Lives == 0 {
		c.Lives = 3
	}
	w := &worker{c: c, rnd: rand.New(rand.NewPCG(c.Seed, 1)), disks: map[string][]byte{}}
	var err error
	if w.key, err = Key(c.KeyFile); err != nil {
		return err
	}
	switch {
	case c.Set:
		return w.onSet(ctx)
	case c.Heal:
		return w.healed(ctx)
	}
	if w.b, err = file.CreateFS(c.FS, c.Dir); err != nil {
		return err
	}
	defer w.b.Close()
	if err := store.Create(ctx, w.b, w.key, store.CreateOptions{Name: "campaign", ChunkBytes: ChunkBytes}); err != nil {
		return err
	}
	w.ack("created")
	for life := range c.Lives {
		if err := w.live(ctx, life); err != nil {
			return fmt.Errorf("life %d: %w", life, err)
		}
	}
	w.ack("done")
	return nil
}

// newKey is added to the name of the key file for the key that comes after it.
const newKey = ".new"

// Key reads the key file, or makes it.
func Key(path string) (store.Key, error) {
	if _, err := os.Stat(path); err == nil {
		return store.LoadKeyFile(path)
	}
	return store.NewKeyFile(path)
}

func (w *worker) ack(format string, args ...any) {
	if _, err := fmt.Fprintf(w.c.Acks, format+"\n", args...); err != nil {
		panic(err)
	}
}

// live is one open: backups of two series, one given up, a prune, a collect.
func (w *worker) live(ctx context.Context, life int) (err error) {
	if life == 1 {
		if err := w.leaveLitter(ctx); err != nil {
			return err
		}
	}
	if life == 2 {
		if err := w.rotate(ctx); err != nil {
			return err
		}
	}
	if w.r, err = store.Open(ctx, w.b, w.key, store.Options{IndexDir: w.c.IndexDir}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.r.Close()) }()
	w.ack("open %d", life)
	for _, series := range []string{"a", "b", "a"} {
		w.change(series)
		if err := w.backup(ctx, series); err != nil {
			return err
		}
	}
	if err := w.giveUp(ctx); err != nil {
		return err
	}
	if w.c.Big && life == 0 {
		w.disks["big"] = random(w.rnd, 46<<20)
		if err := w.backup(ctx, "big"); err != nil {
			return err
		}
	}
	for range 2 {
		if err := w.prune(ctx); err != nil {
			return err
		}
	}
	w.ack("collect")
	report, err := w.r.Collect(ctx, store.CollectOptions{Compact: 0.97})
	if err != nil {
		return err
	}
	w.ack("collected %d", report.PacksFreed)
	w.change("b")
	return w.backup(ctx, "b")
}

// rotate gives the repository another key.
func (w *worker) rotate(ctx context.Context) error {
	next, err := Key(w.c.KeyFile + newKey)
	if err != nil {
		return err
	}
	w.ack("rotate")
	if err := store.RotateKey(ctx, w.b, w.key, next); err != nil {
		return err
	}
	w.ack("rotated")
	w.key = next
	return nil
}

// leaveLitter is what a process that died leaves: an unfinished file, a lease, no index.
func (w *worker) leaveLitter(ctx context.Context) error {
	lease := `{"format":1,"session":"01m80535s294v7sh9hh6568zdn","epoch":1,"series":"a","writer":"dead","time":"2026-11-22T00:00:00Z"}`
	return errors.Join(
		os.WriteFile(filepath.Join(w.c.Dir, "tmp", "left"), []byte("unfinished"), 0o600),
		blob.Put(ctx, w.b, "leases/01m80535s294v7sh9hh6568zdn", []byte(lease)),
		os.RemoveAll(w.c.IndexDir))
}

// change is a day in the life of a disk: a few blocks, a hole, now and then all of it.
func (w *worker) change(series string) {
	disk := w.disks[series]
	if disk == nil || w.rnd.IntN(6) == 0 {
		disk = random(w.rnd, diskBytes)
		copy(disk[8*ChunkBytes:], make([]byte, 6*ChunkBytes))
		if series == "b" && w.disks["a"] != nil {
			copy(disk, w.disks["a"][:12*ChunkBytes]) // the same operating system
		}
	}
	for range 1 + w.rnd.IntN(6) {
		at := w.rnd.IntN(len(disk) - 5000)
		copy(disk[at:], random(w.rnd, 1+w.rnd.IntN(5000)))
	}
	at := w.rnd.IntN(30) * ChunkBytes
	clear(disk[at : at+ChunkBytes])
	w.disks[series] = disk
}

func random(rnd *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := 0; i < n; i += 8 {
		v := rnd.Uint64()
		for k := i; k < min(i+8, n); k++ {
			p[k] = byte(v)
			v >>= 8
		}
	}
	for i := 0; i+4096 <= n; i += 16384 {
		copy(p[i:], textBlock) // something to compress
	}
	return p
}

var textBlock = func() []byte {
	p := make([]byte, 4096)
	for i := range p {
		p[i] = "no restore point is lost. "[i%26]
	}
	return p
}()

func (w *worker) newest(series string) *store.ImageRef {
	for i := len(w.points) - 1; i >= 0; i-- {
		if w.points[i].Series == series {
			return &w.points[i].Images[0].Ref
		}
	}
	return nil
}

func (w *worker) backup(ctx context.Context, series string) error {
	parent := w.newest(series)
	if w.rnd.IntN(4) == 0 {
		parent = nil
	}
	p, err := Backup(ctx, w.r, series, w.disks[series], parent)
	if err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	w.points = append(w.points, p)
	w.ack("published %s", p.ID)
	return nil
}

// Backup stores one disk as a restore point whose labels say what must be read from it.
func Backup(ctx context.Context, r *store.Repository, series string, disk []byte, parent *store.ImageRef) (p store.RestorePoint, err error) {
	s, err := r.Begin(ctx, store.SessionOptions{Series: series, Writer: "campaign"})
	if err != nil {
		return p, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Abort(ctx))
		}
	}()
	ref, err := writeImage(ctx, s, disk, parent)
	if err != nil {
		return p, err
	}
	document := append([]byte("<domain/>"), disk[:min(100, len(disk))]...)
	return s.Publish(ctx, store.Manifest{
		Time: time.Now(), Images: []store.NamedImage{{Name: "vda", Ref: ref}},
		Labels:    map[string]string{"vda": sum(disk), "domain.xml": sum(document)},
		Documents: []store.Document{{Name: "domain.xml", Data: document}},
	})
}

func writeImage(ctx context.Context, s *store.Session, disk []byte, parent *store.ImageRef) (store.ImageRef, error) {
	w, err := s.NewImage(ctx, store.ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
	if err != nil {
		return store.ImageRef{}, err
	}
	const step = 16 * ChunkBytes
	for at := 0; at < len(disk); at += step {
		if err := w.Write(ctx, int64(at), disk[at:min(at+step, len(disk))]); err != nil {
			return store.ImageRef{}, err
		}
	}
	return w.Finish(ctx)
}

func sum(p []byte) string {
	h := sha256.Sum256(p)
	return hex.EncodeToString(h[:])
}

// giveUp is a backup that is aborted.
func (w *worker) giveUp(ctx context.Context) error {
	s, err := w.r.Begin(ctx, store.SessionOptions{Series: "a", Writer: "campaign"})
	if err != nil {
		return err
	}
	if _, err := writeImage(ctx, s, random(w.rnd, diskBytes), nil); err != nil {
		return err
	}
	return s.Abort(ctx)
}

// prune removes the oldest restore point of a series that has a newer one.
func (w *worker) prune(ctx context.Context) error {
	id := w.points[0].ID
	w.ack("prune %s", id)
	if err := w.r.Prune(ctx, id); err != nil {
		return err
	}
	w.ack("pruned %s", id)
	w.points = w.points[1:]
	return nil
}
