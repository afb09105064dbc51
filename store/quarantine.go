package store

import (
	"context"
	"fmt"
	"path"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/manifest"
	"github.com/cairn-backup/cairn/store/seal"
)

// quarantineFolder keeps damaged objects from which nothing is needed any more, until somebody has looked at them.
const (
	quarantineFolder = "quarantine/"
	waitingSuffix    = ".good"
)

// quarantineName is where an object is put aside, under a name that is free.
func quarantineName(name string) string {
	folder, _, _ := strings.Cut(name, "/")
	id := seal.NewID()
	return fmt.Sprintf("%s%s/%s.%x", quarantineFolder, folder, path.Base(name), id[:4])
}

// waitingName is where a good record waits until its damaged one is out of the way.
func waitingName(id string) string { return quarantineFolder + manifestFolder + id + waitingSuffix }

// Quarantine returns the damaged objects that Heal has put aside.
func (r *Repository) Quarantine(ctx context.Context) ([]blob.Info, error) {
	var out []blob.Info
	for info, err := range r.b.List(ctx, quarantineFolder) {
		if err != nil {
			return nil, fault.Context("list quarantine of repository", r.b.Location(), err)
		}
		out = append(out, info)
	}
	return out, nil
}

// EmptyQuarantine deletes for good what Heal has put aside, and returns how many bytes that freed. Good records that
// wait for their place stay.
func (r *Repository) EmptyQuarantine(ctx context.Context) (int64, error) {
	ctx, leave, err := r.enter(ctx, "empty quarantine")
	if err != nil {
		return 0, err
	}
	defer leave()
	if err := r.writable("empty quarantine"); err != nil {
		return 0, err
	}
	r.collecting.Lock()
	defer r.collecting.Unlock()
	objects, err := r.Quarantine(ctx)
	if err != nil {
		return 0, err
	}
	if err := r.fence(ctx); err != nil {
		return 0, err
	}
	var freed int64
	for _, info := range objects {
		if strings.HasSuffix(info.Name, waitingSuffix) {
			continue
		}
		if err := r.b.Delete(ctx, info.Name); err != nil {
			return freed, fault.Context("empty quarantine of repository", r.b.Location(), err)
		}
		freed += info.Size
	}
	return freed, nil
}

// records puts the records of restore points back that are damaged here and good in a copy of this repository. A
// record that is missing here was pruned, so it is not brought back.
func (h *healing) records(ctx context.Context) error {
	r := h.r
	r.pruning.Lock() // what is put back must not be pruned meanwhile
	defer r.pruning.Unlock()
	for info, err := range r.b.List(ctx, manifestFolder) {
		if err != nil {
			return fault.Context("list restore points of repository", r.b.Location(), err)
		}
		id := strings.TrimPrefix(info.Name, manifestFolder)
		_, err := r.loadPoint(ctx, id)
		if err == nil || (fault.KindOf(err) == fault.NotFound && !r.stillThere(ctx, id)) {
			continue
		}
		if fault.KindOf(err) != fault.Corrupt {
			return err
		}
		raw, idErr := parsePointID(id)
		if idErr != nil {
			continue // no record, only a foreign file
		}
		good, err := h.goodRecord(ctx, id, raw)
		if err != nil {
			return err
		}
		if good == nil {
			h.hidden = true
			h.report.Remaining++
			continue
		}
		h.report.Records = append(h.report.Records, id)
		if h.o.DryRun {
			h.hidden = true // what it needs is known when it is back
			continue
		}
		if err := h.putBack(ctx, id, good); err != nil {
			return err
		}
	}
	return nil
}

// goodRecord returns the record of a restore point as a copy of this repository has it, nil if none has.
func (h *healing) goodRecord(ctx context.Context, id string, raw seal.ID) ([]byte, error) {
	for _, from := range h.o.From {
		if from.id != h.r.id {
			continue
		}
		p, err := blob.Get(ctx, from.b, manifestName(id), maxManifest)
		if err == nil {
			_, err = manifest.Decode(h.r.keys, h.r.id, raw, p)
			if err == nil {
				return p, nil
			}
			continue
		}
		if !damaged(err) {
			return nil, err
		}
	}
	return nil, nil
}

func (h *healing) putBack(ctx context.Context, id string, p []byte) error {
	r := h.r
	if err := r.fence(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	if r.waiting == nil {
		r.waiting = map[string]bool{}
	}
	r.waiting[id] = true
	r.mu.Unlock()
	if err := blob.Put(ctx, r.b, waitingName(id), p); err != nil && fault.KindOf(err) != fault.Exists {
		return err
	}
	fault.Point("store.heal.record-waits")
	if err := r.b.Rename(ctx, manifestName(id), quarantineName(manifestName(id))); err != nil {
		return err // the good one goes on waiting: the damaged one may be out of the way all the same
	}
	fault.Point("store.heal.record-aside")
	if err := r.b.Rename(ctx, waitingName(id), manifestName(id)); err != nil {
		return err
	}
	point, err := r.loadPoint(ctx, id)
	if err != nil {
		return err
	}
	r.learn(ctx, point)
	return nil
}

// dropWaiting removes a good record that could not be put in its place: it would take it at the next open, and bring
// a restore point back that is pruned.
func (r *Repository) dropWaiting(ctx context.Context, id string) error {
	r.mu.Lock()
	waits := r.waiting[id]
	r.mu.Unlock()
	if !waits {
		return nil
	}
	if err := r.b.Delete(ctx, waitingName(id)); err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	return nil
}

// endRecords ends what a Heal that was interrupted had begun with records: one that waits takes its place if that is
// free, and is of no more use otherwise.
func (r *Repository) endRecords(ctx context.Context) error {
	var waiting []string
	for info, err := range r.b.List(ctx, quarantineFolder+manifestFolder) {
		if err != nil {
			return fault.Context("list quarantine of repository", r.b.Location(), err)
		}
		if id, ok := strings.CutSuffix(path.Base(info.Name), waitingSuffix); ok {
			waiting = append(waiting, id)
		}
	}
	for _, id := range waiting {
		err := r.b.Rename(ctx, waitingName(id), manifestName(id))
		if err != nil && fault.KindOf(err) == fault.Exists {
			err = r.b.Delete(ctx, waitingName(id))
		}
		if err != nil {
			return fault.Context("put back record of restore point", id, err)
		}
	}
	return nil
}
