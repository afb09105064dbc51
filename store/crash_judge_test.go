package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
	"github.com/cairn-backup/cairn/store/pack"
)

// expect is what must and what may be there after a cut.
type expect struct {
	must    map[string][]byte // acknowledged, removal not asked for
	created bool              // Create has returned
	told    int               // how many events were before the cut
	keys    []Key             // each of them opens it
	any     []Key             // one of them does, at least
	rotten  bool              // something is damaged: all is there after a heal
}

func expectAt(events []event, op int) expect {
	e := expect{must: map[string][]byte{}}
	for _, ev := range events {
		if ev.op > op {
			break
		}
		e.told++
		e.created = true
		switch {
		case ev.key != nil:
			e.keys = slices.DeleteFunc(e.keys, func(k Key) bool { return k == *ev.key })
			if e.any = append(e.any, *ev.key); !ev.begun {
				e.keys = append(e.keys, *ev.key)
			}
		case ev.disk != nil:
			e.must[ev.id] = ev.disk
		case ev.id != "":
			delete(e.must, ev.id)
		default:
			e.rotten = ev.rotten
		}
	}
	return e
}

// judge opens what a crash left and answers what is wrong with it.
func judge(fsys *crashfs.FS, key Key, want expect, deep bool) error {
	return verdict{fs: fsys, key: key, want: want, deep: deep}.judge()
}

// verdict is a crash state and how it is to be looked at.
type verdict struct {
	fs    *crashfs.FS
	plant plant // the program that opens it has the bug too
	key   Key
	want  expect
	deep  bool            // go on living with it
	index string          // the directory of an index that was kept; "": it is built from the packs
	from  *crashfs.FS     // a copy to heal from
	names map[string]bool // the top-level names a repository may have; nil: not looked at
}

func (v verdict) open() (*Repository, error) {
	b, err := v.plant.open(v.fs, false)
	if err != nil {
		return nil, err
	}
	return Open(context.Background(), b, v.key, Options{IndexDir: v.index, packBytes: crashPack, Workers: 1})
}

func (v verdict) judge() error {
	ctx := context.Background()
	if err := v.unlock(ctx); err != nil {
		return err
	}
	r, err := v.open()
	if err != nil && !v.want.created {
		// Create had not returned; a second one must do.
		b, err := v.plant.open(v.fs, true)
		if err == nil {
			err = Create(ctx, b, v.key, CreateOptions{ChunkBytes: chunk.MinBytes})
		}
		if err != nil {
			return fmt.Errorf("cannot be created again: %w", err)
		}
		if r, err = v.open(); err != nil {
			return fmt.Errorf("does not open though created again: %w", err)
		}
	}
	if err != nil && r == nil {
		return fmt.Errorf("does not open: %w", err)
	}
	err = nil // of the open that a second Create has made up for
	if v.want.rotten {
		err = v.heal(ctx, r)
	}
	if err == nil {
		err = v.holds(ctx, r)
	}
	if err == nil && v.deep {
		err = v.goesOn(ctx, r)
	}
	if closed := r.Close(); err == nil && closed != nil {
		err = fmt.Errorf("does not close: %w", closed)
	}
	if err == nil && v.deep {
		err = v.accounted(ctx)
	}
	return err
}

// unlock chooses a key that opens the repository, and tries all that have to.
func (v *verdict) unlock(ctx context.Context) error {
	if !v.want.created || len(v.want.any) == 0 {
		return nil
	}
	b, err := v.plant.open(v.fs, false)
	if err != nil {
		return err
	}
	for _, key := range v.want.keys {
		if !opens(ctx, b, key) {
			return fmt.Errorf("key %s, which was added, does not open it", key.Fingerprint())
		}
	}
	for _, key := range slices.Backward(v.want.any) {
		if opens(ctx, b, key) {
			v.key = key
			return nil
		}
	}
	return errors.New("no key opens it")
}

// heal brings back from the copy what is damaged. Then nothing is missing, whatever the crash cut off.
func (v verdict) heal(ctx context.Context, r *Repository) error {
	b, err := v.plant.open(v.from, false)
	if err != nil {
		return err
	}
	from, err := Open(ctx, b, v.key, Options{ReadOnly: true, Workers: 1})
	if err != nil {
		return err
	}
	defer from.Close()
	if _, err := r.Sweep(ctx, SweepOptions{}); err != nil && fault.KindOf(err) != fault.Corrupt {
		return err
	}
	if report, err := r.Heal(ctx, HealOptions{From: []*Repository{from}}); err != nil {
		return fmt.Errorf("cannot be healed: %w (%+v)", err, report)
	}
	return nil
}

