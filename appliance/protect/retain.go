package protect

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

// PointVerdict is what becomes of a restore point.
type PointVerdict struct {
	policy.Verdict
	SizeBytes   int64 // virtual
	StoredBytes int64 // by the backup that made it
}

// PlanRetention says which restore points of a VM in a repository a retention keeps, and why; it changes nothing. task is the task
// that asks, whose own use of restore points does not count; "" is none.
func (p *Protector) PlanRetention(
	ctx context.Context, r policy.Retention, zone *time.Location, vmID, repositoryID, task string,
) ([]PointVerdict, error) {
	base, err := p.nextBase(ctx, vmID, repositoryID)
	if err != nil {
		return nil, err
	}
	return p.judge(ctx, r, zone, vmID, repositoryID, task, base)
}

// PlanNextRetention is PlanRetention as it will be at the end of the VM's next backup, if nothing else happens before: the restore
// point which that makes is one of those that are judged, but is not in the answer. The next incremental builds on it, unless that backup
// keeps the checkpoint of now, and can build on it.
func (p *Protector) PlanNextRetention(
	ctx context.Context, r policy.Retention, zone *time.Location, vmID, repositoryID string, keeps bool,
) ([]PointVerdict, error) {
	base := ""
	if keeps {
		var err error
		if base, err = p.goodBase(ctx, vmID, repositoryID); err != nil {
			return nil, err
		}
	}
	next := policy.Point{ID: nextPoint, Time: time.Now(), Needed: "the next incremental builds on it"}
	out, err := p.judge(ctx, r, zone, vmID, repositoryID, "", base, next)
	return slices.DeleteFunc(out, func(v PointVerdict) bool { return v.ID == nextPoint }), err
}

// nextPoint stands for a restore point that is not there yet; it sorts after every id.
const nextPoint = "~next"

// judge applies a retention to the restore points of a VM in a repository, and to more.
func (p *Protector) judge(
	ctx context.Context, r policy.Retention, zone *time.Location, vmID, repositoryID, task, base string, more ...policy.Point,
) ([]PointVerdict, error) {
	rows, err := p.catalog.PointsOfVM(ctx, vmID, repositoryID)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	ids := make([]string, len(rows))
	for i, row := range rows {
		ids[i] = row.ID
	}
	holds, err := p.catalog.Holds(ctx, ids)
	if err != nil {
		return nil, err
	}
	needed, err := p.neededPoints(ctx, vmID, task)
	if err != nil {
		return nil, err
	}
	if base != "" {
		needed[base] = "the next incremental builds on it"
	}
	now := time.Now()
	points, byID := make([]policy.Point, len(rows)), make(map[string]catalog.RestorePoint, len(rows))
	for i, row := range rows {
		points[i] = policy.Point{ID: row.ID, Time: row.Time, Damaged: row.VerifyResult == catalog.VerifyDamaged, Needed: needed[row.ID]}
		if h, ok := holds[row.ID]; ok && h.Holds(now) {
			points[i].Held = h.Reason
		}
		byID[row.ID] = row
	}
	var out []PointVerdict
	for _, v := range r.Apply(append(points, more...), zone) {
		out = append(out, PointVerdict{v, byID[v.ID].SizeBytes, byID[v.ID].BytesStored})
	}
	return out, nil
}

// neededPoints are those that tasks under way use; all of the VM's while another backup of it may build on one of them.
func (p *Protector) neededPoints(ctx context.Context, vmID, task string) (map[string]string, error) {
	active, err := p.catalog.ActiveTasks(ctx)
	if err != nil {
		return nil, err
	}
	needed := map[string]string{}
	for _, t := range active {
		switch {
		case t.ID == task:
		case t.RestorePointID != "":
			needed[t.RestorePointID] = fmt.Sprintf("task %s uses it", t.ID)
		case t.Kind == catalog.KindBackup && t.VMID == vmID:
			rows, err := p.catalog.PointsOfVM(ctx, vmID, "")
			if err != nil {
				return nil, err
			}
			for _, row := range rows {
				needed[row.ID] = fmt.Sprintf("task %s backs the VM up", t.ID)
			}
		}
	}
	return needed, nil
}

