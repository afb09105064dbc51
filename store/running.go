package store

import (
	"context"

	"github.com/cairn-backup/cairn/internal/fault"
)

// enter is for each call that reads packs or the index: Close ends its context and waits until leave was called. Once
// the repository is closed it answers an error. It never waits, so that a call may enter inside another.
func (r *Repository) enter(ctx context.Context, op string) (inside context.Context, leave func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ctx, nil, r.closedError(op)
	}
	inside, cancel := context.WithCancel(ctx)
	if r.calls == nil {
		r.calls = map[*context.CancelFunc]struct{}{}
	}
	r.calls[&cancel] = struct{}{}
	r.running.Add(1)
	return inside, func() {
		cancel()
		r.mu.Lock()
		delete(r.calls, &cancel)
		r.mu.Unlock()
		r.running.Done()
	}, nil
}

func (r *Repository) closedError(op string) error {
	return fault.New(fault.Conflict, op, r.b.Location(), "the repository is closed")
}

// endCalls lets nobody in any more and waits for those inside; false: that was done before.
func (r *Repository) endCalls() bool {
	r.mu.Lock()
	was := r.closed
	r.closed = true
	for cancel := range r.calls {
		(*cancel)()
	}
	r.mu.Unlock()
	r.running.Wait()
	return !was
}
