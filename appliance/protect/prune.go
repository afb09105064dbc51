package protect

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

// PruneSpec is what is wanted of a scheduled prune of a repository.
type PruneSpec struct {
	Budget int64 `json:"budget,omitempty"` // bytes that the restore points of one run had stored; 0 is all that goes
}

// Retained is a VM to which the retention of a policy applies now.
type Retained struct {
	VMID, VMName string
	Retention    policy.Retention
	Zone         *time.Location
}

// Retention says to which VMs retention applies in a repository, and which.
type Retention func(ctx context.Context, repositoryID string) ([]Retained, error)

// RequestPrune makes the task that carries out the retention of policies in a repository.
func (p *Protector) RequestPrune(ctx context.Context, repositoryID string, spec PruneSpec) (*catalog.Task, error) {
	if err := p.usable(ctx, repositoryID); err != nil {
		return nil, err
	}
	return &catalog.Task{Subject: "prune/" + repositoryID, RepositoryID: repositoryID, Spec: encode(spec)}, nil
}

// pruning is a retention that is being carried out.
type pruning struct {
	*Protector
	task         string // that does it: its own use of restore points does not count
	repositoryID string
	budget       int64 // bytes that may still go; below 0 there is no bound

	pruned     []string
	bytes      int64 // that they had stored
	kept       int
	left       int   // that could have gone
	bytesLeft  int64 // that those have stored
	inTheWay   []string
	beforeEach func() // for progress
}

// Prune is the handler of prune tasks: what the next backup of each VM would prune is pruned now, for instance because the policy was
// changed. It holds no VM: each restore point is looked at anew right before it goes.
func (p *Protector) Prune(ctx context.Context, t *jobs.Task) error {
	var spec PruneSpec
	if _, err := begin(ctx, t, &spec, p.repositories); err != nil {
		return err
	}
	vms, err := p.retention(ctx, t.RepositoryID)
	if err != nil {
		return err
	}
	t.SetPhase(ctx, "pruning")
	w := &pruning{Protector: p, task: t.ID, repositoryID: t.RepositoryID, budget: spec.Budget}
	if spec.Budget == 0 {
		w.budget = -1
	}
	plan, total, err := w.plan(ctx, vms)
	if err != nil {
		return err
	}
	if spec.Budget > 0 {
		total = min(total, spec.Budget)
	}
	w.beforeEach = func() {
		t.SetProgress(ctx, catalog.DiskProgress{Disk: "all", BytesTotal: total, BytesScanned: min(w.bytes, total)})
	}
	for _, verdicts := range plan {
		if err = w.carryOut(ctx, verdicts); err != nil {
			break
		}
	}
	w.beforeEach()
	return w.finish(context.WithoutCancel(ctx), t, len(plan), err)
}

// plan looks at every VM, and says how many bytes the restore points that go have stored.
func (w *pruning) plan(ctx context.Context, vms []Retained) (out [][]PointVerdict, total int64, err error) {
	for _, vm := range vms {
		verdicts, err := w.PlanRetention(ctx, vm.Retention, vm.Zone, vm.VMID, w.repositoryID, w.task)
		if err != nil {
			return nil, 0, fault.Context("plan retention of VM", vm.VMName, err)
		}
		if len(verdicts) > 0 {
			out = append(out, verdicts)
		}
		for _, v := range verdicts {
			if !v.Keep() {
				total += v.StoredBytes
			}
		}
	}
	return out, total, nil
}

// carryOut prunes what verdicts about the restore points of a VM let go, as far as the budget reaches, the oldest first.
func (w *pruning) carryOut(ctx context.Context, verdicts []PointVerdict) error {
	for _, v := range slices.Backward(verdicts) {
		if v.Keep() {
			w.kept++
			continue
		}
		if w.beforeEach != nil {
			w.beforeEach()
		}
		if w.budget == 0 || w.budget > 0 && v.StoredBytes > w.budget && len(w.pruned) > 0 {
			w.left++
			w.bytesLeft += v.StoredBytes
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.one(ctx, v); err != nil {
			return err
		}
	}
	return nil
}

// one prunes one restore point unless something has come in the way of it since it was looked at.
func (w *pruning) one(ctx context.Context, v PointVerdict) error {
	row, err := w.catalog.RestorePoint(ctx, v.ID)
	if fault.KindOf(err) == fault.NotFound && err != nil {
		return nil // somebody else did it
	}
	if err == nil {
		err = w.mayGo(ctx, row, w.task)
	}
	if err == nil {
		err = w.notTheLast(ctx, row)
	}
	if err != nil && fault.KindOf(err) == fault.Conflict {
		w.kept++
		w.inTheWay = append(w.inTheWay, v.ID+": "+err.Error())
		return nil
	}
	if err == nil {
		err = w.removePoint(ctx, row)
	}
	if err != nil {
		return err
	}
	w.pruned = append(w.pruned, v.ID)
	w.bytes += v.StoredBytes
	if w.budget > 0 {
		w.budget = max(0, w.budget-v.StoredBytes)
	}
	return nil
}

// notTheLast refuses a VM's last good restore point in a repository, whatever was thought of the others a moment ago.
func (p *Protector) notTheLast(ctx context.Context, row catalog.RestorePoint) error {
	rows, err := p.catalog.PointsOfVM(ctx, row.VMID, row.RepositoryID)
	if err != nil {
		return err
	}
	for _, other := range rows {
		if other.ID != row.ID && other.VerifyResult != catalog.VerifyDamaged {
			return nil
		}
	}
	return fault.New(fault.Conflict, "prune restore point", row.ID, "it is the last one of its VM there that is not known to be damaged")
}

// finish says what came of it. What could not be pruned keeps what was pruned from nothing.
func (w *pruning) finish(ctx context.Context, t *jobs.Task, vms int, cause error) error {
	result := catalog.Result{Pruned: &catalog.Pruned{VMs: vms, Points: len(w.pruned), Bytes: w.bytes, Kept: w.kept, Left: w.left, BytesLeft: w.bytesLeft}}
	if err := t.SetResult(ctx, result); err != nil {
		return err
	}
	text := fmt.Sprintf("Retention of %d VMs: %d restore points were pruned, %d stay", vms, len(w.pruned), w.kept)
	if w.left > 0 {
		text += fmt.Sprintf(", %d wait for the next time because the budget is used up", w.left)
	}
	t.Event(ctx, text+".", "pruned", strings.Join(w.pruned, " "))
	for i, why := range w.inTheWay {
		if i < maxNamed {
			t.Event(ctx, "It stays for now: "+why+".")
		}
	}
	return cause
}
