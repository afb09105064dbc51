package fleet

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Await waits for a mover that had a transfer when the manager ended to come back, for as long as a transfer waits for a
// mover that is gone. It waits for nobody who is removed or revoked.
func (f *Fleet) Await(ctx context.Context, mover string) error {
	limit := time.NewTimer(f.timing.Lost)
	defer limit.Stop()
	for {
		f.mu.Lock()
		here, changed := f.links[mover] != nil, f.changed
		f.mu.Unlock()
		if here {
			return nil
		}
		if _, err := f.admit(ctx, mover); fault.KindOf(err) == fault.Denied {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-limit.C:
			return nil
		case <-changed:
		}
	}
}
