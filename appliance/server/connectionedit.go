package server

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
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
	var fields []string
	for name, differs := range map[string]bool{
		"address": c.Address != row.Address, "user": c.User != row.User, "password": c.Password != stored, "options": !maps.Equal(c.Options, row.Options),
	} {
		if differs {
			fields = append(fields, name)
		}
	}
	slices.Sort(fields)
	if dry || len(fields) == 0 {
		return fields, nil
	}
	if err := a.catalog.ConnectionIdle(ctx, id); err != nil {
		return nil, err
	}
	c.Name, c.Platform = row.Name, row.Platform
	health, err := a.TryConnection(ctx, c)
	if err != nil {
		return nil, err
	}
	if row.HostID != "" && health.HostID != row.HostID {
		return nil, fault.New(fault.Conflict, "change connection", row.Name, "%s is another host than %s", health.Host, row.Host).Explain(
			"VMs, checkpoints and restore points of this connection are those of its host.",
			"Add a connection to the other host, and remove this one if it is not needed any more.")
	}
	_, err = a.catalog.UpdateConnection(ctx, id, &c.Password, func(r *catalog.Connection) {
		r.Address, r.User, r.Options = c.Address, c.User, c.Options
		setHealth(r, health, nil)
	})
	if err != nil {
		return nil, err
	}
	a.stopWatching(id)
	a.forgetDriver(ctx, id)
	a.note(ctx, who, "connection.change", row.Name, strings.Join(fields, " "))
	return fields, nil
}
