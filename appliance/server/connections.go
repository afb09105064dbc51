package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// connections keeps one driver a connection.
type connections struct {
	adding sync.Mutex // one is added at a time: two must not lead to the same host

	mu      sync.Mutex
	drivers map[string]hypervisors.Driver
	reading map[string]*sync.Mutex // by connection: held while VMs are read and stored, so that nothing older is stored over it
	ways    map[string]string      // what each driver was made of, where other managers may change that
	closed  bool
}

func (c *connections) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for _, d := range c.drivers {
		errs = append(errs, d.Close())
	}
	clear(c.drivers)
	return errors.Join(errs...)
}

// read waits until nobody else reads VMs of a connection, and returns what ends that.
func (c *connections) read(id string) (done func()) {
	c.mu.Lock()
	m := c.reading[id]
	if m == nil {
		m = &sync.Mutex{}
		c.reading[id] = m
	}
	c.mu.Unlock()
	m.Lock()
	return m.Unlock
}

// driver returns the driver of a connection; it implements jobs.Platforms.
func (a *Appliance) driver(ctx context.Context, id string) (hypervisors.Driver, error) {
	a.connections.mu.Lock()
	defer a.connections.mu.Unlock()
	d, ok := a.connections.drivers[id]
	if ok && !a.catalog.Shared() {
		return d, nil
	}
	if a.connections.closed {
		return nil, fault.New(fault.Canceled, "open connection", id, "the manager is stopping")
	}
	conn, err := a.catalog.Connection(ctx, id)
	if err != nil {
		return nil, err
	}
	way := fmt.Sprintf("%q %q %x %q", conn.Address, conn.User, conn.SealedSecret, conn.Options)
	if ok && a.connections.ways[id] == way {
		return d, nil
	}
	if ok {
		a.dropDriver(ctx, id)
	}
	secret, err := a.catalog.ConnectionSecret(ctx, id)
	if err != nil {
		return nil, err
	}
	d, err = a.open(ctx, conn.Platform, Target{
		Address: conn.Address, User: conn.User, Secret: secret, Options: conn.Options, Confirm: a.confirmHost(id), Log: a.log.With("connection", conn.Name),
	})
	if err != nil {
		return nil, fault.Wrap(absentKind(err), "open connection", conn.Name, err)
	}
	a.connections.drivers[id], a.connections.ways[id] = d, way
	return d, nil
}

// forgetDriver closes the driver of a connection that is not what it was any more.
func (a *Appliance) forgetDriver(ctx context.Context, id string) {
	a.connections.mu.Lock()
	defer a.connections.mu.Unlock()
	a.dropDriver(ctx, id)
}

// dropDriver is forgetDriver for who holds the lock.
func (a *Appliance) dropDriver(ctx context.Context, id string) {
	d := a.connections.drivers[id]
	delete(a.connections.drivers, id)
	if d == nil {
		return
	}
	if err := d.Close(); err != nil {
		a.log.WarnContext(ctx, "connection was not closed", "connection", id, "err", err)
	}
}

func (a *Appliance) open(ctx context.Context, platform hypervisors.Platform, t Target) (hypervisors.Driver, error) {
	open, ok := a.openers[platform]
	if !ok {
		var known []string
		for p := range maps.Keys(a.openers) {
			known = append(known, string(p))
		}
		slices.Sort(known)
		return nil, fault.New(fault.Invalid, "connect", t.Address, "there is no driver for platform %q", platform).Explain(
			"This appliance cannot speak to such a platform.", "Known platforms: "+strings.Join(known, ", ")+".")
	}
	return open(ctx, t)
}

// ListConnections implements httpapi.Core.
func (a *Appliance) ListConnections(ctx context.Context, p catalog.Page) (catalog.List[httpapi.ConnectionInfo], error) {
	list, err := a.catalog.Connections(ctx, p)
	out := catalog.List[httpapi.ConnectionInfo]{Next: list.Next, Total: list.Total}
	for _, c := range list.Items {
		info, infoErr := a.connectionInfo(ctx, c)
		if infoErr != nil {
			return out, infoErr
		}
		out.Items = append(out.Items, info)
	}
	return out, err
}

// GetConnection implements httpapi.Core.
func (a *Appliance) GetConnection(ctx context.Context, id string) (httpapi.ConnectionInfo, error) {
	c, err := a.catalog.Connection(ctx, id)
	if err != nil {
		return httpapi.ConnectionInfo{}, err
	}
	return a.connectionInfo(ctx, c)
}

func (a *Appliance) connectionInfo(ctx context.Context, c catalog.Connection) (httpapi.ConnectionInfo, error) {
	n, err := a.catalog.CountVMs(ctx, c.ID)
	info := httpapi.ConnectionInfo{Connection: c, VMs: n}
	if d, openErr := a.driver(ctx, c.ID); openErr == nil {
		caps := d.Capabilities()
		info.Capabilities = &caps
	}
	return info, err
}

// TryConnection implements httpapi.Core.
func (a *Appliance) TryConnection(ctx context.Context, c httpapi.NewConnection) (hypervisors.Health, error) {
	d, err := a.open(ctx, c.Platform, Target{
		Address: c.Address, User: c.User, Secret: c.Password, Options: c.Options, Log: a.log.With("connection", c.Name),
	})
	if err != nil {
		return hypervisors.Health{}, refused(c, err)
	}
	health, err := d.Check(ctx)
	if err != nil {
		err = refused(c, err)
	}
	if closeErr := d.Close(); err == nil && closeErr != nil {
		err = closeErr
	}
	return health, err
}

