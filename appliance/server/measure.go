package server

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/metrics"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/store/erasure"
)

// Measure implements metrics.Source.
func (a *Appliance) Measure(ctx context.Context, vms bool) (metrics.Sample, []error) {
	var s metrics.Sample
	var errs []error
	for _, part := range []func(context.Context, *metrics.Sample) error{
		a.measureConnections, a.measureRepositories, a.measureMovers, a.measureTasks,
	} {
		if err := part(ctx, &s); err != nil {
			errs = append(errs, err)
		}
	}
	if err := a.measureCoverage(ctx, &s, vms); err != nil {
		errs = append(errs, err)
	}
	if vms {
		if err := a.measureVMs(ctx, &s); err != nil {
			errs = append(errs, err)
		}
	}
	return s, errs
}

func (a *Appliance) measureCoverage(ctx context.Context, s *metrics.Sample, vms bool) error {
	e, err := a.estate(ctx, time.Now())
	if err != nil {
		return err
	}
	s.Protections = map[string]int{}
	for _, p := range policy.Protections {
		s.Protections[string(p)] = 0
	}
	for _, vm := range e.VMs {
		cover := e.covers.Of(vm)
		stand := policy.Stand(cover, e.rpo[cover.PolicyID], e.Newest[vm.ID].Time, e.Now)
		s.Protections[string(stand.Protection)]++
		if !vms {
			continue
		}
		c := metrics.Coverage{ID: vm.ID, Name: vm.Name, Connection: vm.Connection, Policy: cover.Policy, Unprotected: stand.Protection == policy.Unprotected}
		if stand.Target > 0 && stand.Age > 0 {
			ratio := stand.Age.Seconds() / stand.Target.Seconds()
			c.RPO = &ratio
		}
		s.Coverage = append(s.Coverage, c)
	}
	return nil
}

func (a *Appliance) measureVMs(ctx context.Context, s *metrics.Sample) error {
	rows, err := a.catalog.MeasureVMs(ctx)
	if err != nil {
		return err
	}
	for _, r := range rows {
		v := metrics.VM{ID: r.ID, Name: r.Name, Connection: r.Connection, LastSuccess: r.LastPoint, LastVerified: r.LastVerified}
		if r.LastState != "" {
			good := r.LastState != catalog.Failed
			v.LastOK = &good
		}
		s.VMs = append(s.VMs, v)
	}
	return nil
}

// jobOf is a task that has ended.
func jobOf(t catalog.Task) metrics.Job {
	sum := t.Progress.Sum()
	j := metrics.Job{
		Kind: string(t.Kind), Result: string(t.State), Scanned: sum.BytesScanned, Read: sum.BytesRead, New: sum.BytesNew, Stored: sum.BytesStored,
	}
	if t.StartedAt != nil && t.FinishedAt != nil {
		j.Took = t.FinishedAt.Sub(*t.StartedAt)
	}
	return j
}

// everyPage reads all pages of a list.
func everyPage[T any](read func(catalog.Page) (catalog.List[T], error)) ([]T, error) {
	var all []T
	for p := (catalog.Page{Limit: catalog.MaxLimit}); ; {
		list, err := read(p)
		if err != nil {
			return nil, err
		}
		all = append(all, list.Items...)
		if p.Cursor = list.Next; p.Cursor == "" {
			return all, nil
		}
	}
}

func (a *Appliance) measureConnections(ctx context.Context, s *metrics.Sample) error {
	rows, err := everyPage(func(p catalog.Page) (catalog.List[catalog.Connection], error) { return a.catalog.Connections(ctx, p) })
	if err != nil {
		return err
	}
	for _, r := range rows {
		n, err := a.catalog.CountVMs(ctx, r.ID)
		if err != nil {
			return err
		}
		c := metrics.Connection{Name: r.Name, Platform: string(r.Platform), VMs: n, LastInventory: r.LastInventory}
		if r.LastChecked != nil {
			up := r.LastError == nil
			c.Up = &up
		}
		s.Connections = append(s.Connections, c)
	}
	return nil
}

func (a *Appliance) measureRepositories(ctx context.Context, s *metrics.Sample) error {
	rows, err := everyPage(func(p catalog.Page) (catalog.List[httpapi.RepositoryInfo], error) { return a.ListRepositories(ctx, p) })
	if err != nil {
		return err
	}
	for _, r := range rows {
		collected, err := a.catalog.LastCollect(ctx, r.ID)
		if err != nil {
			return err
		}
		m := metrics.Repository{
			Name: r.Name, Up: r.Status == catalog.HealthOK, LastCollect: collected, LastVerified: r.Verification.LastCompleted,
			DamagedPacks: r.Verification.DamagedPacks, DamagedPoints: r.Verification.DamagedPoints,
		}
		if u := r.Usage; u != nil {
			m.Usage = &metrics.Usage{
				UsedBytes: u.StoredBytes, LogicalBytes: u.LogicalBytes, FreeBytes: u.FreeBytes, RestorePoints: u.RestorePoints, Packs: u.Packs,
			}
		}
		if r.Set != nil {
			missing := 0
			for _, member := range r.Set.Members {
				if member.State == erasure.Missing {
					missing++
				}
			}
			m.MembersMissing, m.ObjectsBelow = &missing, &r.Set.Below
		}
		s.Repositories = append(s.Repositories, m)
	}
	return nil
}

func (a *Appliance) measureMovers(ctx context.Context, s *metrics.Sample) error {
	list, err := a.ListMovers(ctx)
	if err != nil {
		return err
	}
	for _, m := range list {
		if m.State != fleet.Revoked {
			s.Movers = append(s.Movers, metrics.Mover{Name: m.Name, Up: m.State != fleet.Offline, Transfers: m.Transfers})
		}
	}
	return nil
}

func (a *Appliance) measureTasks(ctx context.Context, s *metrics.Sample) error {
	queued, running, err := a.catalog.CountTasks(ctx)
	if err != nil {
		return err
	}
	s.Tasks = map[string]int{string(catalog.Queued): queued, string(catalog.Running): running}
	left, err := a.catalog.CountLeftovers(ctx)
	if err != nil {
		return err
	}
	s.Leftover = &left
	return nil
}
