package jobs

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Platforms gives the driver of a connection.
type Platforms func(ctx context.Context, connectionID string) (hypervisors.Driver, error)

// Journal is the list of owed clean-ups: everything our tasks made on platforms and must remove.
type Journal struct {
	catalog *catalog.Catalog
	drivers Platforms
	log     *slog.Logger

	mu    sync.Mutex
	held  map[string]chan struct{} // VMs somebody in this process works on; closed when let go
	stuck []sharedHold             // that could not be ended in the catalog
}

// sharedHold is a VM taken among the managers. The token is another each time, so that the end of an earlier one that comes
// late does not end a later one.
type sharedHold struct{ key, token string }

// NewJournal makes the journal of a catalog.
func NewJournal(c *catalog.Catalog, drivers Platforms, log *slog.Logger) *Journal {
	return &Journal{catalog: c, drivers: drivers, log: log, held: map[string]chan struct{}{}}
}

// Tag returns the mark that everything a task makes on a platform carries behind "cairn-".
func Tag(taskID string) string { return strings.TrimPrefix(taskID, catalog.PrefixTask+"_") }

// Hold waits until nobody else changes a VM on its platform and keeps it until the answer is called.
func (j *Journal) Hold(ctx context.Context, connectionID, vm string) (release func(), err error) {
	key := connectionID + "/" + vm
	for {
		release, taken := j.tryHold(key)
		if taken == nil {
			return j.holdShared(ctx, key, release)
		}
		select {
		case <-taken:
		case <-ctx.Done():
			return nil, fault.Context("wait for clean-up of VM", vm, ctx.Err())
		}
	}
}

// askEvery is how soon it is noticed that another manager lets go of a VM.
const askEvery = 200 * time.Millisecond

// holdShared waits until no other manager changes the VM, either.
func (j *Journal) holdShared(ctx context.Context, key string, release func()) (func(), error) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		both, held, err := j.tryShared(ctx, key, release)
		if held {
			return both, nil
		}
		if err == nil {
			select {
			case <-tick.C:
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		release()
		return nil, fault.Context("wait for clean-up of VM", key, err)
	}
}

// tryShared takes a VM that this process has to itself also among the managers. The function that comes back lets go of both.
func (j *Journal) tryShared(ctx context.Context, key string, release func()) (both func(), held bool, err error) {
	if !j.catalog.Shared() {
		return release, true, nil
	}
	hold := sharedHold{key, rand.Text()}
	if held, err = j.catalog.HoldVM(ctx, hold.key, hold.token); err != nil || !held {
		return nil, false, err
	}
	return sync.OnceFunc(func() {
		j.letGo(context.WithoutCancel(ctx), hold)
		release()
	}), true, nil
}

// letGo lets go of a VM among the managers, and of those for which that has failed before. What this one does not come to
// let go ends when it does.
func (j *Journal) letGo(ctx context.Context, holds ...sharedHold) {
	j.mu.Lock()
	holds = append(holds, j.stuck...)
	j.stuck = nil
	j.mu.Unlock()
	for _, h := range holds {
		if err := j.catalog.ReleaseVM(ctx, h.key, h.token); err != nil {
			j.log.WarnContext(ctx, "VM is still kept from other managers; it will be tried again", "vm", h.key, "err", err)
			j.mu.Lock()
			j.stuck = append(j.stuck, h)
			j.mu.Unlock()
		}
	}
}

func (j *Journal) tryHold(key string) (release func(), taken <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if c, ok := j.held[key]; ok {
		return nil, c
	}
	done := make(chan struct{})
	j.held[key] = done
	return sync.OnceFunc(func() {
		j.mu.Lock()
		defer j.mu.Unlock()
		delete(j.held, key)
		close(done)
	}), nil
}

// Owe returns the function a driver calls before it makes something for a task: when it returns nil, the clean-up is
// durable.
func (j *Journal) Owe(connectionID, taskID string) func(context.Context, hypervisors.Owed) error {
	return func(ctx context.Context, owed hypervisors.Owed) error {
		_, err := j.catalog.Owe(ctx, connectionID, taskID, owed)
		return err
	}
}

// Owing returns what a task still owes, in the order of making.
func (j *Journal) Owing(ctx context.Context, taskID string) ([]hypervisors.Owed, error) {
	rows, err := j.catalog.OpenCleanups(ctx, taskID)
	if err != nil {
		return nil, err
	}
	out := make([]hypervisors.Owed, 0, len(rows))
	for _, row := range slices.Backward(rows) {
		out = append(out, row.Owed)
	}
	return out, nil
}

// Unplug removes the disks that a task has in movers. It succeeds when the platform confirms that none is there; only then
// may go what they are made of.
func (j *Journal) Unplug(ctx context.Context, taskID string) error {
	rows, err := j.catalog.OpenCleanups(ctx, taskID)
	if err != nil {
		return err
	}
	attached := slices.DeleteFunc(rows, func(r catalog.OwedCleanup) bool { return r.Owed.Kind != hypervisors.OwedAttached })
	return j.settle(ctx, attached, map[string]bool{})
}