// holds looks at all that is visible and all that must be.
func (v verdict) holds(ctx context.Context, r *Repository) error {
	points, err := r.RestorePoints(ctx)
	if err != nil {
		return fmt.Errorf("torn manifest: %w", err)
	}
	there := map[string]RestorePoint{}
	for _, p := range points {
		there[p.ID] = p
		if _, err := r.Verify(ctx, p.ID, nil); err != nil {
			return fmt.Errorf("torn restore point: %w", err)
		}
	}
	for id, disk := range v.want.must {
		p, ok := there[id]
		if !ok {
			return fmt.Errorf("acknowledged restore point %s is lost", id)
		}
		if err := sameDisk(ctx, r, p, disk); err != nil {
			return err
		}
	}
	return nil
}

// goesOn makes a backup on what is left, then a collect: they harm nothing.
func (v verdict) goesOn(ctx context.Context, r *Repository) error {
	disk := bytes.Repeat([]byte("life goes on "), 10000)
	p, err := crashBackup(ctx, r, disk, nil)
	if err != nil {
		return fmt.Errorf("next backup: %w", err)
	}
	if _, err := v.plant.runCollect(ctx, r); err != nil {
		return fmt.Errorf("next collect: %w", err)
	}
	for id := range v.want.must {
		if _, err := r.Verify(ctx, id, nil); err != nil {
			return fmt.Errorf("after the next collect: %w", err)
		}
	}
	return sameDisk(ctx, r, p, disk)
}

// accounted opens the repository once more, and finds in it nothing that nobody needs.
func (v verdict) accounted(ctx context.Context) error {
	r, err := v.open()
	if err != nil {
		return fmt.Errorf("does not open a second time: %w", err)
	}
	defer r.Close()
	report, err := v.plant.runCollect(ctx, r)
	if err != nil {
		return fmt.Errorf("second collect: %w", err)
	}
	if report.PacksFreed != 0 || report.PacksWaiting != 0 {
		return fmt.Errorf("the first collect left %d packs for the second and %d waiting", report.PacksFreed, report.PacksWaiting)
	}
	points, err := r.RestorePoints(ctx)
	if err != nil {
		return fmt.Errorf("torn manifest: %w", err)
	}
	known := map[string]bool{}
	for _, p := range points {
		known[manifestName(p.ID)] = true
	}
	for _, p := range r.idx.Packs() {
		known[pack.Name(p.ID)] = true
	}
	known[epochName(r.epoch)] = true
	return v.nothingElse(known)
}

func (v verdict) nothingElse(known map[string]bool) error {
	var stray []string
	for _, name := range v.fs.Names("/disk/repo") {
		name = strings.TrimPrefix(name, "/disk/repo/")
		switch top, _, _ := strings.Cut(name, "/"); top {
		case "packs", "manifests", "epochs", "leases", "tmp", "trash":
			if !known[name] {
				stray = append(stray, name)
			}
		default:
			if v.names != nil && !v.names[top] {
				stray = append(stray, name)
			}
		}
	}
	if len(stray) > 0 {
		return fmt.Errorf("left behind: %v", stray)
	}
	return nil
}

// topNames returns the names directly in the repository.
func topNames(fsys *crashfs.FS) map[string]bool {
	names := map[string]bool{}
	entries, err := fsys.ReadDir("/disk/repo")
	check(err)
	for _, e := range entries {
		names[path.Base(e.Name())] = true
	}
	return names
}

func sameDisk(ctx context.Context, r *Repository, p RestorePoint, disk []byte) error {
	i, err := r.OpenImage(ctx, p.Images[0].Ref)
	if err != nil {
		return err
	}
	defer i.Close()
	got := make([]byte, len(disk))
	if _, err := i.ReadAt(got, 0); err != nil || i.Size() != int64(len(disk)) || !bytes.Equal(got, disk) {
		return errors.Join(fmt.Errorf("restore point %s does not hold its disk", p.ID), err)
	}
	return nil
}

func crashBackup(ctx context.Context, r *Repository, disk []byte, parent *ImageRef) (RestorePoint, error) {
	s, err := r.Begin(ctx, SessionOptions{Series: "vm"})
	if err != nil {
		return RestorePoint{}, err
	}
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
	if err != nil {
		return RestorePoint{}, err
	}
	if err := w.Write(ctx, 0, disk); err != nil {
		return RestorePoint{}, err
	}
	ref, err := w.Finish(ctx)
	if err != nil {
		return RestorePoint{}, err
	}
	return s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}, Documents: []Document{{Name: "d", Data: disk[:9]}}})
}
