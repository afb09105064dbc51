package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/appliance/recover"
	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/remote"
)

// mover finds a mover for each transfer and gives it the transfer. Each has a ticket of its own, which is void when it
// ends.
type mover struct {
	local   agent.Mover
	limit   func(read int64) // of local
	tickets *tickets.Service
	data    *remote.Server // of movers in other processes
	fleet   *fleet.Fleet
	catalog *catalog.Catalog
	boot    string // of this machine

	mu    sync.Mutex
	rates map[string]int64 // of the built-in mover's transfers, by their ids
}

const (
	// builtInSlots is how many transfers the built-in mover has at once: the queue's tasks have two disks each.
	builtInSlots = 8
	// attempts is how often a transfer is begun whose mover is lost.
	attempts = 3
)

var (
	_ protect.Reader = (*mover)(nil)
	_ recover.Writer = (*mover)(nil)
)

func ownTransports() []string {
	var out []string
	for _, t := range slices.Sorted(maps.Keys(agent.Network())) {
		out = append(out, string(t))
	}
	return out
}

func newMover(f *fleet.Fleet, c *catalog.Catalog, log *slog.Logger) *mover {
	m := &mover{fleet: f, catalog: c, rates: map[string]int64{}}
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		m.boot = strings.TrimSpace(string(b))
	}
	m.tickets = tickets.New(func(ctx context.Context, r tickets.Refusal) {
		source := ""
		if p, err := fleet.PeerOf(ctx); err == nil {
			source = p.Source
		}
		f.Audit(ctx, catalog.AuditEntry{
			Actor: "mover " + r.Mover, Source: source, Action: "ticket.use", Subject: r.Transfer, Refused: true, Detail: r.Reason,
		})
	})
	m.data = remote.NewServer(remote.Options{Authorizer: desk{m.tickets}, Log: log, Refused: desk{m.tickets}.refused})
	local := agent.NewLocal(m.resolve)
	m.local, m.limit = local, local.Limit
	return m
}

// rate is what the built-in mover moves now, in bytes a second.
func (m *mover) rate() (sum int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rates {
		sum += r
	}
	return sum
}

func (m *mover) setRate(id string, rate int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rates[id] = rate
}

func (m *mover) forgetRate(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.rates, id)
}

// resolve is the built-in mover's way to a repository: it lies in this process.
func (m *mover) resolve(ctx context.Context, ticket string) (agent.Access, error) {
	g, err := m.tickets.Open(ctx, tickets.BuiltIn, ticket, rand.Text())
	if err != nil {
		return agent.Access{}, err
	}
	var access agent.Access
	if g.Session != nil {
		access.Session = agent.SessionOf(g.Session)
	}
	if g.Repository != nil {
		access.Repository = agent.RepositoryOf(g.Repository)
	}
	return access, nil
}

// order is a transfer to give away.
type order struct {
	id, disk string
	wish     fleet.Wish
	fallback bool // to another transport when one fails
	plugs    jobs.Plugs
	grant    tickets.Grant
	tell     func(ctx context.Context, message string, fields ...string)
	warn     func(ctx context.Context, message string, fields ...string)
	progress func(catalog.DiskProgress)
	now      func() hypervisors.Export                     // how the platform offers the disk now; nil is as in wish
	before   string                                        // mover that had it when the manager ended
	away     func(ctx context.Context, mover string) error // see protect.ReadRequest; may be nil
}

// work does an order with a mover that was found, on the disk as that mover gets it.
type work func(chosen agent.Mover, ticket string, e hypervisors.Export, show func(catalog.DiskProgress)) error

// do finds a mover and has it do an order; when the mover is lost it finds one anew, and when the transport fails another
// one where that is allowed.
func (m *mover) do(ctx context.Context, o order, do work) error {
	o.wish.ExportBoot = m.boot // connections that are not local offer no sockets and no loopback addresses
	if o.before != "" {
		if err := m.fleet.Await(ctx, o.before); err != nil {
			return err
		}
	}
	o.wish.NoHotadd, o.wish.Failed = o.plugs.None, map[hypervisors.Transport]string{}
	o.wish.Pluggable, o.wish.Avoid = map[string]bool{}, map[string]string{}
	for id := range o.plugs.Machines {
		o.wish.Pluggable[id] = true
	}
	for n := 1; ; {
		by, err := m.once(ctx, o, do)
		switch {
		case err == nil || ctx.Err() != nil || errors.Is(err, errStillPlugged):
			return err
		case errors.Is(err, fleet.ErrRefused): // nothing was begun: another one, or later
			o.tell(ctx, fmt.Sprintf("Disk %s: the mover did not take the transfer: %v", o.disk, err), "disk", o.disk)
		case errors.Is(err, fleet.ErrLost):
			if n++; n > attempts {
				return err
			}
			o.tell(ctx, fmt.Sprintf("Disk %s: the mover was lost, and the transfer goes on with what is stored already: %v", o.disk, err), "disk", o.disk)
		case !o.fallBack(ctx, by, err):
			return err
		}
	}
}

