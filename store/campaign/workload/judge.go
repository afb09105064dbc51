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
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// Promises are what the acknowledgements of a life amount to.
type Promises struct {
	Created bool
	Done    bool
	Must    map[string]bool // restore points that must be there
	Gone    map[string]bool // restore points that must not
	Freed   bool            // a collect has freed something
	Rotate  bool            // a new key was asked for
	Rotated bool            // the old one is gone
}

// ParseAcks reads acknowledgements. A restore point whose removal was asked for may be there or not.
func ParseAcks(text string) Promises {
	p := Promises{Must: map[string]bool{}, Gone: map[string]bool{}}
	for line := range strings.Lines(text) {
		verb, arg, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "created":
			p.Created = true
		case "done":
			p.Done = true
		case "published":
			p.Must[arg] = true
		case "prune":
			delete(p.Must, arg)
		case "rotate":
			p.Rotate = true
		case "rotated":
			p.Rotated = true
		case "pruned":
			p.Gone[arg] = true
		case "collected":
			p.Freed = p.Freed || arg != "0"
		}
	}
	return p
}

// Judge opens what is left in dir and answers what is wrong with it. With deep, life goes on: another backup, a
// collect, and nothing that the dead left may remain.
func Judge(ctx context.Context, dir, indexDir, keyFile string, want Promises, deep bool) (err error) {
	b, err := file.Open(dir)
	if err != nil {
		return notCreated(want, err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	r, err := open(ctx, b, indexDir, keyFile, want)
	if err != nil {
		return notCreated(want, err)
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	points, err := r.RestorePoints(ctx)
	if err != nil {
		return fmt.Errorf("torn manifest: %w", err)
	}
	if err := wholeness(ctx, r, points, want); err != nil {
		return err
	}
	if !deep {
		return nil
	}
	return goOn(ctx, r, dir, points)
}

// open opens the repository with the key that must open it: while a key is being replaced, one of the two.
func open(ctx context.Context, b blob.Store, indexDir, keyFile string, want Promises) (*store.Repository, error) {
	o := store.Options{IndexDir: indexDir}
	key, err := store.LoadKeyFile(keyFile)
	if err != nil {
		return nil, err
	}
	r, err := store.Open(ctx, b, key, o)
	if !want.Rotate || fault.KindOf(err) != fault.Denied && err != nil {
		return r, err
	}
	if err == nil {
		if !want.Rotated {
			return r, nil
		}
		return nil, errors.Join(errors.New("the key that was replaced still opens it"), r.Close())
	}
	if key, err = store.LoadKeyFile(keyFile + newKey); err != nil {
		return nil, err
	}
	return store.Open(ctx, b, key, o)
}

func notCreated(want Promises, err error) error {
	if !want.Created {
		return nil // nobody was told that there is a repository
	}
	return fmt.Errorf("does not open: %w", err)
}

func wholeness(ctx context.Context, r *store.Repository, points []store.RestorePoint, want Promises) error {
	there := map[string]bool{}
	for _, p := range points {
		there[p.ID] = true
		if want.Gone[p.ID] {
			return fmt.Errorf("restore point %s is back", p.ID)
		}
		if err := Whole(ctx, r, p); err != nil {
			return fmt.Errorf("torn restore point: %w", err)
		}
	}
	for id := range want.Must {
		if !there[id] {
			return fmt.Errorf("acknowledged restore point %s is lost", id)
		}
	}
	return nil
}

// Whole answers whether a restore point verifies, and reads as what was backed up.
func Whole(ctx context.Context, r *store.Repository, p store.RestorePoint) error {
	if _, err := r.Verify(ctx, p.ID, nil); err != nil {
		return err
	}
	return Reads(ctx, r, p)
}

// Reads answers whether disk and document of a restore point are what was backed up.
func Reads(ctx context.Context, r *store.Repository, p store.RestorePoint) error {
	i, err := r.OpenImage(ctx, p.Images[0].Ref)
	if err != nil {
		return err
	}
	defer i.Close()
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(i, 0, i.Size())); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != p.Labels["vda"] {
		return fmt.Errorf("%w: the disk of %s", ErrWrong, p.ID)
	}
	document, err := r.Document(ctx, p.ID, "domain.xml")
	if err != nil {
		return err
	}
	if sum(document) != p.Labels["domain.xml"] {
		return fmt.Errorf("%w: the document of %s", ErrWrong, p.ID)
	}
	return nil
}

// ErrWrong: bytes were handed out that are not those that were backed up. Nothing is worse.
var ErrWrong = errors.New("wrong bytes were read as good")

func goOn(ctx context.Context, r *store.Repository, dir string, points []store.RestorePoint) error {
	var parent *store.ImageRef
	if len(points) > 0 {
		parent = &points[len(points)-1].Images[0].Ref
	}
	p, err := Backup(ctx, r, "next", random(rand.New(rand.NewPCG(9, 9)), diskBytes), parent)
	if err != nil {
		return fmt.Errorf("next backup: %w", err)
	}
	if _, err := r.Collect(ctx, store.CollectOptions{}); err != nil {
		return fmt.Errorf("next collect: %w", err)
	}
	for _, p := range append(points, p) {
		if err := Whole(ctx, r, p); err != nil {
			return fmt.Errorf("after the next collect: %w", err)
		}
	}
	again, err := r.Collect(ctx, store.CollectOptions{DryRun: true})
	if err != nil || again.PacksFreed+again.PacksWaiting > 0 {
		return fmt.Errorf("a second collect would free %d packs, %d wait: %v", again.PacksFreed, again.PacksWaiting, err)
	}
	if dir == "" {
		return nil
	}
	return Litter(dir)
}

// Litter answers what lies in the directory of an open, idle repository and does not belong there.
func Litter(dir string) error {
	for _, folder := range []string{"tmp", "leases", "trash"} {
		entries, err := os.ReadDir(filepath.Join(dir, folder))
		if err != nil && !os.IsNotExist(err) {
			return err
		}
		if len(entries) > 0 {
			return fmt.Errorf("%s/%s was left behind", folder, entries[0].Name())
		}
	}
	epochs, err := os.ReadDir(filepath.Join(dir, "epochs"))
	if err != nil || len(epochs) != 1 {
		return fmt.Errorf("%d epochs are left: %v", len(epochs), err)
	}
	return nil
}
