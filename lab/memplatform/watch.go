package memplatform

import (
	"context"

	"github.com/cairn-backup/cairn/internal/fault"
)

// watcher is one that wants to be told of changes.
type watcher struct {
	tell func(vm string)
	lost chan struct{} // closed when it is told nothing any more
}

// changed tells of a VM. The caller holds mu.
func (p *Platform) changed(id string) {
	for w := range p.watchers {
		w.tell(id)
	}
}

// Deafen ends every Watch, as when a connection breaks, and returns how many there were.
func (p *Platform) Deafen() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.watchers)
	for w := range p.watchers {
		close(w.lost)
		delete(p.watchers, w)
	}
	return n
}

func (d *driver) Watch(ctx context.Context, tell func(vm string)) error {
	if !d.p.caps.Watch {
		return d.Unsupported.Watch(ctx, tell)
	}
	if err := d.enter(ctx, OpWatch, ""); err != nil {
		return err
	}
	w := &watcher{tell: tell, lost: make(chan struct{})}
	d.p.mu.Lock()
	d.p.watchers[w] = true
	tell("")
	d.p.mu.Unlock()
	select {
	case <-w.lost:
		return fault.New(fault.Transient, "watch VMs", "", "the connection was lost")
	case <-ctx.Done():
	}
	d.p.mu.Lock()
	defer d.p.mu.Unlock()
	delete(d.p.watchers, w)
	return nil
}
