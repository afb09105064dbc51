package server

import (
	"context"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/deploy"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// builtIn shows the mover in this process as the others are shown.
func (a *Appliance) builtIn() fleet.Info {
	host, _ := os.Hostname() //nolint:errcheck // "" says that it is not known
	rate := a.mover.rate()
	now := time.Now().UTC()
	return fleet.Info{
		Mover: catalog.Mover{
			ID: tickets.BuiltIn, Name: tickets.BuiltIn, Slots: a.fleet.SlotsOf(tickets.BuiltIn, builtInSlots), LastSeen: &now,
			Facts: catalog.MoverFacts{
				Version: version.Version, Hostname: host, CPUs: runtime.NumCPU(), Transports: ownTransports(),
			},
		},
		State: fleet.Online, Transfers: a.fleet.BusyOf(tickets.BuiltIn), Rate: rate, Limit: a.fleet.Bandwidth(tickets.BuiltIn),
	}
}

// ListMovers implements httpapi.Core.
func (a *Appliance) ListMovers(ctx context.Context) ([]fleet.Info, error) {
	list, err := a.fleet.List(ctx)
	if err != nil {
		return nil, err
	}
	return append([]fleet.Info{a.builtIn()}, list...), nil
}

// GetMover implements httpapi.Core.
func (a *Appliance) GetMover(ctx context.Context, id string) (fleet.Info, error) {
	if id == tickets.BuiltIn {
		return a.builtIn(), nil
	}
	return a.fleet.Get(ctx, id)
}

// CreateMoverToken implements httpapi.Core.
func (a *Appliance) CreateMoverToken(ctx context.Context, n fleet.NewToken) (httpapi.MoverToken, error) {
	port := a.moverPort.Load()
	if port == 0 {
		return httpapi.MoverToken{}, fault.New(fault.Unsupported, "create join token", n.Name, "the appliance does not listen for movers").Explain(
			"cairnd was started with --movers none, so no mover could enrol.", "Start it with an address for movers, for example --movers :8441.")
	}
	t, secret, err := a.fleet.IssueToken(ctx, n)
	if err != nil {
		return httpapi.MoverToken{}, err
	}
	return httpapi.MoverToken{
		JoinToken: t, Secret: secret, Fingerprint: "sha256:" + a.authority.Fingerprint(), Port: int(port),
	}, nil
}

func notBuiltIn(op, id string) error {
	if id != tickets.BuiltIn {
		return nil
	}
	return fault.New(fault.Conflict, op, id, "it is the appliance's own").Explain(
		"The built-in mover is part of the appliance.", "Name another mover with --mover where it is not to be used.")
}

// DrainMover implements httpapi.Core.
func (a *Appliance) DrainMover(ctx context.Context, who fleet.Who, id string, drain bool) (fleet.Info, error) {
	if err := notBuiltIn("drain mover", id); err != nil {
		return fleet.Info{}, err
	}
	return a.fleet.Drain(ctx, who, id, drain)
}

// RevokeMover implements httpapi.Core.
func (a *Appliance) RevokeMover(ctx context.Context, who fleet.Who, id string) (fleet.Info, error) {
	if err := notBuiltIn("revoke mover", id); err != nil {
		return fleet.Info{}, err
	}
	return a.fleet.Revoke(ctx, who, id)
}

// RemoveMover implements httpapi.Core.
func (a *Appliance) RemoveMover(ctx context.Context, who fleet.Who, id string) error {
	if err := notBuiltIn("remove mover", id); err != nil {
		return err
	}
	m, err := a.fleet.Get(ctx, id)
	if err != nil {
		return err
	}
	if m.DeployedOn != "" {
		return a.deployer.Remove(ctx, who, m)
	}
	return a.fleet.Remove(ctx, who, id)
}

// DeployMover implements httpapi.Core.
func (a *Appliance) DeployMover(ctx context.Context, s httpapi.Start, spec deploy.Spec) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindDeploy, func() (*catalog.Task, error) {
		return a.deployer.RequestDeploy(ctx, spec)
	})
}

// ListMoverLimits implements httpapi.Core.
func (a *Appliance) ListMoverLimits(ctx context.Context) ([]fleet.Limit, error) {
	return a.fleet.Limits(ctx)
}

// AddMoverLimit implements httpapi.Core.
func (a *Appliance) AddMoverLimit(ctx context.Context, who fleet.Who, l catalog.MoverLimit) (fleet.Limit, error) {
	return a.fleet.AddLimit(ctx, who, l)
}

// RemoveMoverLimit implements httpapi.Core.
func (a *Appliance) RemoveMoverLimit(ctx context.Context, who fleet.Who, id string) error {
	return a.fleet.RemoveLimit(ctx, who, id)
}

// ListAudit implements httpapi.Core.
func (a *Appliance) ListAudit(ctx context.Context, before int64, limit int) ([]catalog.AuditEntry, error) {
	return a.catalog.AuditLog(ctx, before, limit)
}

// openFleet opens the appliance's authority and what is known of its movers.
func (a *Appliance) openFleet(ctx context.Context, hosts []string) (err error) {
	if hosts == nil {
		hosts = ownNames()
	}
	hosts = append(slices.Clone(hosts), pb.ManagerName)
	if a.authority, err = a.openAuthority(ctx, hosts); err != nil {
		return err
	}
	a.fleet = fleet.New(fleet.Options{Catalog: a.catalog, Authority: a.authority, Log: a.log, Version: version.Version})
	a.mover = newMover(a.fleet, a.catalog, a.log)
	return nil
}

// noMovers is the value of --movers for an appliance without other movers.
const noMovers = "none"

// listenMovers opens the listener for movers; nil if there is to be none.
func (a *Appliance) listenMovers(ctx context.Context, address string) (net.Listener, error) {
	if address == noMovers {
		return nil, nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fault.Context("listen for movers on", address, err).Explain(
			"Movers cannot reach the appliance under this address, so it does not start.",
			"Stop what uses the port, choose another address with --movers, or --movers none if there are no movers.")
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err == nil {
		var n int
		n, err = strconv.Atoi(port)
		a.moverPort.Store(int32(n)) //nolint:gosec // a port fits
	}
	return l, err
}
