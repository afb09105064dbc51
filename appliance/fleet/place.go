package fleet

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// Place is a transfer's place on a mover. Release gives it back.
type Place struct {
	Choice
	Release func()
}

// placed is what a place takes.
type placed struct{ mover, host, datastore string }

// Locate says on which host and connection the VM of a mover runs, by its machine's UUID; "" where it is not known.
type Locate func(machineUUID string) (host, connection string)

// Find waits for a mover that can do a transfer now, and takes a slot of it. own is the appliance's own mover. waiting,
// which may be nil, is told once why it has to wait. The error says who was rejected and why.
func (f *Fleet) Find(ctx context.Context, w Wish, own Candidate, locate Locate, waiting func(Choice)) (Place, error) {
	for {
		changed := f.Changed() // before the look, so that nothing falls between
		rows, err := f.catalog.Movers(ctx)
		if err != nil {
			return Place{}, err
		}
		p := f.try(w, own, rows, located(rows, locate))
		if p.Mover != nil {
			f.applyLimits() // who has transfers has changed
			return p, nil
		}
		if !p.Wait {
			return Place{}, p.none(w)
		}
		if waiting != nil {
			waiting(p.Choice)
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return Place{}, ctx.Err()
		case <-changed:
		}
	}
}

// try chooses once.
func (f *Fleet) try(w Wish, own Candidate, rows []catalog.Mover, where map[string]location) (p Place) {
	f.mu.Lock()
	defer f.mu.Unlock()
	busy := map[string]int{}
	now := f.now().Local()
	w.HostSlots = slotsOf(f.limits, catalog.LimitHost, w.Host, now, defaultHostSlots)
	w.DatastoreSlots = slotsOf(f.limits, catalog.LimitDatastore, w.Datastore, now, defaultDatastoreSlots)
	for at := range f.places {
		busy[at.mover]++
		if w.Host != "" && at.host == w.Connection+"/"+w.Host {
			w.HostBusy++
		}
		if w.Datastore != "" && at.datastore == w.Connection+"/"+w.Datastore {
			w.DatastoreBusy++
		}
	}
	own.Busy, own.Slots = busy[own.ID], f.slots(own.Name, own.Slots)
	candidates := []Candidate{own}
	for _, m := range rows {
		candidates = append(candidates, f.candidate(m, busy[m.ID], where[m.ID]))
	}
	p.Choice = Choose(w, candidates)
	if p.Mover != nil {
		at := &placed{mover: p.Mover.ID, host: w.Connection + "/" + w.Host, datastore: w.Connection + "/" + w.Datastore}
		f.places[at] = struct{}{}
		p.Release = func() {
			f.mu.Lock()
			delete(f.places, at)
			f.mu.Unlock()
			f.applyLimits()
			f.poke()
		}
	}
	return p
}

type location struct{ host, connection string }

func located(rows []catalog.Mover, locate Locate) map[string]location {
	where := map[string]location{}
	for _, m := range rows {
		if locate != nil && m.Facts.MachineUUID != "" {
			var at location
			at.host, at.connection = locate(m.Facts.MachineUUID)
			where[m.ID] = at
		}
	}
	return where
}

// candidate is an enrolled mover for the choice. f.mu is held.
func (f *Fleet) candidate(m catalog.Mover, busy int, at location) Candidate {
	c := Candidate{
		ID: m.ID, Name: m.Name, State: Offline, Slots: f.slots(m.Name, max(1, m.Slots)), Busy: busy, Transports: m.Facts.Transports, BootID: m.Facts.BootID,
	}
	if f.links[m.ID] != nil {
		c.State = Online
	}
	c.Full = f.full[m.ID] != nil
	if m.Drained {
		c.State = Drained
	}
	if m.RevokedAt != nil {
		c.State = Revoked
	}
	for _, mount := range m.Facts.Mounts {
		c.StoreIDs = append(c.StoreIDs, mount.StoreID)
	}
	c.WWNs = m.Facts.WWNs
	c.Machine, c.Host, c.Connection = m.Facts.MachineUUID, at.host, at.connection
	return c
}

// BusyOf is how many transfers a mover has, for the appliance's own.
func (f *Fleet) BusyOf(id string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for at := range f.places {
		if at.mover == id {
			n++
		}
	}
	return n
}
