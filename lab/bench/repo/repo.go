// Package repo works with a repository of Cairn from the command line of the lab: raw image files in, raw image files
// out, along the way the product takes (transfer.Backup into an ImageWriter, transfer.Restore from an ImageReader).
//
// It is no part of the product: it knows no virtual machines, keeps no catalog, and a raw file is its only disk. Its
// invariant: a restore point it reports is published.
package repo

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/lab/bench/images"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// Place says where a repository is: its directory, its key file, and where its index is kept.
type Place struct{ Dir, Key, Index string }

// fill puts the key and the index beside the repository where nothing was said.
func (p Place) fill() Place {
	clean := filepath.Clean(p.Dir)
	if p.Key == "" {
		p.Key = clean + ".key"
	}
	if p.Index == "" {
		p.Index = clean + ".index"
	}
	return p
}

// Create makes a repository, and its key file if it is not there.
func Create(ctx context.Context, p Place, o store.CreateOptions) error {
	p = p.fill()
	var key store.Key
	_, err := os.Stat(p.Key)
	if errors.Is(err, os.ErrNotExist) {
		key, err = store.NewKeyFile(p.Key)
	} else if err == nil {
		key, err = store.LoadKeyFile(p.Key)
	}
	if err != nil {
		return err
	}
	b, err := file.Create(p.Dir)
	if err != nil {
		return err
	}
	return errors.Join(store.Create(ctx, b, key, o), b.Close())
}

// With runs do on an open repository.
func With(ctx context.Context, p Place, o store.Options, do func(r *store.Repository) error) (err error) {
	p = p.fill()
	key, err := store.LoadKeyFile(p.Key)
	if err != nil {
		return err
	}
	b, err := file.Open(p.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	o.IndexDir = p.Index
	r, err := store.Open(ctx, b, key, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	return do(r)
}

// Backup is one image's backup.
type Backup struct {
	Image  string // raw file
	Series string
	// Changes is the record of what changed since the last restore point of the series; "" means nothing is known and
	// all of the image is read.
	Changes string
	// Alone does without the last restore point of the series as the parent.
	Alone   bool
	Workers int // see transfer.Options
}

// BackupReport is what came of it.
type BackupReport struct {
	Point    string           `json:"restore_point"`
	Stats    store.ImageStats `json:"stats"`
	Transfer transfer.Result  `json:"transfer"`
}

// Run makes a restore point of an image.
func (b Backup) Run(ctx context.Context, r *store.Repository) (report BackupReport, err error) {
	var changes *images.Changes
	if b.Changes != "" {
		c, err := images.LoadChanges(b.Changes)
		if err != nil {
			return report, err
		}
		changes = &c
	}
	parent, err := b.parent(ctx, r)
	if err != nil {
		return report, err
	}
	if changes != nil && parent == nil {
		return report, fmt.Errorf("a record of changes needs a restore point of %s before", b.Series)
	}
	disk, err := openFrozen(b.Image, changes)
	if err != nil {
		return report, err
	}
	defer disk.Close()
	if changes != nil && changes.SizeBytes != disk.size {
		return report, fmt.Errorf("the record of changes is of %d bytes, %s has %d", changes.SizeBytes, b.Image, disk.size)
	}
	s, err := r.Begin(ctx, store.SessionOptions{Series: b.Series, Writer: "cairn-lab"})
	if err != nil {
		return report, err
	}
	if err := b.write(ctx, s, disk, parent, &report); err != nil {
		return report, errors.Join(err, s.Abort(ctx))
	}
	return report, nil
}

func (b Backup) write(ctx context.Context, s *store.Session, disk *frozen, parent *store.ImageRef, report *BackupReport) error {
	w, err := s.NewImage(ctx, store.ImageOptions{SizeBytes: disk.size, Parent: parent})
	if err != nil {
		return err
	}
	if report.Transfer, err = transfer.Backup(ctx, disk, w, transfer.Options{Workers: b.Workers}); err != nil {
		return err
	}
	ref, err := w.Finish(ctx)
	if err != nil {
		return err
	}
	report.Stats = w.Stats()
	p, err := s.Publish(ctx, store.Manifest{Time: time.Now(), Images: []store.NamedImage{{Name: "disk", Ref: ref}}})
	report.Point = p.ID
	return err
}

// parent is the newest image of the series.
func (b Backup) parent(ctx context.Context, r *store.Repository) (*store.ImageRef, error) {
	if b.Alone {
		return nil, nil
	}
	points, err := r.RestorePoints(ctx)
	if err != nil {
		return nil, err
	}
	var parent *store.ImageRef
	top := uint64(0)
	for _, p := range points {
		if p.Series == b.Series && p.Sequence > top && len(p.Images) == 1 {
			top, parent = p.Sequence, &p.Images[0].Ref
		}
	}
	return parent, nil
}

// Restore writes a restore point's image to a new sparse file.
func Restore(ctx context.Context, r *store.Repository, point, path string, workers int) (transfer.Result, error) {
	p, err := r.RestorePoint(ctx, point)
	if err != nil {
		return transfer.Result{}, err
	}
	if len(p.Images) != 1 {
		return transfer.Result{}, fmt.Errorf("restore point %s has %d images, not one", point, len(p.Images))
	}
	image, err := r.OpenImage(ctx, p.Images[0].Ref)
	if err != nil {
		return transfer.Result{}, err
	}
	defer image.Close()
	disk, err := createTarget(path, image.Size())
	if err != nil {
		return transfer.Result{}, err
	}
	res, err := transfer.Restore(ctx, image, disk, transfer.Options{Workers: workers})
	return res, errors.Join(err, disk.Close())
}
