package store

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/tree"
)

// verifySegment is how many chunks are read by one goroutine at a time.
const verifySegment = 16

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
// do not rely any more on packs in which it is found, until a later Verify reads all of them as good.
func (r *Repository) Verify(ctx context.Context, id string, progress func(done, total int64)) (VerifyReport, error) {
	p, err := r.point(ctx, id)
	if err != nil {
		return VerifyReport{RestorePoint: id}, err
	}
	if err := r.lookAgain(ctx); err != nil {
		return VerifyReport{RestorePoint: id}, fault.Context("verify restore point", id, err)
	}
	v := &verification{r: r, progress: progress, report: VerifyReport{RestorePoint: id}}
	for _, im := range p.Images {
		v.total += im.Ref.SizeBytes
	}
	for _, d := range p.Documents {
		v.total += d.SizeBytes
	}
	for i, d := range p.Documents {
		_, err := r.document(ctx, d, p.pieces[i])
		if err := v.step(ctx, "document "+d.Name, 0, d.SizeBytes, err); err != nil {
			return v.report, err
		}
	}
	for _, im := range p.Images {
		if err := v.image(ctx, im); err != nil {
			return v.report, err
		}
	}
	if v.first != nil {
		return v.report, fault.Wrap(fault.Corrupt, "verify restore point", id, v.first)
	}
	return v.report, nil
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
	v.done += n
	if err != nil {
		if v.first == nil {
			v.first = fmt.Errorf("%s at offset %d: %w", name, off, err)
		}
		if len(v.report.Damage) < maxListedDamage {
			v.report.Damage = append(v.report.Damage, Damage{Image: name, Offset: off, Length: n, Cause: err.Error()})
		}
	} else {
		v.report.Bytes += n
	}
	if v.progress != nil {
		v.progress(v.done, v.total)
	}
	return nil
}

func (v *verification) image(ctx context.Context, im NamedImage) error {
	i, err := v.r.OpenImage(ctx, im.Ref)
	if err != nil {
		return v.step(ctx, im.Name, 0, im.Ref.SizeBytes, err)
	}
	defer i.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.r.o.Workers)
	size := int64(i.head.ChunkBytes)
	chunks := tree.Chunks(i.head.Size, int(size))
	// Leaf by leaf, so that a damaged node costs only what lies under it.
	for first := int64(0); first < chunks; first += tree.FanOut {
		count := min(tree.FanOut, chunks-first)
		leaf, err := v.r.leaf(ctx, i.head, first/tree.FanOut)
		if err != nil || leaf == nil {
			length := min(count*size, i.head.Size-first*size)
			if err := v.step(ctx, im.Name, first*size, length, err); err != nil {
				_ = g.Wait()
				return err
			}
			continue
		}
		for at := int64(0); at < count; at += verifySegment {
			ids := leaf.Children[at:min(at+verifySegment, count)]
			g.Go(func() error { return v.segment(ctx, im, first+at, ids) })
		}
	}
	return g.Wait()
}

// segment proves a few chunks that follow each other.
func (v *verification) segment(ctx context.Context, im NamedImage, first int64, ids []Hash) error {
	size := int64(v.r.config.ChunkBytes)
	buf := make([]byte, size)
	for i, id := range ids {
		var err error
		if !id.IsZero() {
			err = v.r.chunk(ctx, id, buf)
			v.mu.Lock()
			v.report.Chunks++
			v.mu.Unlock()
		}
		off := (first + int64(i)) * size
		if err := v.step(ctx, im.Name, off, min(size, im.Ref.SizeBytes-off), err); err != nil {
			return err
		}
	}
	return nil
}
