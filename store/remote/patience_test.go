package remote

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// TestPatience: a call that carries data over a slow line may take as long as something moves; one in which nothing does
// is given up, and one that is broken is made again as long as there is patience.
func TestPatience(t *testing.T) {
	const minute = time.Minute
	// step waits as a stream does, which ends with its context.
	step := func(ctx context.Context, d time.Duration) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	tests := []struct {
		name string
		try  func(ctx context.Context, moved func(int64)) error
		kind fault.Kind // Internal: it succeeds
		took time.Duration
	}{
		{"slow", func(ctx context.Context, moved func(int64)) error {
			for range 10 {
				if err := step(ctx, minute); err != nil {
					return err
				}
				moved(1)
			}
			return nil
		}, fault.Internal, 10 * minute},
		{"stalled", func(ctx context.Context, _ func(int64)) error { return step(ctx, time.Hour) }, fault.Transient, 2 * minute},
		{"stalled in the middle", func(ctx context.Context, moved func(int64)) error {
			if err := step(ctx, minute); err != nil {
				return err
			}
			moved(1)
			return step(ctx, time.Hour)
		}, fault.Transient, 3 * minute},
		{"breaks at the same place", func(ctx context.Context, moved func(int64)) error {
			if err := step(ctx, minute); err != nil {
				return err
			}
			moved(5)
			return fault.New(fault.Transient, "x", "", "reset")
		}, fault.Transient, 9*minute + 20*(1<<7-1)*time.Millisecond + 2*time.Second},
		{"refused", func(ctx context.Context, _ func(int64)) error { return fault.New(fault.Denied, "x", "", "no") }, fault.Denied, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &Client{o: ClientOptions{Patience: 2 * minute, Log: slog.New(slog.DiscardHandler)}}
				begin := time.Now()
				err := c.retryMoving(t.Context(), "write pack", tt.try)
				if (err == nil) != (tt.kind == fault.Internal) || err != nil && fault.KindOf(err) != tt.kind {
					t.Errorf("error %v", err)
				}
				if took := time.Since(begin); took != tt.took {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
			})
		})
	}
}
