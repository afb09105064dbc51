package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// A connection belongs to one host or manager: its VMs, checkpoints and restore points are those of that one. Its driver has each session
// confirmed before anything is done in it, so that no task, inventory or clean-up meets another host under the same address.

// noIdentity stands for that of a host that says none.
const noIdentity = "none"

// shownIdentity is an identity as people read and write it.
func shownIdentity(id string) string { return cmp.Or(id, noIdentity) }

// confirmHost returns what confirms the host behind a connection. One that has no identity stored takes the first that it meets, unless
// another connection has it.
func (a *Appliance) confirmHost(connection string) hypervisors.ConfirmHost {
	return func(ctx context.Context, host, id string) error {
		refusal, err := a.judgeHost(ctx, connection, host, id)
		if err != nil || refusal == nil {
			return err
		}
		_, err = a.catalog.UpdateConnection(context.WithoutCancel(ctx), connection, func(c *catalog.Connection) {
			setHealth(c, hypervisors.Health{}, refusal)
		})
		return errors.Join(refusal, err)
	}
}

// judgeHost returns why the host that answers is not the connection's; nil if it is. err says that this is not known.
func (a *Appliance) judgeHost(ctx context.Context, connection, host, id string) (refusal, err error) {
	row, err := a.catalog.Connection(ctx, connection)
	if err != nil {
		return nil, err
	}
	if row.HostID == "" && id != "" {
		changed, err := a.catalog.UpdateConnection(ctx, connection, func(c *catalog.Connection) { c.HostID = cmp.Or(c.HostID, id) })
		if taken, ok := errors.AsType[*catalog.HostTaken](err); ok {
			return secondConnection(row, taken), nil
		}
		if err != nil {
			return nil, err
		}
		row = changed
	}
	if row.HostID == id {
		return nil, nil
	}
	return otherHost(row, host, id), nil
}

// otherHost refuses a host that is not the one of a connection. A host that says no identity any more is refused as well: nothing tells
// it from another.
func otherHost(c catalog.Connection, host, id string) error {
	advice := "If another host has taken the address, correct it by \"cairn connection edit " + c.Name + " --address\", or add a connection to the other host. " +
		"If it is the same host, set up anew or with another identity: cairn connection edit " + c.Name + " --accept-host " + shownIdentity(id)
	if c.Platform == hypervisors.KVM {
		advice += ". A host whose firmware has no identity gets another from libvirt at each start: set host_uuid in its libvirtd.conf before"
	}
	return fault.New(fault.Conflict, "confirm host of connection", c.Name, "%s answers with the identity %s, expected was %s with %s",
		host, shownIdentity(id), cmp.Or(c.Host, c.Address), shownIdentity(c.HostID)).Explain(
		"This is another host than before. The VMs, checkpoints and restore points of the connection are those of the one before: nothing is read, backed up, "+
			"restored or removed there.", advice+".")
}

// acceptedHost judges the host that has answered to a change of a connection: the one it has, the first, or the one that the request accepts.
func (a *Appliance) acceptedHost(ctx context.Context, row catalog.Connection, accept string, h hypervisors.Health) error {
	switch {
	case accept == "" && row.HostID == h.HostID:
		return nil
	case accept == "" && row.HostID != "":
		return otherHost(row, h.Host, h.HostID)
	case accept != "" && accept != shownIdentity(h.HostID):
		return fault.New(fault.Conflict, "accept host of connection", row.Name, "%s answers with the identity %s, not %s", h.Host, shownIdentity(h.HostID), accept).
			Explain("The host that is to be accepted is not the one that answers.", "Look which host has the address, and name the identity that it has.")
	}
	if h.HostID == "" {
		return nil
	}
	other, err := a.catalog.ConnectionToHost(ctx, row.Platform, h.HostID)
	switch {
	case fault.KindOf(err) == fault.NotFound || err == nil && other.ID == row.ID:
		return nil
	case err != nil:
		return err
	}
	return connectedTwice("change host of connection", row.Name, &catalog.HostTaken{Other: other})
}

// identities says for each platform how two hosts can come to have one identity, and what to do about it.
var identities = map[hypervisors.Platform]string{
	hypervisors.KVM:   "If these are two hosts, their firmware gives both the same identity: give one of them another by host_uuid in its libvirtd.conf.",
	hypervisors.OVirt: "If these are two engines, one was set up as a copy of the other: Cairn can look after one of them only, until the copy has been set up anew by engine-setup.",
}

// connectedTwice refuses a second connection to one host: backups through one would drop the checkpoints of the other, and nothing would
// keep two tasks from one VM. Any other error is as it is.
func connectedTwice(op, name string, err error) error {
	taken, ok := errors.AsType[*catalog.HostTaken](err)
	if !ok {
		return err
	}
	return twoConnections(fault.Exists, op, name, taken, fmt.Sprintf("Use the connection %s.", taken.Other.Name))
}

// secondConnection refuses the host of a connection that is there already and learns only now, by its host's first identity, that it is
// the second one to it.
func secondConnection(c catalog.Connection, taken *catalog.HostTaken) error {
	return twoConnections(fault.Conflict, "confirm host of connection", c.Name, taken, fmt.Sprintf(
		"Use the connection %s, and remove %s; or if only its address is wrong, correct it by \"cairn connection edit %s --address\".", taken.Other.Name, c.Name, c.Name))
}

func twoConnections(kind fault.Kind, op, name string, taken *catalog.HostTaken, advice string) error {
	if more := identities[taken.Other.Platform]; more != "" {
		advice += " " + more
	}
	return fault.Wrap(kind, op, name, taken).Explain("A host is connected once; its backups through two connections would get into each other's way.", advice)
}