// StrikeOff notes that all a task made is gone, or is now somebody's. A disk in a mover is nobody's: the platform has to
// say that it is gone, or nothing is struck off.
func (j *Journal) StrikeOff(ctx context.Context, taskID string) error {
	if err := j.Unplug(ctx, taskID); err != nil {
		return err
	}
	return j.catalog.StrikeOffTask(ctx, taskID)
}

// Settle removes what a task still owes, the newest first; what a restore that has finished made is not removed but
// struck off. What cannot be removed stays in the journal and is in the error.
func (j *Journal) Settle(ctx context.Context, taskID string) error {
	rows, err := j.catalog.OpenCleanups(ctx, taskID)
	if err != nil {
		return err
	}
	return j.settle(ctx, rows, map[string]bool{})
}

// SettleVM removes what earlier tasks still owe on a VM, and before that what they have of it in movers. The caller holds
// the VM.
func (j *Journal) SettleVM(ctx context.Context, connectionID, vm, taskID string) error {
	all, err := j.catalog.OpenCleanups(ctx, "")
	if err != nil {
		return err
	}
	tasks := map[string]bool{} // that worked on the VM
	for _, r := range all {
		if r.ConnectionID == connectionID && r.Owed.VM == vm && r.TaskID != taskID {
			tasks[r.TaskID] = true
		}
	}
	rows := slices.DeleteFunc(all, func(r catalog.OwedCleanup) bool {
		return !tasks[r.TaskID] || r.ConnectionID != connectionID || r.Owed.VM != vm && r.Owed.Kind != hypervisors.OwedAttached
	})
	return j.settle(ctx, rows, map[string]bool{})
}

// attachedPatience is how often the unplugging of a disk is tried before the rest that its task owes is removed all the
// same: a mover that hangs must not keep a VM frozen for ever.
const attachedPatience = 3

