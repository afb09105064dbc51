package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// epochFile is for people: what counts is that the object's name is taken.
type epochFile struct {
	Format  int       `json:"format"`
	Epoch   uint64    `json:"epoch"`
	Process int       `json:"process"`
	Host    string    `json:"host"`
	Time    time.Time `json:"time"`
}

// leaseFile records a session while it runs.
type leaseFile struct {
	Format  int       `json:"format"`
	Session string    `json:"session"`
	Epoch   uint64    `json:"epoch"`
	Series  string    `json:"series"`
	Writer  string    `json:"writer"`
	Time    time.Time `json:"time"`

	Resumable bool `json:"resumable,omitempty"`
}

// own takes the lock and a new epoch, and removes the leases of owners before, but those of sessions to be resumed.
func (r *Repository) own(ctx context.Context) (err error) {
	if r.release, err = r.b.Acquire(ctx); err != nil {
		return err
	}
	fault.Point("store.open.locked")
	newest, err := r.newestEpoch(ctx)
	if err != nil {
		return err
	}
	r.epoch = newest + 1
	err = r.putEpoch(ctx)
	if full(err) {
		// A full repository must still open, or nothing could ever be removed: that is what the reserve is for.
		r.log.Warn("repository is full; its reserve is given up")
		if delErr := r.b.Delete(ctx, reserveName); delErr != nil {
			return errors.Join(err, delErr)
		}
		err = r.putEpoch(ctx)
	}
	if err != nil {
		return fault.Context("take over repository", r.b.Location(), err)
	}
	fault.Point("store.open.epoch-written")
	r.restock(ctx)
	if err := describe(ctx, r.b); err != nil {
		r.log.Warn("the repository's description of itself is not there", "err", err)
	}
	return r.tidy(ctx)
}

// restock puts the reserve back if it is gone and there is room.
func (r *Repository) restock(ctx context.Context) {
	if _, err := r.b.Stat(ctx, reserveName); fault.KindOf(err) == fault.NotFound {
		if err := blob.Put(ctx, r.b, reserveName, make([]byte, reserveBytes)); err != nil {
			r.log.Warn("reserve is not there", "err", err)
		}
	}
}

func epochName(n uint64) string { return fmt.Sprintf("%s%016x", epochFolder, n) }

func (r *Repository) putEpoch(ctx context.Context) error {
	host, _ := os.Hostname()
	p, err := json.Marshal(epochFile{formatVersion, r.epoch, os.Getpid(), host, time.Now().UTC()})
	if err != nil {
		return err
	}
	return blob.Put(ctx, r.b, epochName(r.epoch), p)
}

func (r *Repository) newestEpoch(ctx context.Context) (newest uint64, err error) {
	for info, err := range r.b.List(ctx, epochFolder) {
		if err != nil {
			return 0, fault.Context("read epochs of repository", r.b.Location(), err)
		}
		if n, err := strconv.ParseUint(strings.TrimPrefix(info.Name, epochFolder), 16, 64); err == nil {
			newest = max(newest, n)
		}
	}
	return newest, nil
}

// tidy removes leases of sessions that died with their owner and cannot be resumed, and epochs long past.
func (r *Repository) tidy(ctx context.Context) error {
	stale, err := r.leases(ctx)
	if err != nil {
		return err
	}
	for info, err := range r.b.List(ctx, epochFolder) {
		if err != nil {
			return fault.Context("read epochs of repository", r.b.Location(), err)
		}
		if info.Name < epochName(r.epoch) {
			stale = append(stale, info.Name)
		}
	}
	for _, name := range stale {
		if err := r.b.Delete(ctx, name); err != nil {
			return fault.Context("tidy repository", r.b.Location(), err)
		}
		fault.Point("store.open.stale-removed")
	}
	return nil
}

// fence answers an error if somebody else has become the owner. It is asked before every publish and delete.
func (r *Repository) fence(ctx context.Context) error {
	newest, err := r.newestEpoch(ctx)
	if err != nil {
		return err
	}
	if newest != r.epoch {
		return fault.New(fault.Conflict, "write to repository", r.b.Location(), "epoch %d has begun, this process has %d", newest, r.epoch).Explain(
			"Another process has taken this repository over; this one may no longer change it.",
			"Find out why two processes use one repository (a lock that does not work over this network file system?), and stop one.")
	}
	return nil
}

// overtaken returns err, or, if somebody else has become the owner since, the error that says so: the new owner has put
// in order what this one was at, so that whatever fails after that fails for this reason.
func (r *Repository) overtaken(ctx context.Context, err error) error {
	if fault.KindOf(err) == fault.Conflict {
		return err
	}
	if now := r.fence(ctx); now != nil && fault.KindOf(now) == fault.Conflict {
		return now
	}
	return err
}
