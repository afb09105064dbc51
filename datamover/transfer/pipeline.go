package transfer

import (
	"context"
	"iter"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// pipeline is one pass over a disk.
type pipeline struct {
	segments func(ctx context.Context) iter.Seq2[hypervisors.Extent, error]
	buffer   int64
	meter    *meter
	options  Options

	read  func(p []byte, off int64) error
	write func(ctx context.Context, p []byte, off int64) error
	zero  func(ctx context.Context, off, n int64) error
}

// run works until all segments are done, one fails, or ctx ends.
func (p *pipeline) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	queue := make(chan hypervisors.Extent, p.options.workers())
	g.Go(func() error {
		defer close(queue)
		return p.scan(ctx, queue)
	})
	limiter := rate.NewLimiter(rate.Inf, 0)
	if p.options.Limit > 0 {
		limiter = rate.NewLimiter(rate.Limit(p.options.Limit), int(p.buffer))
	}
	for range p.options.workers() {
		g.Go(func() error { return p.work(ctx, queue, limiter) })
	}
	return g.Wait()
}

// scan sends what is to be done to the workers; unchanged ranges it only counts.
func (p *pipeline) scan(ctx context.Context, queue chan<- hypervisors.Extent) error {
	for s, err := range p.segments(ctx) {
		if err != nil {
			return failed(ctx, "find extents", err)
		}
		if s.State == hypervisors.Unchanged {
			p.meter.skipped(s.Length)
			if err := ctx.Err(); err != nil {
				return err
			}
			continue
		}
		select {
		case queue <- s:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// work does segments until there are no more.
func (p *pipeline) work(ctx context.Context, queue <-chan hypervisors.Extent, limiter *rate.Limiter) error {
	var buf []byte
	for {
		var s hypervisors.Extent
		var ok bool
		select {
		case s, ok = <-queue:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !ok {
			return nil
		}
		if s.State == hypervisors.Zero {
			if err := p.zero(ctx, s.Offset, s.Length); err != nil {
				return fault.Context("write zeros", "", err)
			}
			p.meter.skipped(s.Length)
			continue
		}
		if buf == nil {
			buf = make([]byte, p.buffer)
		}
		if err := p.copy(ctx, buf[:s.Length], s.Offset, limiter); err != nil {
			return err
		}
	}
}

// copy moves one segment of data.
func (p *pipeline) copy(ctx context.Context, buf []byte, off int64, limiter *rate.Limiter) error {
	start := time.Now()
	if err := p.options.wait(ctx, limiter, len(buf)); err != nil {
		return err
	}
	waited := time.Now()
	if err := p.read(buf, off); err != nil {
		return failed(ctx, "read", err)
	}
	read := time.Now()
	p.meter.started()
	if err := p.write(ctx, buf, off); err != nil {
		return failed(ctx, "write", err)
	}
	p.meter.copied(int64(len(buf)), waited.Sub(start), read.Sub(waited), time.Since(read))
	return nil
}

// failed says what failed; after a cancellation that is the reason, whatever the call that was cut short says.
func failed(ctx context.Context, op string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fault.Context(op, "", err)
}
