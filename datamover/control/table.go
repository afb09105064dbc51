package control

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"sync"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/internal/fault"
)

// table is the mover's transfers. It outlives streams.
type table struct {
	mover agent.Mover
	slots int
	log   *slog.Logger

	mu        sync.Mutex
	transfers map[string]*running
	results   map[string]*pb.Result // not taken by the manager yet
	taken     []string              // ids of results that were taken lately: their tasks are never begun again
	news      chan struct{}         // one token: there is progress or a result to send
	stopped   bool
	work      sync.WaitGroup
}

// running is a transfer under way.
type running struct {
	cancel   context.CancelFunc
	progress *pb.Progress // not sent yet
}

const maxTaken = 4096

func newTable(m agent.Mover, slots int, log *slog.Logger) *table {
	return &table{
		mover: m, slots: slots, log: log, transfers: map[string]*running{}, results: map[string]*pb.Result{},
		news: make(chan struct{}, 1),
	}
}

func (t *table) count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.transfers)
}

// begin begins a task, once. The error is why it will never be begun.
func (t *table) begin(task *pb.Task) error {
	do, err := t.decode(task)
	if err != nil {
		return err
	}
	id := task.GetTransfer()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.transfers[id] != nil || t.results[id] != nil || slices.Contains(t.taken, id) {
		return nil
	}
	if t.stopped || len(t.transfers) >= t.slots {
		return fault.New(fault.Transient, "begin transfer", id, "all %d slots of the mover are in use", t.slots)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.transfers[id] = &running{cancel: cancel}
	t.log.Info("transfer begun", "transfer_id", id)
	t.work.Go(func() {
		defer cancel()
		r := do(ctx, func(p transfer.Progress) { t.progressed(id, p) })
		r.Transfer = id
		t.ended(id, r)
	})
	return nil
}

// job does a task and returns how it ended.
type job func(ctx context.Context, progress func(transfer.Progress)) *pb.Result

func (t *table) decode(task *pb.Task) (job, error) {
	switch b := task.GetTask().(type) {
	case *pb.Task_Backup:
		var bt agent.BackupTask
		if err := strictly(b.Backup, &bt); err != nil {
			return nil, err
		}
		return func(ctx context.Context, progress func(transfer.Progress)) *pb.Result {
			res, err := t.mover.Backup(ctx, bt, progress)
			return resultOf(res, err, func(p []byte) *pb.Result { return &pb.Result{Outcome: &pb.Result_Backup{Backup: p}} })
		}, nil
	case *pb.Task_Restore:
		var rt agent.RestoreTask
		if err := strictly(b.Restore, &rt); err != nil {
			return nil, err
		}
		return func(ctx context.Context, progress func(transfer.Progress)) *pb.Result {
			res, err := t.mover.Restore(ctx, rt, progress)
			return resultOf(res, err, func(p []byte) *pb.Result { return &pb.Result{Outcome: &pb.Result_Restore{Restore: p}} })
		}, nil
	}
	return nil, tooOld("a kind of task")
}

// strictly reads a task and refuses what it does not know: it might be what matters.
func strictly(p []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(p))
	d.DisallowUnknownFields()
	if len(p) > pb.MaxTask {
		return fault.New(fault.Invalid, "read task", "", "it has %d bytes", len(p))
	}
	if err := d.Decode(v); err != nil {
		return tooOld(err.Error())
	}
	return nil
}

func tooOld(what string) error {
	return fault.New(fault.Unsupported, "read task", "", "not known to this mover: %s", what).Explain(
		"The manager is newer than the mover and asks for something that the mover does not understand.", "Upgrade the mover.")
}

func resultOf(res any, err error, good func([]byte) *pb.Result) *pb.Result {
	var p []byte
	if err == nil {
		p, err = json.Marshal(res)
	}
	if err != nil {
		return &pb.Result{Outcome: &pb.Result_Fault{Fault: pb.FaultOf(err)}}
	}
	return good(p)
}

func (t *table) progressed(id string, p transfer.Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.transfers[id]; r != nil {
		r.progress = &pb.Progress{
			Transfer: id, BytesTotal: p.BytesTotal, BytesScanned: p.BytesScanned, BytesRead: p.BytesRead, BytesSkipped: p.BytesSkipped,
			Rate: p.Rate, EtaMs: p.ETA.Milliseconds(), Bottleneck: string(p.Bottleneck), Verifying: p.Verifying,
		}
		t.tell()
	}
}

func (t *table) ended(id string, r *pb.Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.transfers, id)
	t.results[id] = r
	t.log.Info("transfer ended", "transfer_id", id, "fault", r.GetFault().GetMessage())
	t.tell()
}

func (t *table) tell() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

func (t *table) cancel(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.transfers[id]; r != nil {
		t.log.Info("transfer is cancelled by the manager", "transfer_id", id)
		r.cancel()
	}
}

// cancelAll ends what nobody has asked for any more.
func (t *table) cancelAll() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, r := range t.transfers {
		t.log.Warn("transfer is cancelled", "transfer_id", id)
		r.cancel()
	}
}

// take forgets a result that the manager has.
func (t *table) take(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.results[id] == nil {
		return
	}
	delete(t.results, id)
	t.taken = append(t.taken, id)
	t.taken = t.taken[max(0, len(t.taken)-maxTaken):]
}

// state is what a Hello says.
func (t *table) state() (ids []string, results []*pb.Result) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.transfers {
		ids = append(ids, id)
	}
	for _, r := range t.results {
		results = append(results, r)
	}
	return ids, results
}

// pending is what there is to send: results that sent does not name, and progress.
func (t *table) pending(sent map[string]bool) (results []*pb.Result, progress []*pb.Progress) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, r := range t.results {
		if !sent[id] {
			results = append(results, r)
		}
	}
	for _, r := range t.transfers {
		if r.progress != nil {
			progress = append(progress, r.progress)
			r.progress = nil
		}
	}
	return results, progress
}

// stop cancels everything and waits for it.
func (t *table) stop() {
	t.mu.Lock()
	t.stopped = true
	t.mu.Unlock()
	t.cancelAll()
	t.work.Wait()
}