// refused keeps NotFound from a request for a new connection: what is missing is what its address or options name.
func refused(c httpapi.NewConnection, err error) error {
	if fault.KindOf(err) != fault.NotFound {
		return err
	}
	return fault.Wrap(fault.Invalid, "connect", c.Name, err).Explain(
		"Something that the address or the options name is not there.", "Look at the message, and correct the connection.")
}

// AddConnection implements httpapi.Core.
func (a *Appliance) AddConnection(ctx context.Context, c httpapi.NewConnection) (httpapi.ConnectionInfo, error) {
	a.connections.adding.Lock()
	defer a.connections.adding.Unlock()
	if _, err := a.catalog.ConnectionByName(ctx, c.Name); err == nil {
		return httpapi.ConnectionInfo{}, fault.New(fault.Exists, "add connection", c.Name, "there is one of that name").Explain(
			"Another connection of this appliance has the name.", "Choose another name.")
	}
	health, err := a.TryConnection(ctx, c)
	if err != nil {
		return httpapi.ConnectionInfo{}, err
	}
	row := catalog.Connection{
		Name: c.Name, Platform: c.Platform, Address: c.Address, User: c.User, Options: c.Options, HostID: health.HostID,
	}
	setHealth(&row, health, nil)
	if err := a.catalog.CreateConnection(ctx, &row, c.Password); err != nil {
		return httpapi.ConnectionInfo{}, connectedTwice("add connection", c.Name, err)
	}
	if _, err := a.RefreshConnection(ctx, row.ID); err != nil {
		// The connection answered a moment ago and is kept; its row says why it has no inventory.
		a.log.WarnContext(ctx, "inventory was not read", "connection", row.Name, "err", err)
	}
	return a.GetConnection(ctx, row.ID)
}

// setHealth notes the outcome of a check of the connection's own host.
func setHealth(row *catalog.Connection, h hypervisors.Health, err error) {
	now := time.Now().UTC()
	row.LastChecked, row.LastError = &now, catalog.FailureOf(err)
	if err != nil {
		row.Status = catalog.HealthProblem
		return
	}
	row.Status, row.Product, row.Host, row.Problems = catalog.HealthOK, h.Product, h.Host, h.Problems
	if len(h.Problems) > 0 {
		row.Status = catalog.HealthProblem
	}
}

// RemoveConnection implements httpapi.Core.
func (a *Appliance) RemoveConnection(ctx context.Context, id string) error {
	if err := a.catalog.DeleteConnection(ctx, id); err != nil {
		return err
	}
	a.forgetDriver(ctx, id)
	a.stream.PublishInventory(id)
	return nil
}

// CheckConnection implements httpapi.Core.
func (a *Appliance) CheckConnection(ctx context.Context, id string) (hypervisors.Health, error) {
	health, err := a.checkConnection(ctx, id)
	if err != nil {
		return health, err
	}
	return health, a.catalog.TryAgain(ctx, id, time.Now()) // somebody asked, perhaps after a repair
}

func (a *Appliance) checkConnection(ctx context.Context, id string) (hypervisors.Health, error) {
	d, err := a.driver(ctx, id)
	if err != nil {
		return hypervisors.Health{}, err
	}
	health, err := d.Check(ctx)
	if fault.KindOf(err) == fault.Denied && a.catalog.ConnectionIdle(ctx, id) == nil {
		health, err = a.checkAnew(ctx, id)
	}
	if err == nil {
		err = a.confirmHost(id)(ctx, health.Host, health.HostID) // a session may be older than the host's identity
	}
	_, storeErr := a.catalog.UpdateConnection(context.WithoutCancel(ctx), id, func(c *catalog.Connection) {
		setHealth(c, health, err)
	})
	return health, errors.Join(err, storeErr)
}

// checkAnew opens a connection once more: the file with its CA or its key may hold another one than when it was opened.
func (a *Appliance) checkAnew(ctx context.Context, id string) (hypervisors.Health, error) {
	a.stopWatching(id)
	a.forgetDriver(ctx, id)
	d, err := a.driver(ctx, id)
	if err != nil {
		return hypervisors.Health{}, err
	}
	return d.Check(ctx)
}

// RefreshConnection implements httpapi.Core.
func (a *Appliance) RefreshConnection(ctx context.Context, id string) (catalog.InventoryReport, error) {
	d, err := a.driver(ctx, id)
	if err != nil {
		return catalog.InventoryReport{}, err
	}
	defer a.connections.read(id)()
	vms, err := d.VMs(ctx)
	if err != nil {
		conn, storeErr := a.catalog.UpdateConnection(context.WithoutCancel(ctx), id, func(c *catalog.Connection) {
			setHealth(c, hypervisors.Health{}, err)
		})
		return catalog.InventoryReport{}, errors.Join(fault.Context("read inventory of", conn.Name, err), storeErr)
	}
	report, err := a.catalog.SyncVMs(ctx, id, vms)
	if err != nil {
		return catalog.InventoryReport{}, err
	}
	a.stream.PublishInventory(id)
	a.overcome(ctx, id)
	return report, nil
}

// overcome checks a connection that had failed and answers again, so that it is no problem any more.
func (a *Appliance) overcome(ctx context.Context, id string) {
	row, err := a.catalog.Connection(ctx, id)
	if err == nil && row.LastError != nil {
		_, err = a.checkConnection(ctx, id) // what fails is in the row
	}
	if err != nil {
		a.log.InfoContext(ctx, "connection was not checked", "connection", id, "err", err)
	}
}