// nextBase returns the restore point that the VM's next incremental will build on; "" when there is none in the repository.
func (p *Protector) nextBase(ctx context.Context, vmID, repositoryID string) (string, error) {
	newest, err := p.catalog.NewestRestorePoint(ctx, vmID, "")
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return "", nil
		}
		return "", err
	}
	if newest.RepositoryID != repositoryID || newest.Checkpoint == "" {
		return "", nil
	}
	repo, err := p.repositories(ctx, repositoryID)
	if err != nil {
		return "", err
	}
	point, err := repo.RestorePoint(ctx, newest.ID)
	if err != nil {
		return newest.ID, nil //nolint:nilerr // a restore point that cannot be read now is not given up for it
	}
	var meta pointMeta
	if err := json.Unmarshal(point.Meta, &meta); err != nil || meta.CheckpointOf == "" {
		return newest.ID, nil //nolint:nilerr // as above
	}
	return meta.CheckpointOf, nil
}

// goodBase is nextBase, but "" when damage keeps the next backup from building on it.
func (p *Protector) goodBase(ctx context.Context, vmID, repositoryID string) (string, error) {
	base, err := p.nextBase(ctx, vmID, repositoryID)
	if err != nil || base == "" {
		return "", err
	}
	rows, err := p.catalog.PointsOfVM(ctx, vmID, repositoryID)
	for i, row := range rows {
		if row.VerifyResult == catalog.VerifyDamaged && (i == 0 || row.ID == base) { // the newest comes first
			return "", err
		}
	}
	return base, err
}

// PrunePoint removes a restore point that nobody holds and no task uses.
func (p *Protector) PrunePoint(ctx context.Context, id string) error {
	row, err := p.catalog.RestorePoint(ctx, id)
	if err != nil {
		return err
	}
	if err := p.mayGo(ctx, row, ""); err != nil {
		return err
	}
	return p.removePoint(ctx, row)
}

// mayGo refuses a restore point that somebody holds or another task than this one uses.
func (p *Protector) mayGo(ctx context.Context, row catalog.RestorePoint, task string) error {
	holds, err := p.catalog.Holds(ctx, []string{row.ID})
	if err != nil {
		return err
	}
	if h, ok := holds[row.ID]; ok && h.Holds(time.Now()) {
		return fault.New(fault.Conflict, "prune restore point", row.ID, "it is held: %s", h.Reason).Explain(
			"Somebody keeps this restore point from being pruned.", "Release it first, if it is really not needed: cairn point release.")
	}
	needed, err := p.neededPoints(ctx, row.VMID, task)
	if err != nil {
		return err
	}
	if why := needed[row.ID]; why != "" {
		return fault.New(fault.Conflict, "prune restore point", row.ID, "%s", why).Explain(
			"A task that is queued or running needs this restore point.", "Wait for it, or cancel it.")
	}
	return nil
}

func (p *Protector) removePoint(ctx context.Context, row catalog.RestorePoint) error {
	repo, err := p.repositories(ctx, row.RepositoryID)
	if err != nil {
		return err
	}
	if err := repo.Prune(ctx, row.ID); err != nil && fault.KindOf(err) != fault.NotFound {
		return fault.Context("prune restore point", row.ID, err)
	}
	return p.catalog.DeleteRestorePoint(context.WithoutCancel(ctx), row.ID)
}

// retain carries out the retention of the policy that a backup was made for. The backup has succeeded: what goes wrong here is a
// warning, and the next backup's retention does it.
func (b *backup) retain(ctx context.Context) {
	if b.spec.PolicyID == "" {
		return
	}
	row, err := b.catalog.Policy(ctx, b.spec.PolicyID)
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			b.t.Event(ctx, "The policy was removed meanwhile: no restore point was pruned.")
			return
		}
		b.t.Warn(ctx, "Retention was not carried out: "+err.Error())
		return
	}
	rules, err := policy.Stored(row.Spec)
	if err == nil {
		b.t.SetPhase(ctx, "pruning")
		err = b.prune(ctx, rules)
	}
	if err != nil {
		b.t.Warn(ctx, "Retention was not carried out wholly; the next backup does the rest: "+err.Error())
	}
}

func (b *backup) prune(ctx context.Context, rules policy.Rules) error {
	verdicts, err := b.PlanRetention(ctx, rules.Spec.Retention, rules.Zone, b.vm.ID, b.spec.RepositoryID, b.t.ID)
	if err != nil {
		return err
	}
	w := &pruning{Protector: b.Protector, task: b.t.ID, repositoryID: b.spec.RepositoryID, budget: -1}
	err = w.carryOut(ctx, verdicts)
	if len(w.pruned) > 0 {
		b.t.Event(ctx, fmt.Sprintf("Retention of the policy: %d restore points were pruned, %d stay.", len(w.pruned), w.kept),
			"pruned", strings.Join(w.pruned, " "))
	}
	return err
}
