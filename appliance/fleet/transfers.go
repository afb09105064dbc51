package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/internal/fault"
)

// ErrLost is in the chain of the error of a transfer whose mover is gone. The transfer may be started again, on this
// mover or another one: what it has stored already is found there.
var ErrLost = errors.New("the mover was lost")

func lost(name, why string) error {
	return fault.New(fault.Transient, "transfer on mover", name, "%w: %s", ErrLost, why)
}

// ErrRefused is in the chain of the error of a transfer that its mover did not begin and another one may: it has no slot
// free, whatever the manager believes, or is too old for the task.
var ErrRefused = errors.New("the mover did not begin it")

// underWay is a transfer that was given, or is to be given, to a mover. Its fields after task belong to Fleet.mu.
type underWay struct {
	id, mover string
	task      *pb.Task

	incarnation string // of the process it was sent to; "" as long as it was not
	cancelled   bool
	latest      transfer.Progress

	outcome  chan outcome           // takes one
	progress chan transfer.Progress // the newest one only
	poked    chan struct{}          // the mover came or went
}

// outcome is how a transfer ended: what the mover said, or why it will say nothing.
type outcome struct {
	result *pb.Result
	err    error
}

// remote is a mover behind a control stream.
type remote struct {
	fleet *Fleet
	id    string
}

// Mover is the enrolled mover with an id; it need not be connected.
func (f *Fleet) Mover(id string) agent.Mover { return remote{f, id} }

// Backup implements agent.Mover.
func (r remote) Backup(ctx context.Context, task agent.BackupTask, progress func(transfer.Progress)) (agent.BackupResult, error) {
	var res agent.BackupResult
	p, err := json.Marshal(task)
	if err != nil {
		return res, fault.Wrap(fault.Internal, "send task", task.ID, err)
	}
	out, err := r.fleet.run(ctx, r.id, &pb.Task{Task: &pb.Task_Backup{Backup: p}}, progress)
	if err != nil {
		return res, err
	}
	return res, readOutcome(out, out.GetBackup(), &res)
}

// Restore implements agent.Mover.
func (r remote) Restore(ctx context.Context, task agent.RestoreTask, progress func(transfer.Progress)) (agent.RestoreResult, error) {
	var res agent.RestoreResult
	p, err := json.Marshal(task)
	if err != nil {
		return res, fault.Wrap(fault.Internal, "send task", task.ID, err)
	}
	out, err := r.fleet.run(ctx, r.id, &pb.Task{Task: &pb.Task_Restore{Restore: p}}, progress)
	if err != nil {
		return res, err
	}
	return res, readOutcome(out, out.GetRestore(), &res)
}

// readOutcome reads a result; what a mover says is not believed beyond its form.
func readOutcome(r *pb.Result, body []byte, v any) error {
	if f := r.GetFault(); f != nil {
		return f.Err()
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fault.Wrap(fault.Internal, "read result of transfer", r.GetTransfer(), err)
	}
	return nil
}

// run gives a task to a mover and waits for its end. When it returns the mover has ended the transfer, or is taken for
// lost; a ticket that is void from then on keeps one that is not lost after all from doing anything.
func (f *Fleet) run(ctx context.Context, mover string, task *pb.Task, progress func(transfer.Progress)) (*pb.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := f.admit(ctx, mover)
	if err != nil {
		return nil, err
	}
	task.Transfer = catalog.NewID("tr")
	t := &underWay{
		id: task.Transfer, mover: mover, task: task,
		outcome: make(chan outcome, 1), progress: make(chan transfer.Progress, 1), poked: make(chan struct{}, 1),
	}
	f.begin(t)
	defer f.forget(t)
	return f.wait(ctx, t, m.Name, progress)
}

func (f *Fleet) begin(t *underWay) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.transfers[t.id] = t
	if l := f.links[t.mover]; l != nil {
		f.give(l, t)
	}
}

// give sends a task. f.mu is held.
func (f *Fleet) give(l *link, t *underWay) {
	t.incarnation = l.incarnation
	l.push(&pb.ToMover{Body: &pb.ToMover_Task{Task: t.task}})
}

// forget ends the manager's part of a transfer; a mover that still has it is told to cancel.
func (f *Fleet) forget(t *underWay) {
	f.mu.Lock()
	delete(f.transfers, t.id)
	l := f.links[t.mover]
	f.mu.Unlock()
	if l != nil {
		l.push(cancelOf(t.id))
	}
	f.poke()
}