// settle removes what is owed, disks in movers first. What a task owes besides waits for those, because it is what they
// are made of; plugged has the tasks that wait, and is added to.
func (j *Journal) settle(ctx context.Context, rows []catalog.OwedCleanup, plugged map[string]bool) error {
	rows = slices.Clone(rows)
	slices.SortStableFunc(rows, func(a, b catalog.OwedCleanup) int { return rank(a.Owed) - rank(b.Owed) })
	var errs []error
	for _, row := range rows {
		attached := row.Owed.Kind == hypervisors.OwedAttached
		if !attached && plugged[row.TaskID] {
			continue
		}
		made, err := j.made(ctx, row.TaskID)
		if err == nil && (!made || attached || row.Owed.Kind == hypervisors.OwedReplaced) {
			err = j.remove(ctx, row)
		}
		if attached && err != nil && row.Attempts+1 < attachedPatience {
			plugged[row.TaskID] = true
		}
		if err == nil {
			err = j.catalog.StrikeOff(ctx, row.ID)
		} else {
			err = errors.Join(err, j.catalog.CleanupFailed(ctx, row, err))
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// rank is 0 for what goes first.
func rank(o hypervisors.Owed) int {
	if o.Kind == hypervisors.OwedAttached {
		return 0
	}
	return 1
}

// made reports whether a task is a restore or a deployment that has finished: what it made is the user's.
func (j *Journal) made(ctx context.Context, taskID string) (bool, error) {
	t, err := j.catalog.Task(ctx, taskID)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return false, err
	}
	return (t.Kind == catalog.KindRestore || t.Kind == catalog.KindDeploy) && t.Result != nil, nil
}

func (j *Journal) remove(ctx context.Context, row catalog.OwedCleanup) error {
	recorded, err := j.recorded(ctx, row.ConnectionID, row.Owed)
	if err != nil || recorded {
		return err
	}
	driver, err := j.drivers(ctx, row.ConnectionID)
	if err != nil {
		return fault.Context("clean up "+string(row.Owed.Kind), row.Owed.Name, err)
	}
	if err := driver.CleanUp(ctx, row.Owed); err != nil {
		return fault.Context("clean up "+string(row.Owed.Kind), row.Owed.Name, err)
	}
	j.log.InfoContext(ctx, "cleaned up", "kind", row.Owed.Kind, "name", row.Owed.Name, "vm", row.Owed.VM, "task_id", row.TaskID)
	return nil
}

// recorded reports whether something owed is the checkpoint of a VM's newest restore point, which is kept.
func (j *Journal) recorded(ctx context.Context, connectionID string, owed hypervisors.Owed) (bool, error) {
	if owed.Kind != hypervisors.OwedCheckpoint {
		return false, nil
	}
	checkpoints, err := j.catalog.Checkpoints(ctx, connectionID)
	return err == nil && owed.Name != "" && checkpoints[owed.VM] == owed.Name, err
}

// Swept is what a sweep found on one connection.
type Swept struct {
	ConnectionID, Name string
	Removed            int
	Strange            int // made by a Cairn, but not by this one: left alone
	Err                error
}

// Sweep removes what tasks that are over still owe, and what a platform has of ours that nobody owes and no restore
// point needs. VMs that a task works on are left for the next time. The error is all there were.
func (j *Journal) Sweep(ctx context.Context) ([]Swept, error) {
	conns, err := j.catalog.AllConnections(ctx)
	if err != nil {
		return nil, err
	}
	j.letGo(ctx)
	out, at := make([]Swept, len(conns)), map[string]*Swept{}
	for i, conn := range conns {
		out[i].ConnectionID, out[i].Name = conn.ID, conn.Name
		at[conn.ID] = &out[i]
	}
	errs := []error{j.sweepJournal(ctx, at)}
	for i := range out {
		if err := j.sweepPlatform(ctx, &out[i]); err != nil {
			out[i].Err = errors.Join(out[i].Err, err)
		}
		if out[i].Err != nil {
			errs = append(errs, fault.Context("sweep connection", out[i].Name, out[i].Err))
		}
	}
	errs = append(errs, j.catalog.PurgeCleanups(ctx, time.Now().Add(-doneKept)))
	return out, errors.Join(errs...)
}

// doneKept is how long clean-ups that were done stay in the journal.
const doneKept = 30 * 24 * time.Hour

func (j *Journal) sweepJournal(ctx context.Context, at map[string]*Swept) error {
	rows, err := j.catalog.OpenCleanups(ctx, "")
	if err != nil {
		return err
	}
	active, err := j.activeTags(ctx)
	if err != nil {
		return err
	}
	slices.SortStableFunc(rows, func(a, b catalog.OwedCleanup) int { return rank(a.Owed) - rank(b.Owed) })
	var errs []error
	plugged := map[string]bool{}
	for _, row := range rows {
		if active[Tag(row.TaskID)] {
			continue
		}
		err := j.alone(ctx, row.ConnectionID, row.Owed.VM, func() error {
			waits := row.Owed.Kind != hypervisors.OwedAttached && plugged[row.TaskID]
			err := j.settle(ctx, []catalog.OwedCleanup{row}, plugged)
			if s := at[row.ConnectionID]; s != nil && err == nil && !waits {
				s.Removed++
			}
			return err
		})
		if s := at[row.ConnectionID]; s != nil {
			s.Err = errors.Join(s.Err, err)
			continue
		}
		errs = append(errs, err) // of a connection that was removed
	}
	return errors.Join(errs...)
}

// sweepPlatform looks at the platform first, then at the tasks, then at the restore points: a task that ends between
// two looks is then always seen in the later one.
func (j *Journal) sweepPlatform(ctx context.Context, s *Swept) error {
	connectionID := s.ConnectionID
	driver, err := j.drivers(ctx, connectionID)
	if err != nil {
		return err
	}
	found, err := driver.Leftovers(ctx)
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return err
	}
	active, err := j.activeTags(ctx)
	if err != nil {
		return err
	}
	slices.SortStableFunc(found, func(a, b hypervisors.Owed) int { return rank(a) - rank(b) })
	var errs []error
	for _, owed := range found {
		tag := tagOf(owed)
		if active[tag] {
			continue
		}
		if recorded, err := j.recorded(ctx, connectionID, owed); err != nil || recorded {
			errs = append(errs, err)
			continue
		}
		if _, err := j.catalog.Task(ctx, catalog.PrefixTask+"_"+tag); err != nil {
			j.log.WarnContext(ctx, "left alone: made by a Cairn, but not by this one",
				"connection", connectionID, "kind", owed.Kind, "name", owed.Name, "vm", owed.VM)
			s.Strange++
			continue
		}
		errs = append(errs, j.alone(ctx, connectionID, owed.VM, func() error {
			err := j.remove(ctx, catalog.OwedCleanup{ConnectionID: connectionID, TaskID: catalog.PrefixTask + "_" + tag, Owed: owed})
			if err == nil {
				s.Removed++
			}
			return err
		}))
	}
	return errors.Join(errs...)
}

// alone calls do unless somebody works on the VM.
func (j *Journal) alone(ctx context.Context, connectionID, vm string, do func() error) error {
	if vm == "" {
		return do()
	}
	key := connectionID + "/" + vm
	release, taken := j.tryHold(key)
	if taken != nil {
		return nil
	}
	both, held, err := j.tryShared(ctx, key, release)
	if !held {
		release()
		return err
	}
	defer both()
	return do()
}

func (j *Journal) activeTags(ctx context.Context) (map[string]bool, error) {
	tasks, err := j.catalog.ActiveTasks(ctx)
	if err != nil {
		return nil, err
	}
	tags := make(map[string]bool, len(tasks))
	for _, t := range tasks {
		tags[Tag(t.ID)] = true
	}
	return tags, nil
}

var tagPattern = regexp.MustCompile(`cairn-([0-9a-z]{26})`)

// tagOf finds the tag in what a platform has of ours; "" when there is none.
func tagOf(owed hypervisors.Owed) string {
	if m := tagPattern.FindStringSubmatch(owed.Name); m != nil {
		return m[1]
	}
	for _, v := range owed.Args {
		if m := tagPattern.FindStringSubmatch(v); m != nil {
			return m[1]
		}
	}
	return ""
}
