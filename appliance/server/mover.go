package server

import (
	"context"
	"crypto/rand"
	"sync"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/appliance/recover"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/internal/fault"
)

// mover gives transfers to the built-in mover. Each transfer has a ticket of its own, which is void when it ends.
type mover struct {
	agent agent.Mover

	mu      sync.Mutex
	tickets map[string]agent.Access
}

var (
	_ protect.Reader = (*mover)(nil)
	_ recover.Writer = (*mover)(nil)
)

func newMover() *mover {
	m := &mover{tickets: map[string]agent.Access{}}
	m.agent = agent.NewLocal(m.resolve)
	return m
}

func (m *mover) resolve(ticket string) (agent.Access, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	access, ok := m.tickets[ticket]
	if !ok {
		return agent.Access{}, fault.New(fault.Denied, "use ticket", "", "it is not known")
	}
	return access, nil
}

func (m *mover) issue(access agent.Access) (ticket string, void func()) {
	ticket = rand.Text()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tickets[ticket] = access
	return ticket, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.tickets, ticket)
	}
}

// ReadDisk implements protect.Reader.
func (m *mover) ReadDisk(
	ctx context.Context, r protect.ReadRequest, progress func(catalog.DiskProgress),
) (protect.ReadResult, error) {
	ticket, void := m.issue(agent.Access{Session: r.Session})
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
	ticket, void := m.issue(agent.Access{Repository: r.Repository})
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
