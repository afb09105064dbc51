package server

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
)

// ReplaceConnection implements httpapi.Core.
func (a *Appliance) ReplaceConnection(ctx context.Context, who fleet.Who, id string, c httpapi.NewConnection, dry bool) ([]string, error) {
	a.connections.adding.Lock()
	defer a.connections.adding.Unlock()
	row, err := a.catalog.Connection(ctx, id)
	if err != nil {
		return nil, err
	}
	stored, err := a.catalog.ConnectionSecret(ctx, id)
	if err != nil {
		return nil, err
	}
	if c.Password == "" {
		c.Password = stored
	}
	fields, accepts := differences(row, stored, c)
	if dry && !accepts || len(fields) == 0 {
		return fields, nil
	}
	if !dry {
		if err := a.catalog.ConnectionIdle(ctx, id); err != nil {
			return nil, err
		}
	}
	c.Name, c.Platform = row.Name, row.Platform
	health, err := a.TryConnection(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := a.acceptedHost(ctx, row, c.AcceptHost, health); err != nil || dry {
		return fields, err
	}
	_, err = a.catalog.RerouteConnection(ctx, id, c.Password, func(r *catalog.Connection) {
		r.Address, r.User, r.Options, r.HostID = c.Address, c.User, c.Options, health.HostID
		setHealth(r, health, nil)
	})
	if err != nil {
		return nil, connectedTwice("change host of connection", row.Name, err)
	}
	a.stopWatching(id)
	a.forgetDriver(ctx, id)
	detail := strings.Join(fields, " ")
	if accepts {
		detail += ": " + shownIdentity(row.HostID) + " is " + shownIdentity(health.HostID) + " now"
	}
	a.note(ctx, who, "connection.change", row.Name, detail)
	if !accepts {
		return fields, nil
	}
	if _, err := a.RefreshConnection(ctx, id); err != nil {
		// The host answered a moment ago; the connection's row says why it has no inventory.
		a.log.WarnContext(ctx, "inventory was not read", "connection", row.Name, "err", err)
	}
	return fields, nil
}

// differences names what a change of a connection differs in from what is stored, and says whether it accepts another host.
func differences(row catalog.Connection, stored catalog.Secret, c httpapi.NewConnection) (fields []string, accepts bool) {
	accepts = c.AcceptHost != "" && c.AcceptHost != shownIdentity(row.HostID)
	for name, differs := range map[string]bool{
		"address": c.Address != row.Address, "user": c.User != row.User, "password": c.Password != stored, "options": !maps.Equal(c.Options, row.Options),
		"host": accepts,
	} {
		if differs {
			fields = append(fields, name)
		}
	}
	slices.Sort(fields)
	return fields, accepts
}
