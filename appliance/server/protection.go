package server

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/protect"
	"github.com/cairn-backup/cairn/appliance/recover"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// start queues a run of one task, unless the request is a repetition. make checks the request first.
func (a *Appliance) start(
	ctx context.Context, s httpapi.Start, kind catalog.RunKind, request func() (*catalog.Task, error),
) (httpapi.Started, error) {
	return a.startBy(ctx, catalog.TriggerManual, s, kind, request)
}

func (a *Appliance) startBy(
	ctx context.Context, trigger catalog.Trigger, s httpapi.Start, kind catalog.RunKind, request func() (*catalog.Task, error),
) (httpapi.Started, error) {
	return a.startTasks(ctx, trigger, s, kind, func() ([]*catalog.Task, error) {
		task, err := request()
		return []*catalog.Task{task}, err
	})
}

// startTasks is startBy for a run of several tasks.
func (a *Appliance) startTasks(
	ctx context.Context, trigger catalog.Trigger, s httpapi.Start, kind catalog.RunKind, request func() ([]*catalog.Task, error),
) (httpapi.Started, error) {
	if s.Key != "" {
		known, err := a.catalog.RunOfRequest(ctx, s.User, s.Key)
		if err == nil {
			return httpapi.Started{RunID: known.ID, Replayed: true, Fingerprint: known.RequestPrint}, nil
		}
		if fault.KindOf(err) != fault.NotFound {
			return httpapi.Started{}, err
		}
	}
	tasks, err := request()
	if err != nil {
		return httpapi.Started{}, err
	}
	run := catalog.Run{
		Kind: kind, Trigger: trigger, User: s.User, RequestKey: s.Key, RequestPrint: s.Fingerprint,
	}
	replayed, err := a.queue.Submit(ctx, &run, tasks...)
	if err != nil {
		return httpapi.Started{}, err
	}
	return httpapi.Started{RunID: run.ID, Replayed: replayed, Fingerprint: run.RequestPrint}, nil
}

// StartBackup implements httpapi.Core.
func (a *Appliance) StartBackup(ctx context.Context, s httpapi.Start, r httpapi.BackupRequest) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindBackup, func() (*catalog.Task, error) {
		if err := a.checkAsked(ctx, r.Mover, r.Transport); err != nil {
			return nil, err
		}
		return a.protector.RequestBackup(ctx, protect.BackupSpec{
			VMID: r.VMID, RepositoryID: r.RepositoryID, Quiesce: r.Quiesce, Exclude: r.ExcludeDisks, Full: r.Full,
			Mover: r.Mover, Transport: r.Transport, Fallback: r.Fallback,
		})
	})
}

// StartRestore implements httpapi.Core.
func (a *Appliance) StartRestore(ctx context.Context, s httpapi.Start, r httpapi.RestoreRequest) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindRestore, func() (*catalog.Task, error) {
		if err := a.checkAsked(ctx, r.Mover, r.Transport); err != nil {
			return nil, err
		}
		return a.recoverer.RequestRestore(ctx, recover.Spec(r))
	})
}

// PlanRestore implements httpapi.Core.
func (a *Appliance) PlanRestore(ctx context.Context, r httpapi.RestoreRequest) (httpapi.RestorePlan, error) {
	if err := a.checkAsked(ctx, r.Mover, r.Transport); err != nil {
		return httpapi.RestorePlan{}, err
	}
	p, err := a.recoverer.Plan(ctx, recover.Spec(r))
	if err != nil {
		return httpapi.RestorePlan{}, err
	}
	out := httpapi.RestorePlan{
		Mode: p.Request.Mode, ConnectionID: p.ConnectionID, VMName: p.Request.Name, Disks: p.Request.Disks,
		Networks: map[string]string{}, Warnings: p.Warnings,
	}
	for _, l := range p.LeftOut {
		out.LeftOut = append(out.LeftOut, httpapi.LeftOut(l))
	}
	if r.Mode.DisksOnly() {
		return out, nil // no NIC is made
	}
	for _, nic := range p.Request.VM.NICs {
		out.Networks[nic.Network] = nic.Network
		if to, ok := p.Request.Networks[nic.Network]; ok {
			out.Networks[nic.Network] = to
		}
	}
	return out, nil
}

// StartVerify implements httpapi.Core.
func (a *Appliance) StartVerify(ctx context.Context, s httpapi.Start, restorePoint string) (httpapi.Started, error) {
	return a.start(ctx, s, catalog.KindVerify, func() (*catalog.Task, error) {
		return a.protector.RequestVerify(ctx, restorePoint)
	})
}

// ListRestorePoints implements httpapi.Core.
func (a *Appliance) ListRestorePoints(
	ctx context.Context, f catalog.PointFilter, p catalog.Page,
) (catalog.List[catalog.RestorePoint], error) {
	list, err := a.catalog.RestorePoints(ctx, f, p)
	if err != nil {
		return list, err
	}
	return list, a.addHolds(ctx, list.Items)
}

// addHolds adds to restore points who holds them now.
func (a *Appliance) addHolds(ctx context.Context, points []catalog.RestorePoint) error {
	ids := make([]string, len(points))
	for i, p := range points {
		ids[i] = p.ID
	}
	holds, err := a.catalog.Holds(ctx, ids)
	for i, p := range points {
		if h, ok := holds[p.ID]; ok && h.Holds(time.Now()) {
			points[i].Hold = &h
		}
	}
	return err
}

// GetRestorePoint implements httpapi.Core.
func (a *Appliance) GetRestorePoint(ctx context.Context, id string) (httpapi.PointInfo, error) {
	row, err := a.catalog.RestorePoint(ctx, id)
	if err != nil {
		return httpapi.PointInfo{}, err
	}
	held := []catalog.RestorePoint{row}
	if err := a.addHolds(ctx, held); err != nil {
		return httpapi.PointInfo{}, err
	}
	info := httpapi.PointInfo{RestorePoint: held[0]}
	repo, err := a.repository(ctx, row.RepositoryID)
	if errors.Is(err, catalog.ErrElsewhere) {
		return info, err
	}
	if err != nil {
		return info, nil //nolint:nilerr // the row is the answer; the description is absent
	}
	point, err := repo.RestorePoint(ctx, id)
	if err != nil {
		return info, nil //nolint:nilerr // as above
	}
	var vm hypervisors.VM
	if err := json.Unmarshal(point.Description, &vm); err == nil {
		info.Description = &vm
	}
	return info, nil
}

// PruneRestorePoint implements httpapi.Core.
func (a *Appliance) PruneRestorePoint(ctx context.Context, id string) error {
	return a.protector.PrunePoint(ctx, id)
}
