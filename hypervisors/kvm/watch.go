package kvm

import (
	"context"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// aliveEvery is how soon it is noticed that events come no more; libvirt's keepalive finds out that a connection is dead.
const aliveEvery = 5 * time.Second

// Watch tells of domains that are defined, undefined, started and stopped, and of devices that come and go.
func (d *Driver) Watch(ctx context.Context, tell func(vm string)) error {
	w := &watch{tell: tell}
	defer w.close()
	lv, err := call(ctx, d.conn, "watch VMs", d.cfg.URI, w.register)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	w.begin()
	tick := time.NewTicker(aliveEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if alive, err := lv.IsAlive(); err != nil || !alive {
			return fault.New(fault.Transient, "watch VMs", d.cfg.URI, "the connection was lost")
		}
	}
}

// watch is callbacks on a connection, of which it has a reference. They come from libvirt's one event loop.
type watch struct {
	mu        sync.Mutex
	tell      func(vm string)
	listening bool
	closed    bool
	lv        *libvirt.Connect
	ids       []int
}

// register makes the callbacks. It may end when nobody waits for it any more.
func (w *watch) register(lv *libvirt.Connect) (*libvirt.Connect, error) {
	if err := lv.Ref(); err != nil {
		return nil, err
	}
	var ids []int
	var err error
	for _, on := range []func() (int, error){
		func() (int, error) {
			return lv.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, _ *libvirt.DomainEventLifecycle) { w.say(dom) })
		},
		func() (int, error) {
			return lv.DomainEventDeviceAddedRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, _ *libvirt.DomainEventDeviceAdded) { w.say(dom) })
		},
		func() (int, error) {
			return lv.DomainEventDeviceRemovedRegister(nil, func(_ *libvirt.Connect, dom *libvirt.Domain, _ *libvirt.DomainEventDeviceRemoved) { w.say(dom) })
		},
	} {
		var id int
		if id, err = on(); err != nil {
			break
		}
		ids = append(ids, id)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lv, w.ids = lv, ids
	if err != nil || w.closed {
		w.release()
	}
	return lv, err
}

// begin says that it listens from now on.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.listening = true
	w.tell("")
}

func (w *watch) say(dom *libvirt.Domain) {
	id, err := dom.GetUUIDString()
	w.mu.Lock()
	defer w.mu.Unlock()
	if err == nil && w.listening && !w.closed {
		w.tell(id)
	}
}

func (w *watch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.release()
}

// release takes the callbacks back. w.mu is held.
func (w *watch) release() {
	if w.lv == nil {
		return
	}
	for _, id := range w.ids {
		_ = w.lv.DomainEventDeregister(id) // of a connection that was lost it is gone already
	}
	_, _ = w.lv.Close()
	w.lv, w.ids = nil, nil
}
