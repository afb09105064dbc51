package protect

import (
	"context"
	"maps"
	"sync"

	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// kept is what a backup keeps for the next process once a mover of another process works for it: that goes on with the
// freeze as it stands, and with what is durable of the session's images.
type kept struct {
	Session string                    `json:"session"`
	Frozen  hypervisors.FrozenInfo    `json:"frozen"`
	Since   string                    `json:"since,omitempty"`
	Point   string                    `json:"point,omitempty"`
	Images  map[string]store.ImageRef `json:"images,omitempty"`
	Reason  string                    `json:"reason,omitempty"`
	Full    map[string]string         `json:"full,omitempty"`
	Movers  map[string]string         `json:"movers,omitempty"` // by disk: who had it last
}

// away is the movers of other processes that a backup's disks are given to.
type away struct {
	mu     sync.Mutex
	movers map[string]string
}

// leaves keeps the backup for the next process before a disk is given to a mover that outlives this one.
func (b *backup) leaves(ctx context.Context, session *store.Session, disk, mover string) error {
	b.away.mu.Lock()
	defer b.away.mu.Unlock()
	if b.away.movers == nil {
		b.away.movers = map[string]string{}
	}
	b.away.movers[disk] = mover
	return b.t.Keep(ctx, b.keep(session.ID()))
}

// keep is what the backup keeps now.
func (b *backup) keep(session string) kept {
	return kept{
		Session: session, Frozen: b.info.Kept(), Since: b.base.since, Point: b.base.point, Images: b.base.images,
		Reason: b.base.reason, Full: b.base.full, Movers: b.away.movers,
	}
}

// before is the mover that had a disk in an earlier process; "" if none had.
func (b *backup) before(disk string) string {
	b.away.mu.Lock()
	defer b.away.mu.Unlock()
	return b.away.movers[disk]
}

// takeUp goes on with the backup of an earlier process; the VM is held.
func (b *backup) takeUp(ctx context.Context, k kept) (session *store.Session, err error) {
	b.base = base{since: k.Since, point: k.Point, images: k.Images, reason: k.Reason, full: k.Full}
	b.away.movers = maps.Clone(k.Movers)
	if err = b.refreeze(ctx, k.Frozen); err == nil {
		session, err = b.repo.Resume(ctx, k.Session)
	}
	if err == nil {
		return session, nil
	}
	if _, leaves := b.t.Leave(ctx, err); !leaves {
		b.release(context.WithoutCancel(ctx))
	}
	return nil, fault.Context("take up backup", b.vm.Name, err)
}

// giveUp ends the session of a backup that cannot be taken up; what is owed for it is removed when the task ends.
func (b *backup) giveUp(ctx context.Context, k kept) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpTime)
	defer cancel()
	repo, err := b.repositories(ctx, b.t.RepositoryID)
	if err == nil {
		err = repo.Forget(ctx, k.Session)
	}
	if err != nil && fault.KindOf(err) != fault.NotFound { // it is given up when the repository is opened again
		b.log.WarnContext(ctx, "session was not forgotten", "task_id", b.t.ID, "err", err)
	}
}

func (b *backup) refreeze(ctx context.Context, info hypervisors.FrozenInfo) error {
	// A disk that a mover has plugged in is given to it anew.
	if err := b.t.Journal().Unplug(ctx, b.t.ID); err != nil {
		return err
	}
	owed, err := b.t.Journal().Owing(ctx, b.t.ID)
	if err != nil {
		return err
	}
	frozen, err := b.driver.Refreeze(ctx, hypervisors.Standing{Tag: jobs.Tag(b.t.ID), Info: info, Owed: owed})
	if err != nil {
		return err
	}
	b.frozen, b.info = frozen, frozen.Info()
	return checkInfo(b.info)
}
