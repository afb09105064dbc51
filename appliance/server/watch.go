package server

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Where a platform tells of changes, the VMs that it names are read again at once. That is for speed: what is missed, because a
// connection was lost for instance, the inventory of the calendar finds.
const (
	// watchQuiet is how long nothing must have been told before VMs are read, and watchMost how long that may be put off: things that
	// change do so several times within a moment.
	watchQuiet = time.Second
	watchMost  = 10 * time.Second
	// watchEach is how many VMs are read one by one; when there are more, all are.
	watchEach = 16
	// watchAgain is how soon a platform that was lost is listened to again.
	watchAgain = 30 * time.Second
)

// watches are the change streams that are listened to.
type watches struct {
	mu      sync.Mutex
	running map[string]context.CancelFunc // by connection
	again   map[string]time.Time          // by connection: not before
}

// keepWatching listens to every connection that tells of changes. Of several managers one does.
func (a *Appliance) keepWatching(ctx context.Context, now time.Time) {
	var list []catalog.Connection
	if a.queue.Leads() {
		var err error
		if list, err = a.catalog.AllConnections(ctx); err != nil {
			return // it is looked again in a moment
		}
	}
	a.watches.mu.Lock()
	defer a.watches.mu.Unlock()
	if a.watches.running == nil {
		a.watches.running, a.watches.again = map[string]context.CancelFunc{}, map[string]time.Time{}
	}
	there := map[string]bool{}
	for _, conn := range list {
		there[conn.ID] = true
		if a.watches.running[conn.ID] == nil && !now.Before(a.watches.again[conn.ID]) {
			a.watch(ctx, conn, now)
		}
	}
	for id, stop := range a.watches.running {
		if !there[id] {
			stop()
		}
	}
}

// watch begins to listen to a connection. watches.mu is held.
func (a *Appliance) watch(ctx context.Context, conn catalog.Connection, now time.Time) {
	d, err := a.driver(ctx, conn.ID)
	if err != nil || !d.Capabilities().Watch {
		a.watches.again[conn.ID] = now.Add(watchAgain)
		return
	}
	listening, stop := context.WithCancel(ctx)
	a.watches.running[conn.ID] = stop
	a.routine.done.Go(func() {
		defer stop()
		err := a.listen(listening, conn, d)
		if err != nil && listening.Err() == nil {
			a.log.InfoContext(ctx, "changes are not told any more; trying again", "connection", conn.Name, "err", err)
			a.checkLost(listening, conn)
		}
		a.watches.mu.Lock()
		defer a.watches.mu.Unlock()
		delete(a.watches.running, conn.ID)
		a.watches.again[conn.ID] = now.Add(watchAgain)
	})
}

// checkLost looks whether a connection that tells nothing any more answers at all, so that it does not stay ok until the next inventory.
func (a *Appliance) checkLost(ctx context.Context, conn catalog.Connection) {
	if _, err := a.checkConnection(ctx, conn.ID); err != nil && ctx.Err() == nil {
		a.log.InfoContext(ctx, "connection does not answer", "connection", conn.Name, "err", err)
	}
}

// stopWatching ends the listening to a connection that is reached in another way now; it begins anew by itself.
func (a *Appliance) stopWatching(id string) {
	a.watches.mu.Lock()
	defer a.watches.mu.Unlock()
	if stop := a.watches.running[id]; stop != nil {
		stop()
	}
}

// listen reads what a connection tells of until it tells nothing any more.
func (a *Appliance) listen(ctx context.Context, conn catalog.Connection, d hypervisors.Driver) error {
	t := &told{some: make(chan struct{}, 1), vms: map[string]bool{}}
	reading, stop := context.WithCancel(ctx)
	var reader sync.WaitGroup
	reader.Go(func() {
		for t.settle(reading, watchQuiet, watchMost) {
			vms, all := t.take()
			a.reread(reading, conn, d, vms, all)
		}
	})
	err := d.Watch(ctx, t.add)
	stop()
	reader.Wait()
	return err
}

// reread reads VMs again, or all.
func (a *Appliance) reread(ctx context.Context, conn catalog.Connection, d hypervisors.Driver, vms []string, all bool) {
	var errs []error
	if all {
		_, err := a.RefreshConnection(ctx, conn.ID)
		errs = append(errs, err)
	}
	changed := false
	for _, id := range vms {
		one, err := a.rereadVM(ctx, conn.ID, d, id)
		changed = changed || one
		errs = append(errs, err)
	}
	if changed {
		a.stream.PublishInventory(conn.ID)
	}
	if err := errors.Join(errs...); err != nil && ctx.Err() == nil {
		a.log.InfoContext(ctx, "what has changed was not read; the next inventory finds it", "connection", conn.Name, "err", err)
	}
}

func (a *Appliance) rereadVM(ctx context.Context, connectionID string, d hypervisors.Driver, id string) (changed bool, err error) {
	defer a.connections.read(connectionID)()
	vm, err := d.VM(ctx, id)
	switch {
	case err == nil:
		return a.catalog.NoteVM(ctx, connectionID, vm)
	case fault.KindOf(err) == fault.NotFound:
		return a.catalog.NoteGone(ctx, connectionID, id)
	}
	return false, err
}

// told is what was told and not read yet.
type told struct {
	mu   sync.Mutex
	vms  map[string]bool // "" is any
	some chan struct{}
}

// add notes a VM. It does not wait.
func (t *told) add(vm string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.vms[vm] = true
	select {
	case t.some <- struct{}{}:
	default:
	}
}

// take returns the VMs that were told, or that it may be any, and forgets them.
func (t *told) take() (vms []string, all bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if all = t.vms[""] || len(t.vms) > watchEach; !all {
		vms = slices.Sorted(maps.Keys(t.vms))
	}
	clear(t.vms)
	return vms, all
}

// settle waits until something was told and then nothing more for a while, at most for longer; false when ctx has ended.
func (t *told) settle(ctx context.Context, quiet, most time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-t.some:
	}
	end := time.NewTimer(most)
	defer end.Stop()
	pause := time.NewTimer(quiet)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-t.some:
			pause.Reset(quiet)
		case <-pause.C:
			return true
		case <-end.C:
			return true
		}
	}
}
