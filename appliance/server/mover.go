package server

import (
	"context"
	"crypto/rand"

	"github.com/cairn-backup/cairn/appliance/catalog"
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
}

var (
	_ protect.Reader = (*mover)(nil)
	_ recover.Writer = (*mover)(nil)
)

func newMover() *mover {
	m := &mover{tickets: tickets.New(nil)}
	m.agent = agent.NewLocal(m.resolve)
	return m
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
	res, err := m.agent.Backup(ctx, agent.BackupTask{
		ID: r.ID, Disk: r.Disk, Ticket: ticket, Export: r.Export, Parent: r.Parent,
	}, func(p transfer.Progress) { progress(progressOf(p)) })
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
	res, err := m.agent.Restore(ctx, agent.RestoreTask{
		ID: r.ID, Disk: r.Disk, Ticket: ticket, Image: r.Image, Export: r.Export,
	}, func(p transfer.Progress) { progress(progressOf(p)) })
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