// once does an order with one mover by one transport, which it returns; "" if none could be chosen.
func (m *mover) once(ctx context.Context, o order, do work) (by hypervisors.Transport, err error) {
	own := fleet.Candidate{
		ID: tickets.BuiltIn, Name: tickets.BuiltIn, BuiltIn: true, State: fleet.Online, Slots: builtInSlots, Transports: ownTransports(), BootID: m.boot,
	}
	place, err := m.fleet.Find(ctx, o.wish, own, m.locate(ctx, o), func(c fleet.Choice) {
		o.tell(ctx, fmt.Sprintf("Disk %s waits for a mover: %s.", o.disk, c.Words()), "disk", o.disk)
	})
	if err != nil {
		return "", err
	}
	defer place.Release()
	tellChoice(ctx, o, place.Choice)
	chosen, name := m.local, place.Mover.Name
	if !place.Mover.BuiltIn {
		chosen = m.fleet.Mover(place.Mover.ID)
	}
	defer m.forgetRate(o.id)
	show := func(p catalog.DiskProgress) {
		p.Mover, p.Transport, p.Choice = name, string(place.Transport), choiceOf(place.Choice)
		if place.Mover.BuiltIn {
			m.setRate(o.id, p.Rate)
		}
		o.progress(p)
	}
	show(catalog.DiskProgress{BytesTotal: o.wish.Export.SizeBytes})
	if !place.Mover.BuiltIn && o.away != nil {
		if err := o.away(ctx, place.Mover.ID); err != nil {
			return place.Transport, err
		}
	}
	fault.Point("transfer.chosen")
	e, unplug, err := o.open(ctx, place.Choice)
	if err != nil {
		return place.Transport, err
	}
	defer func() { err = unplug(err) }()
	grant := o.grant
	grant.Mover, grant.Transfer, grant.Image = place.Mover.ID, o.id, o.id
	ticket, void := m.tickets.Issue(grant)
	defer m.data.End(ticket) // once it is void
	defer void()
	err = do(chosen, ticket, e, show)
	if errors.Is(err, fleet.ErrRefused) && fault.KindOf(err) == fault.Unsupported {
		o.wish.Avoid[place.Mover.ID] = err.Error()
	}
	return place.Transport, err
}

// tellChoice says who was chosen and why; where there was no other mover it goes without saying.
func tellChoice(ctx context.Context, o order, c fleet.Choice) {
	if !slices.ContainsFunc(c.Rejected, func(r fleet.Rejection) bool { return r.Mover != "" }) {
		return
	}
	o.tell(ctx, fmt.Sprintf("Disk %s goes by %s through mover %s: %s. Not chosen: %s.", o.disk, c.Transport, c.Mover.Name, c.Reason, c.Words()),
		"disk", o.disk, "mover", c.Mover.Name, "transport", string(c.Transport))
}

func choiceOf(c fleet.Choice) catalog.Choice {
	out := catalog.Choice{Reason: c.Reason}
	for _, r := range c.Rejected {
		out.Rejected = append(out.Rejected, catalog.RejectedWay{Mover: r.Mover, Transport: string(r.Transport), Reason: r.Reason})
	}
	return out
}

// locate finds the VM that a mover runs in.
func (m *mover) locate(ctx context.Context, o order) fleet.Locate {
	return func(machineUUID string) (host, connection string) {
		if vm, ok := o.plugs.Machines[machineUUID]; ok { // the inventory leaves movers out
			return vm.Host, o.wish.Connection
		}
		vm, err := m.catalog.VMOfMachine(ctx, machineUUID)
		if err != nil {
			return "", "" // it is no VM of ours, or an unknown one: then nearness is not known
		}
		return vm.Description.Host, vm.ConnectionID
	}
}