func (f *Fleet) wait(ctx context.Context, t *underWay, name string, progress func(transfer.Progress)) (*pb.Result, error) {
	cancelled := ctx.Done()
	var limit <-chan time.Time // set while nothing is expected of the mover but to come back
	if !f.connected(t.mover) {
		limit = time.After(f.timing.Lost)
	}
	for {
		select {
		case o := <-t.outcome:
			return o.result, o.err
		case p := <-t.progress:
			if progress != nil {
				progress(p)
			}
		case <-t.poked:
			switch here := f.connected(t.mover); {
			case cancelled == nil: // the time for its answer is running
			case here:
				limit = nil
			case limit == nil:
				if _, err := f.admit(context.WithoutCancel(ctx), t.mover); err != nil {
					return nil, lost(name, err.Error())
				}
				limit = time.After(f.timing.Lost)
			}
		case <-limit:
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, lost(name, "it has not been connected for "+f.timing.Lost.String())
		case <-cancelled:
			cancelled = nil
			if !f.cancel(t) { // nobody is there who would answer
				return nil, ctx.Err()
			}
			limit = time.After(f.timing.Silence)
		}
	}
}

func (f *Fleet) connected(mover string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.links[mover] != nil
}

// cancel tells the mover to end a transfer, if it is connected.
func (f *Fleet) cancel(t *underWay) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	t.cancelled = true
	l := f.links[t.mover]
	if l != nil {
		l.push(cancelOf(t.id))
	}
	return l != nil
}

// progressed passes progress on; the newest is enough.
func (f *Fleet) progressed(mover string, p *pb.Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.transfers[p.GetTransfer()]
	if t == nil || t.mover != mover {
		return
	}
	t.latest = transfer.Progress{
		BytesTotal: p.GetBytesTotal(), BytesScanned: p.GetBytesScanned(), BytesRead: p.GetBytesRead(), BytesSkipped: p.GetBytesSkipped(),
		Rate: p.GetRate(), ETA: time.Duration(p.GetEtaMs()) * time.Millisecond, Bottleneck: transfer.Bottleneck(brief(p.GetBottleneck())),
		Verifying: p.GetVerifying(),
	}
	select {
	case <-t.progress:
	default:
	}
	t.progress <- t.latest
}

// ended takes a result.
func (f *Fleet) ended(l *link, r *pb.Result) {
	f.mu.Lock()
	f.finish(l, r)
	f.mu.Unlock()
	f.vacate(l.mover.ID)
}

// finish hands a result to who waits for it, if anybody does, and lets the mover forget it. f.mu is held.
func (f *Fleet) finish(l *link, r *pb.Result) {
	if t := f.transfers[r.GetTransfer()]; t != nil && t.mover == l.mover.ID {
		t.end(outcome{result: r})
	}
	l.push(&pb.ToMover{Body: &pb.ToMover_ResultTaken{ResultTaken: &pb.ResultTaken{Transfer: r.GetTransfer()}}})
}

// refused takes the word of a mover that it will not begin a transfer. One without a slot gets nothing until something of
// it has ended, or for a heartbeat: what fills it may be what the manager has given up.
func (f *Fleet) refused(l *link, r *pb.Refused) {
	err := r.GetFault().Err()
	kind := fault.KindOf(err)
	if kind == fault.Transient || kind == fault.Unsupported {
		err = fault.Wrap(kind, "begin transfer on mover", l.mover.Name, errors.Join(ErrRefused, err))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if kind == fault.Transient {
		f.fill(l.mover.ID)
	}
	if t := f.transfers[r.GetTransfer()]; t != nil && t.mover == l.mover.ID {
		t.end(outcome{err: err})
	}
}

// fill notes that a mover has no slot. f.mu is held.
func (f *Fleet) fill(mover string) {
	if t := f.full[mover]; t != nil {
		t.Stop()
	}
	f.full[mover] = time.AfterFunc(f.timing.Heartbeat, func() { f.vacate(mover) })
}

// vacate gives a mover another try.
func (f *Fleet) vacate(mover string) {
	f.mu.Lock()
	t := f.full[mover]
	delete(f.full, mover)
	f.mu.Unlock()
	if t != nil {
		t.Stop()
		f.poke()
	}
}

// end tells who waits; the first end counts.
func (t *underWay) end(o outcome) {
	select {
	case t.outcome <- o:
	default:
	}
}
