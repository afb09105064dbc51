package ovirt

import (
	"context"
	"sync"
	"time"
)

// keepEvery is how often transfers are told to stay open: several times within the shortest time-out.
const keepEvery = leastIdle / 5

// keeper keeps image transfers from ending while no mover reads them yet: the engine ends one after minutes without a
// request, and a disk may wait for its mover much longer.
type keeper struct {
	d     *Driver
	every time.Duration

	mu      sync.Mutex
	ids     map[string]bool
	end     context.CancelFunc
	stopped chan struct{} // closed when the goroutine has ended; nil when there is none
}

func newKeeper(d *Driver) *keeper { return &keeper{d: d, every: keepEvery, ids: map[string]bool{}} }

// add keeps a transfer alive from now on.
func (k *keeper) add(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ids[id] = true
}

// drop lets a transfer be.
func (k *keeper) drop(id string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.ids, id)
}

func (k *keeper) all() (out []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id := range k.ids {
		out = append(out, id)
	}
	return out
}

// start begins to keep them alive, until stop.
func (k *keeper) start() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped != nil {
		return
	}
	ctx, end := context.WithCancel(context.Background())
	k.end, k.stopped = end, make(chan struct{})
	go k.run(ctx, k.stopped)
}

func (k *keeper) run(ctx context.Context, stopped chan struct{}) {
	defer close(stopped)
	t := time.NewTicker(k.every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, id := range k.all() {
			// One that has ended says so to its mover; there is nothing to do about it here.
			if err := k.d.conn.Act(ctx, "extend image transfer", id, transferPath(id)+"/extend", nil); err != nil && ctx.Err() == nil {
				k.d.log.Debug("an image transfer could not be extended", "transfer_id", id, "err", err)
			}
		}
	}
}

// stop ends the keeping and waits for it. It may be repeated.
func (k *keeper) stop() {
	k.mu.Lock()
	end, stopped := k.end, k.stopped
	k.mu.Unlock()
	if stopped != nil {
		end()
		<-stopped
	}
}