// ReadDisk implements protect.Reader.
func (m *mover) ReadDisk(
	ctx context.Context, r protect.ReadRequest, progress func(catalog.DiskProgress),
) (out protect.ReadResult, err error) {
	o := order{
		id: r.ID, disk: r.Disk, tell: r.Tell, warn: r.Warn, progress: progress, fallback: r.Fallback, plugs: r.Plugs,
		wish: fleet.Wish{
			Mover: r.Mover, Transport: r.Transport, Export: r.Export, Connection: r.ConnectionID, Host: r.VMHost, Datastore: r.Datastore,
			StoreID: storeID(r.Session.Terms()),
		},
		grant:  tickets.Grant{RepositoryID: r.RepositoryID, Session: r.Session, Parent: r.Parent},
		before: r.Before, away: r.Away, now: r.Now,
	}
	err = m.do(ctx, o, func(chosen agent.Mover, ticket string, e hypervisors.Export, show func(catalog.DiskProgress)) error {
		res, err := chosen.Backup(ctx, agent.BackupTask{ID: r.ID, Disk: r.Disk, Ticket: ticket, Export: e, Parent: r.Parent},
			func(p transfer.Progress) { show(progressOf(p)) })
		if err != nil {
			return err
		}
		if !r.Session.Wrote(res.Image) {
			m.tickets.Refuse(ctx, "", ticket, "its result names an image that it did not write")
			return fault.New(fault.Denied, "back up disk", r.Disk, "the mover answers with an image that it did not write").Explain(
				"A mover's answer must name what it was asked to write. Nothing of it is used.",
				"Look at the mover's machine, and revoke the mover if you do not know why it does this.")
		}
		show(catalog.DiskProgress{
			BytesTotal: res.BytesTotal, BytesScanned: res.BytesTotal, BytesRead: res.BytesRead, BytesSkipped: res.BytesSkipped,
			BytesNew: res.Stats.BytesNew, BytesStored: res.Stats.BytesStored, Done: true,
		})
		out = protect.ReadResult{
			Image: res.Image, BytesRead: res.BytesRead, BytesNew: res.Stats.BytesNew, BytesStored: res.Stats.BytesStored,
		}
		return nil
	})
	return out, err
}

// WriteDisk implements recover.Writer.
func (m *mover) WriteDisk(
	ctx context.Context, r recover.WriteRequest, progress func(catalog.DiskProgress),
) (out recover.WriteResult, err error) {
	o := order{
		id: r.ID, disk: r.Disk, tell: r.Tell, warn: r.Warn, progress: progress, fallback: r.Fallback, plugs: r.Plugs,
		wish: fleet.Wish{
			Mover: r.Mover, Transport: r.Transport, Export: r.Export, Connection: r.ConnectionID, Host: r.Host, Datastore: r.Datastore,
			StoreID: storeID(r.Repository.Terms()),
		},
		grant: tickets.Grant{RepositoryID: r.RepositoryID, Repository: r.Repository, Images: []store.ImageRef{r.Image}},
		now:   r.Now,
	}
	again := false // what a lost mover has written is not known
	err = m.do(ctx, o, func(chosen agent.Mover, ticket string, e hypervisors.Export, show func(catalog.DiskProgress)) error {
		res, err := chosen.Restore(ctx, agent.RestoreTask{
			ID: r.ID, Disk: r.Disk, Ticket: ticket, Image: r.Image, Export: e, SeedZero: again,
		}, func(p transfer.Progress) { show(progressOf(p)) })
		again = true
		if err != nil {
			return err
		}
		show(catalog.DiskProgress{
			BytesTotal: res.BytesTotal, BytesScanned: res.BytesTotal, BytesRead: res.BytesRead, BytesSkipped: res.BytesSkipped, Done: true,
		})
		out = recover.WriteResult{BytesWritten: res.BytesRead}
		return nil
	})
	return out, err
}

// storeID is a repository's own identity, as movers tell of what they have mounted.
func storeID(t store.Terms) string { return hex.EncodeToString(t.Repository[:]) }

func progressOf(p transfer.Progress) catalog.DiskProgress {
	return catalog.DiskProgress{
		BytesTotal: p.BytesTotal, BytesScanned: p.BytesScanned, BytesRead: p.BytesRead, BytesSkipped: p.BytesSkipped,
		Rate: p.Rate, ETASeconds: int64(p.ETA.Seconds()), Bottleneck: string(p.Bottleneck),
	}
}
