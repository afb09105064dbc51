package workload

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// copySuffix is added to the directory of a repository for that of its copy.
const copySuffix = ".copy"

// healed makes a repository and a copy of it, spoils packs and a record, and heals them.
func (w *worker) healed(ctx context.Context) (err error) {
	b, err := file.CreateFS(w.c.FS, w.c.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	w.b = b
	if err := store.Create(ctx, b, w.key, store.CreateOptions{Name: "campaign", ChunkBytes: ChunkBytes}); err != nil {
		return err
	}
	if err := w.backups(ctx, "a", "b", "a"); err != nil {
		return err
	}
	if err := os.CopyFS(w.c.Dir+copySuffix, os.DirFS(w.c.Dir)); err != nil {
		return err
	}
	for _, folder := range []string{"packs/*", "manifests"} {
		if err := spoil(w.rnd, filepath.Join(w.c.Dir, folder, "*")); err != nil {
			return err
		}
	}
	w.ack("created") // from now on all of it must come back
	if err := heal(ctx, w.c, w.key, b); err != nil {
		return err
	}
	w.ack("done")
	return nil
}

// backups opens the repository and backs up series.
func (w *worker) backups(ctx context.Context, series ...string) (err error) {
	if w.r, err = store.Open(ctx, w.b, w.key, store.Options{IndexDir: w.c.IndexDir}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.r.Close()) }()
	for _, s := range series {
		w.change(s)
		if err := w.backup(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// spoil flips a byte of a part of the files.
func spoil(rnd *rand.Rand, pattern string) error {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		return fmt.Errorf("nothing at %s: %w", pattern, err)
	}
	rnd.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	for _, name := range files[:(len(files)+1)/2] {
		p, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		p[len(p)/3] ^= 1
		if err := os.WriteFile(name, p, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// heal opens a damaged repository and heals it from its copy.
func heal(ctx context.Context, c Config, key store.Key, b *file.Store) (err error) {
	from, err := file.Open(c.Dir + copySuffix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	good, err := store.Open(ctx, from, key, store.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, good.Close()) }()
	r, err := store.Open(ctx, b, key, store.Options{IndexDir: c.IndexDir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if _, err := r.Sweep(ctx, store.SweepOptions{}); err != nil && fault.KindOf(err) != fault.Corrupt {
		return err
	}
	_, err = r.Heal(ctx, store.HealOptions{From: []*store.Repository{good}})
	return err
}

// JudgeHealed answers what is wrong with what is left of a heal that was killed: healed again, everything must be
// whole, and life goes on.
func JudgeHealed(ctx context.Context, c Config, want Promises) (err error) {
	if !want.Created {
		return errors.New("it was killed before there was anything to heal")
	}
	key, err := store.LoadKeyFile(c.KeyFile)
	if err != nil {
		return err
	}
	b, err := file.Open(c.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if err := heal(ctx, c, key, b); err != nil {
		return fmt.Errorf("healed again: %w", err)
	}
	return Judge(ctx, c.Dir, c.IndexDir, c.KeyFile, want, true)
}
