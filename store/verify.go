package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/tree"
)

// verifyWindow is how many chunks are read in the order of packs rather than of the disk: 2 GiB of chunks of 64 KiB.
// It bounds the memory of a Verify to some 30 MiB.
const verifyWindow = 32 << 10

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
		v.total += im.Ref.SizeBytes
	}
	for _, d := range p.Documents {
		v.total += d.SizeBytes
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
	size := int64(i.head.ChunkBytes)
	chunks := tree.Chunks(i.head.Size, int(size))
	var window []place
	// Leaf by leaf, so that a damaged node costs only what lies under it.
	for first := int64(0); first < chunks; first += tree.FanOut {
		count := min(tree.FanOut, chunks-first)
		leaf, err := v.r.leaf(ctx, i.head, first/tree.FanOut)
		if err != nil || leaf == nil {
			length := min(count*size, i.head.Size-first*size)
			if err := v.step(ctx, im.Name, first*size, length, err); err != nil {
				return err
			}
			continue
		}
		for n, id := range leaf.Children[:count] {
			window = append(window, place{first + int64(n), id})
		}
		if len(window) < verifyWindow {
			continue
		}
		if err := v.window(ctx, im, window); err != nil {
			return err
		}
		window = window[:0]
	}
	return v.window(ctx, im, window)
}

// place is a chunk of an image.
type place struct {
	number int64
	id     Hash
}

// window proves some chunks that follow each other, each once, and those that are not proven in the order of packs
// once more by themselves: a second copy may be good.
func (v *verification) window(ctx context.Context, im NamedImage, window []place) error {
	good, err := v.r.provenChunks(ctx, window)
	if err != nil {
		return err
	}
	size := int64(v.r.config.ChunkBytes)
	buf := make([]byte, size)
	bad := map[Hash]error{}
	for _, p := range window {
		var err error
		if !p.id.IsZero() {
			v.report.Chunks++
			if !good[p.id] {
				if _, known := bad[p.id]; !known {
					bad[p.id] = v.r.chunk(ctx, p.id, buf)
				}
				err = bad[p.id]
			}
		}
		off := p.number * size
		if err := v.step(ctx, im.Name, off, min(size, im.Ref.SizeBytes-off), err); err != nil {
			return err
		}
	}
	return nil
}
