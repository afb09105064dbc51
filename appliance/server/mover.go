package server

import (
	"context"
	"crypto/rand"
	"log/slog"
	"sync"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/appliance/recover"
	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/store"
)

// mover gives transfers to the built-in mover. Each transfer has a ticket of its own, which is void when it ends.
type mover struct {
	agent   agent.Mover
	tickets *tickets.Service
	fleet   *fleet.Fleet

	mu    sync.Mutex
	rates map[string]int64 // of the built-in mover's transfers, by their ids
}

// builtInSlots is how many transfers the built-in mover has at once: the queue's tasks have two disks each.
const builtInSlots = 8

var (
	_ protect.Reader = (*mover)(nil)
	_ recover.Writer = (*mover)(nil)
)

func newMover(f *fleet.Fleet, c *catalog.Catalog, log *slog.Logger) *mover {
	m := &mover{fleet: f, rates: map[string]int64{}}
	m.tickets = tickets.New(func(ctx context.Context, r tickets.Refusal) {
		err := c.Audit(ctx, catalog.AuditEntry{
			Actor: "mover " + r.Mover, Action: "ticket.use", Subject: r.Transfer, Refused: true, Detail: r.Reason,
		})
		if err != nil {
			log.ErrorContext(ctx, "audit log was not written", "action", "ticket.use", "err", err)
		}
	})
	m.agent = agent.NewLocal(m.resolve)
	return m
}

// busy counts a transfer of the built-in mover until done is called; tell tells of its rate.
func (m *mover) busy(id string) (tell func(rate int64), done func()) {
	tell = func(rate int64) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.rates[id] = rate
	}
	tell(0)
	return tell, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.rates, id)
	}
}

// load is what the built-in mover has to do.
func (m *mover) load() (transfers int, rate int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rates {
		rate += r
	}
	return len(m.rates), rate
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

// ReadDisk implements protect.Reader.
func (m *mover) ReadDisk(
	ctx context.Context, r protect.ReadRequest, progress func(catalog.DiskProgress),
) (protect.ReadResult, error) {
	ticket, void := m.tickets.Issue(tickets.Grant{Mover: tickets.BuiltIn, Transfer: r.ID, Session: r.Session, Parent: r.Parent})
	defer void()
	tell, done := m.busy(r.ID)
	defer done()
	res, err := m.agent.Backup(ctx, agent.BackupTask{
		ID: r.ID, Disk: r.Disk, Ticket: ticket, Export: r.Export, Parent: r.Parent,
	}, func(p transfer.Progress) {
		tell(p.Rate)
		progress(progressOf(p))
	})
	if err != nil {
		return protect.ReadResult{}, err
	}
	progress(catalog.DiskProgress{
		BytesTotal: res.BytesTotal, BytesScanned: res.BytesTotal, BytesRead: res.BytesRead, BytesSkipped: res.BytesSkipped,
		BytesNew: res.Stats.BytesNew, BytesStored: res.Stats.BytesStored, Done: true,
	})
	return protect.ReadResult{
		Image: res.Image, BytesRead: res.BytesRead, BytesNew: res.Stats.BytesNew, BytesStored: res.Stats.BytesStored,
	}, nil
}

// WriteDisk implements recover.Writer.
func (m *mover) WriteDisk(
	ctx context.Context, r recover.WriteRequest, progress func(catalog.DiskProgress),
) (recover.WriteResult, error) {
	ticket, void := m.tickets.Issue(tickets.Grant{
		Mover: tickets.BuiltIn, Transfer: r.ID, Repository: r.Repository, Images: []store.ImageRef{r.Image},
	})
	defer void()
	tell, done := m.busy(r.ID)
	defer done()
	res, err := m.agent.Restore(ctx, agent.RestoreTask{
		ID: r.ID, Disk: r.Disk, Ticket: ticket, Image: r.Image, Export: r.Export,
	}, func(p transfer.Progress) {
		tell(p.Rate)
		progress(progressOf(p))
	})
	if err != nil {
		return recover.WriteResult{}, err
	}
	progress(catalog.DiskProgress{
		BytesTotal: res.BytesTotal, BytesScanned: res.BytesTotal, BytesRead: res.BytesRead, BytesSkipped: res.BytesSkipped,
		Done: true,
	})
	return recover.WriteResult{BytesWritten: res.BytesRead}, nil
}

func progressOf(p transfer.Progress) catalog.DiskProgress {
	return catalog.DiskProgress{
		BytesTotal: p.BytesTotal, BytesScanned: p.BytesScanned, BytesRead: p.BytesRead, BytesSkipped: p.BytesSkipped,
		Rate: p.Rate, ETASeconds: int64(p.ETA.Seconds()), Bottleneck: string(p.Bottleneck),
	}
}
