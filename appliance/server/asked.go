package server

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/internal/fault"
)

// checkAsked says whether there is the mover and the transport that somebody asks for, before anything is frozen or made for them.
// Whether they can do it shows when the disk is there.
func (a *Appliance) checkAsked(ctx context.Context, mover, transport string) error {
	if err := checkTransport(transport); err != nil {
		return err
	}
	if mover == "" || mover == tickets.BuiltIn {
		return nil
	}
	_, err := a.fleet.Get(ctx, mover)
	return err
}

func checkTransport(word string) error {
	if word == "" || fleet.IsTransport(word) {
		return nil
	}
	return fault.New(fault.Invalid, "choose transport", word, "there is none of this name").Explain(
		"It is the way that a disk's data takes between the platform and a mover.",
		`Ask for "network", "hotadd" or "san", or leave the choice to the appliance.`)
}
