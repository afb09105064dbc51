package transfer

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// restoring is one image on its way to a disk. The image gives its data in the order that suits it; its holes go
// beside.
type restoring struct {
	src     ImageSource
	dst     hypervisors.TargetDisk
	meter   *meter
	options Options
	limiter *rate.Limiter
	buffer  int64
}

func (t *restoring) run(ctx context.Context) error {
	t.limiter = rate.NewLimiter(rate.Inf, 0)
	if t.options.Limit > 0 {
		t.limiter = rate.NewLimiter(rate.Limit(t.options.Limit), int(t.buffer))
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return t.holes(ctx) })
	g.Go(func() error {
		err := t.src.Stream(ctx, t.options.workers(), func(off int64, p []byte) error { return t.data(ctx, p, off) })
		if err != nil {
			return failed(ctx, "restore", err)
		}
		return nil
	})
	return g.Wait()
}

// holes zeroes what the image calls zeros, or counts it where the disk reads as zeros already.
func (t *restoring) holes(ctx context.Context) error {
	for e, err := range t.src.Extents(ctx) {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return failed(ctx, "find extents", err)
		}
		if !e.Zero {
			continue
		}
		if t.options.SeedZero {
			if err := t.dst.Zero(ctx, e.Offset, e.Length); err != nil {
				return fault.Context("write zeros", "", err)
			}
		}
		t.meter.skipped(e.Length)
	}
	return nil
}

// data writes proven bytes, at most a buffer's length at a time.
func (t *restoring) data(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		part := p[:min(int64(len(p)), t.buffer)]
		p = p[len(part):]
		start := time.Now()
		if err := t.options.wait(ctx, t.limiter, len(part)); err != nil {
			return err
		}
		waited := time.Now()
		t.meter.started()
		if _, err := t.dst.WriteAt(part, off); err != nil {
			return failed(ctx, "write", err)
		}
		off += int64(len(part))
		t.meter.copied(int64(len(part)), waited.Sub(start), 0, time.Since(waited))
	}
	return nil
}
