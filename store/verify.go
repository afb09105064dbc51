package store

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/tree"
)

// verification is one Verify at work.
type verification struct {
	r        *Repository
	progress func(done, total int64)
	total    int64

	mu     sync.Mutex
	done   int64
	report VerifyReport
	first  error
}

// Verify reads a restore point back and proves every byte of its disks and documents. progress, if not nil, is called
// now and then, from one goroutine at a time. Damage is in the report, and the error is then of kind Corrupt. Sessions
// do not rely any more on packs in which it is found, until a later Verify or Sweep reads all of them as good.
func (r *Repository) Verify(ctx context.Context, id string, progress func(done, total int64)) (VerifyReport, error) {
	ctx, leave, err := r.enter(ctx, "verify restore point")
	if err != nil {
		return VerifyReport{RestorePoint: id}, err
	}
	defer leave()
	started := time.Now().UTC()
	report := VerifyReport{RestorePoint: id}
	p, err := r.point(ctx, id)
	if err != nil {
		return report, err
	}
	if _, err := r.lookAgain(ctx); err != nil {
		return report, fault.Context("verify restore point", id, err)
	}
	var v *verification
	err = r.current(ctx, named(id), func() error {
		v = &verification{r: r, progress: progress, report: report}
		if err := v.point(ctx, p); err != nil {
			return err
		}
		return v.first
	})
	if err != nil && (v.first == nil || fault.KindOf(err) == fault.NotFound) {
		return v.report, err
	}
	return v.report, v.conclude(ctx, started)
}

func (v *verification) point(ctx context.Context, p *point) error {
	for _, im := range p.Images {
		v.total = sum(v.total, im.Ref.SizeBytes)
	}
	for _, d := range p.Documents {
		v.total = sum(v.total, d.SizeBytes)
	}
	for i, d := range p.Documents {
		_, err := v.r.document(ctx, d, p.pieces[i])
		if err := v.step(ctx, "document "+d.Name, 0, d.SizeBytes, err); err != nil {
			return err
		}
	}
	for _, im := range p.Images {
		if err := v.image(ctx, im); err != nil {
			return err
		}
	}
	return nil
}

// conclude records what was proven, or names everything that the damage touches.
func (v *verification) conclude(ctx context.Context, started time.Time) error {
	id, since := v.report.RestorePoint, started
	if v.first != nil {
		since = time.Time{}
	}
	err := v.r.noteWhole(id, since)
	if err == nil {
		err = v.r.idx.Flush()
	}
	if err != nil {
		v.r.log.Warn("outcome of verification is not recorded durably", "restore_point", id, "err", err)
	}
	if v.first == nil {
		return nil
	}
	bad, err := v.r.damagedPacks(ctx, nil)
	if err == nil {
		v.report.Touched, err = v.r.touchedBy(ctx, bad)
	}
	if err != nil {
		v.r.log.Warn("what else the damage touches is not known", "restore_point", id, "err", err)
	}
	return fault.Wrap(fault.Corrupt, "verify restore point", id, v.first)
}

// step counts a range as done and records its damage; other errors end the verification.
func (v *verification) step(ctx context.Context, name string, off, n int64, err error) error {
	if ctxErr := ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.done = sum(v.done, n)
	if err != nil {
		if v.first == nil {
			v.first = fmt.Errorf("%s at offset %d: %w", name, off, err)
		}
		if len(v.report.Damage) < maxListedDamage {
			v.report.Damage = append(v.report.Damage, Damage{Image: name, Offset: off, Length: n, Cause: err.Error()})
		}
	} else {
		v.report.Bytes = sum(v.report.Bytes, n)
	}
	if v.progress != nil {
		v.progress(v.done, v.total)
	}
	return nil
}

// image proves the chunks of an image as a Stream does, in the order of packs within a window of the disk.
func (v *verification) image(ctx context.Context, im NamedImage) error {
	i, err := v.r.OpenImage(ctx, im.Ref)
	if err != nil {
		return v.step(ctx, im.Name, 0, im.Ref.SizeBytes, err)
	}
	defer i.Close()
	size, before := int64(i.head.ChunkBytes), len(v.report.Damage)
	s := i.stream()
	s.fn = func(off int64, p []byte) error { return v.chunks(ctx, im.Name, size, off, int64(len(p)), nil) }
	s.bad = func(off int64, err error) error {
		return v.chunks(ctx, im.Name, size, off, min(size, i.head.Size-off), err)
	}
	err = s.run(ctx, v.r.o.Workers, func() error { return v.plan(s, im) })
	slices.SortStableFunc(v.report.Damage[before:], func(a, b Damage) int { return cmp.Compare(a.Offset, b.Offset) })
	return err
}

// plan asks for all chunks of an image. A damaged node costs only what lies under it.
func (v *verification) plan(s *stream, im NamedImage) error {
	head := s.i.head
	w := newStreamWindow(s)
	done := func(first, count int64, err error) error {
		off, length := head.Range(first, count)
		return v.step(s.ctx, im.Name, off, length, err)
	}
	err := v.r.walk(s.ctx, head, func(number, count int64, zero bool, leaf *tree.Node) error {
		if zero {
			return done(number, count, nil)
		}
		for n := number; n < number+count; n++ {
			if err := w.add(leaf.Children[n%tree.FanOut], n); err != nil {
				return err
			}
			if !w.full() {
				continue
			}
			if err := w.send(false); err != nil {
				return err
			}
		}
		return nil
	}, done)
	if err != nil {
		return err
	}
	return w.send(true)
}

// chunks is step for a range of chunks of a size that are not zeros.
func (v *verification) chunks(ctx context.Context, name string, size, off, n int64, err error) error {
	v.mu.Lock()
	v.report.Chunks += (n + size - 1) / size
	v.mu.Unlock()
	return v.step(ctx, name, off, n, err)
}
