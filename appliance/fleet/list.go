package fleet

import (
	"context"
	"time"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// State of a mover.
type State string

// The states.
const (
	Online   State = "online"
	Offline  State = "offline"
	Draining State = "draining" // takes no new transfers, and has some
	Drained  State = "drained"
	Revoked  State = "revoked"
)

// Info is a mover as it is now.
type Info struct {
	catalog.Mover
	State State
	// Since is when its stream was opened; zero without one.
	Since     time.Time
	Transfers int   // under way
	Rate      int64 // bytes a second, of all of them
	Limit     Bandwidth
	// Received and Sent are what went over its connections since the manager began, as it is on the wire above TCP.
	Received, Sent int64
}

// List returns all movers, by name.
func (f *Fleet) List(ctx context.Context) ([]Info, error) {
	rows, err := f.catalog.Movers(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Info, len(rows))
	for i, m := range rows {
		out[i] = f.info(m)
	}
	return out, nil
}

// Get returns one mover by its id or name.
func (f *Fleet) Get(ctx context.Context, idOrName string) (Info, error) {
	list, err := f.List(ctx)
	if err != nil {
		return Info{}, err
	}
	for _, m := range list {
		if m.ID == idOrName || m.Name == idOrName {
			return m, nil
		}
	}
	return Info{}, fault.New(fault.NotFound, "look up mover", idOrName, "there is none").Explain(
		"No mover has this id or name.", "List the movers, and name one of those.")
}

func (f *Fleet) info(m catalog.Mover) Info {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := Info{Mover: m, State: Offline, Limit: f.bandwidth[m.ID]}
	i.Slots = f.slots(m.Name, m.Slots)
	if t := f.traffic[m.ID]; t != nil {
		i.Received, i.Sent = t.received.Load(), t.sent.Load()
	}
	if l := f.links[m.ID]; l != nil {
		now := time.Now().UTC()
		i.State, i.Since, i.LastSeen = Online, l.since, &now
	}
	for _, t := range f.transfers {
		if t.mover == m.ID {
			i.Transfers++
			i.Rate += t.latest.Rate
		}
	}
	switch {
	case m.RevokedAt != nil:
		i.State = Revoked
	case m.Drained && i.Transfers > 0:
		i.State = Draining
	case m.Drained:
		i.State = Drained
	}
	return i
}

// Changed returns a channel that closes when a mover comes or goes, or a transfer ends.
func (f *Fleet) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// Who asks for a change, for the audit log.
type Who struct{ User, Source string }

// Drain says whether a mover is given no more transfers; those under way go on.
func (f *Fleet) Drain(ctx context.Context, who Who, idOrName string, drain bool) (Info, error) {
	action := "mover.resume"
	if drain {
		action = "mover.drain"
	}
	return f.change(ctx, who, action, idOrName, func(m Info) error {
		if m.RevokedAt != nil {
			return fault.New(fault.Conflict, "drain mover", m.Name, "it is revoked").Explain(
				"A revoked mover gets no transfers anyway.", "Remove it, or enrol it again with a new token.")
		}
		if err := f.catalog.DrainMover(ctx, m.ID, drain); err != nil {
			return err
		}
		f.mu.Lock()
		if l := f.links[m.ID]; l != nil {
			l.push(&pb.ToMover{Body: &pb.ToMover_Drain{Drain: &pb.Drain{Drain: drain}}})
		}
		f.mu.Unlock()
		f.poke()
		return nil
	})
}

// Revoke makes a mover's certificates worthless, now: its streams are cut and its transfers fail.
func (f *Fleet) Revoke(ctx context.Context, who Who, idOrName string) (Info, error) {
	return f.change(ctx, who, "mover.revoke", idOrName, func(m Info) error {
		if err := f.catalog.RevokeMover(ctx, m.ID); err != nil {
			return err
		}
		f.Cut(m.ID, pb.Goodbye_REASON_REVOKED, "An administrator has revoked this mover.")
		f.poke()
		return nil
	})
}

// Remove forgets a mover. One that has a stream must be revoked first, so that nobody does it by mistake.
func (f *Fleet) Remove(ctx context.Context, who Who, idOrName string) error {
	_, err := f.change(ctx, who, "mover.remove", idOrName, func(m Info) error {
		if !m.Since.IsZero() {
			return fault.New(fault.Conflict, "remove mover", m.Name, "it is connected").Explain(
				"A mover that is at work is not simply forgotten.", "Stop it, or revoke it, then remove it.")
		}
		if err := f.catalog.RemoveMover(ctx, m.ID); err != nil {
			return err
		}
		f.Cut(m.ID, pb.Goodbye_REASON_REVOKED, "This mover was removed.") // it may have come meanwhile
		f.poke()
		return nil
	})
	if err != nil {
		return err
	}
	return nil
}

func (f *Fleet) change(ctx context.Context, who Who, action, idOrName string, do func(Info) error) (Info, error) {
	m, err := f.Get(ctx, idOrName)
	if err != nil {
		return m, err
	}
	if err := do(m); err != nil {
		return m, err
	}
	f.Audit(ctx, catalog.AuditEntry{Actor: who.User, Source: who.Source, Action: action, Subject: m.Name, Detail: m.ID})
	if action == "mover.remove" {
		return m, nil
	}
	return f.Get(ctx, m.ID)
}
