package recover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// plansAtOnce bounds how many VMs the platforms are asked about at a time.
const plansAtOnce = 8

// ManySpec is what is wanted of the restores of many VMs. Empty fields mean: as in the restore points.
type ManySpec struct {
	Filter       string    // of package policy; VMs that vanished are selected as they were
	Before       time.Time // no restore point of a later instant; zero is any
	RepositoryID string    // "" is any
	Mode         hypervisors.RestoreMode
	// NamePrefix and NameSuffix make the names of new VMs of the old ones.
	NamePrefix, NameSuffix string
	ConnectionID           string
	Datastore              string
	Networks               map[string]string // of those that a VM is connected to
	KeepMACs, Start        bool
	Mover, Transport       string
	Fallback               bool
}

// ManyPlan is what the restores of many VMs would make.
type ManyPlan struct {
	VMs      []PlannedVM
	Warnings []string
}

// PlannedVM is one VM that was selected. Err says why it cannot be restored.
type PlannedVM struct {
	VM    policy.VM
	Name  string // of the VM that is made, or whose disks are replaced
	Point catalog.RestorePoint
	Plan  Plan
	Err   error
	nics  []hypervisors.NIC // as in the restore point
	task  *catalog.Task
}

// PlanMany says what would be made of the newest good restore point of each VM, and which VMs cannot be restored. It changes nothing.
func (r *Recoverer) PlanMany(ctx context.Context, spec ManySpec) (ManyPlan, error) {
	filter, err := policy.ParseFilter(spec.Filter)
	if err != nil {
		return ManyPlan{}, err
	}
	vms, err := r.catalog.VMsEver(ctx, filter)
	if err != nil {
		return ManyPlan{}, err
	}
	if len(vms) == 0 {
		return ManyPlan{}, fault.New(fault.NotFound, "restore VMs with", spec.Filter, "the filter selects none").Explain(
			"No VM of the catalog is what the filter asks for, those that vanished included.", "List the VMs with the filter, and correct it.")
	}
	p := ManyPlan{VMs: make([]PlannedVM, len(vms))}
	var g errgroup.Group
	g.SetLimit(plansAtOnce)
	for i, vm := range vms {
		p.VMs[i].VM = vm
		g.Go(func() error { r.planOne(ctx, spec, &p.VMs[i]); return nil })
	}
	_ = g.Wait()
	if err := ctx.Err(); err != nil {
		return ManyPlan{}, fault.Wrap(fault.KindOf(err), "plan restores of", spec.Filter, err)
	}
	if err := p.elsewhere(); err != nil {
		return ManyPlan{}, err
	}
	if err := p.checkNetworks(spec); err != nil {
		return ManyPlan{}, err
	}
	p.refuseTwins()
	p.Warnings, err = r.crowded(ctx, p.VMs)
	return p, err
}

// planOne finds a VM's restore point and plans its restore.
func (r *Recoverer) planOne(ctx context.Context, spec ManySpec, p *PlannedVM) {
	p.Name = p.VM.Name
	if spec.Mode == hypervisors.RestoreNew {
		p.Name = spec.NamePrefix + p.VM.Name + spec.NameSuffix
	}
	newer := 0
	if p.Point, newer, p.Err = r.newestGood(ctx, spec, p.VM); p.Err != nil {
		return
	}
	one := Spec{
		RestorePointID: p.Point.ID, Mode: spec.Mode, ConnectionID: spec.ConnectionID, Datastore: spec.Datastore, Networks: maps.Clone(spec.Networks),
		KeepMACs: spec.KeepMACs, Start: spec.Start, Mover: spec.Mover, Transport: spec.Transport, Fallback: spec.Fallback,
	}
	if spec.Mode == hypervisors.RestoreNew {
		one.Name = p.Name
	}
	o, err := r.order(ctx, one)
	if err != nil {
		p.Err = err
		return
	}
	p.nics = o.req.VM.NICs
	maps.DeleteFunc(o.spec.Networks, func(from, _ string) bool { return !p.on(from) })
	o.req.Networks = o.spec.Networks
	p.Point = o.point
	if p.Plan, p.Err = o.plan(ctx); p.Err != nil {
		return
	}
	if newer > 0 {
		p.Plan.Warnings = append(p.Plan.Warnings, fmt.Sprintf("%d newer restore points are damaged.", newer))
	}
	p.task, p.Err = o.task(p.Plan)
}

// newestGood returns the newest restore point of a VM that may be used, and how many newer ones are damaged.
func (r *Recoverer) newestGood(ctx context.Context, spec ManySpec, vm policy.VM) (catalog.RestorePoint, int, error) {
	points, err := r.catalog.PointsOfVM(ctx, vm.ID, spec.RepositoryID)
	if err != nil {
		return catalog.RestorePoint{}, 0, err
	}
	slices.SortStableFunc(points, func(a, b catalog.RestorePoint) int { return b.Time.Compare(a.Time) })
	damaged := 0
	for _, p := range points {
		switch {
		case !spec.Before.IsZero() && p.Time.After(spec.Before):
		case p.VerifyResult == catalog.VerifyDamaged:
			damaged++
		default:
			return p, damaged, nil
		}
	}
	what := "it has no restore point"
	if damaged > 0 {
		what = fmt.Sprintf("all %d of its restore points are damaged", damaged)
	}
	if !spec.Before.IsZero() {
		what += " of that time or before it"
	}
	return catalog.RestorePoint{}, 0, fault.New(fault.NotFound, "restore VM", vm.Name, "%s", what).Explain(
		"There is nothing that this VM could be restored from.", "Leave it out, or look at its restore points: another repository or a later time may have one.")
}

// elsewhere is the error of restore points that another manager has to restore, if there are no others: the request is its then.
func (p *ManyPlan) elsewhere() error {
	var first error
	for _, vm := range p.VMs {
		switch {
		case errors.Is(vm.Err, catalog.ErrElsewhere):
			first = vm.Err
		case vm.Point.ID != "":
			return nil
		}
	}
	return first
}

// on says whether a VM is connected to a network.
func (p *PlannedVM) on(network string) bool {
	return slices.ContainsFunc(p.nics, func(n hypervisors.NIC) bool { return n.Network == network })
}

// checkNetworks refuses to map what none of the VMs is connected to, as for one VM.
func (p *ManyPlan) checkNetworks(spec ManySpec) error {
	for _, from := range slices.Sorted(maps.Keys(spec.Networks)) {
		if slices.ContainsFunc(p.VMs, func(vm PlannedVM) bool { return vm.on(from) }) {
			continue
		}
		return fault.New(fault.Invalid, "restore VMs with", spec.Filter, "network %q is not to be mapped", from).Explain(
			"None of the VMs is connected to that network in its restore point.", "Correct its name, or leave the mapping out.")
	}
	return nil
}

// refuseTwins refuses all but the first of VMs that would have one name on one connection.
func (p *ManyPlan) refuseTwins() {
	taken := map[string]bool{}
	for i := range p.VMs {
		vm := &p.VMs[i]
		if vm.task == nil {
			continue
		}
		subject := strings.ToLower(vm.task.Subject)
		if taken[subject] {
			vm.Err = fault.New(fault.Exists, "restore VM as", vm.Name, "another VM of this restore has the name").Explain(
				"Two of the selected VMs would have the same name.", "Restore one of them by itself, under another name.")
		}
		taken[subject] = true
	}
}

// crowded warns of datastores that do not have the room for all VMs together; each of them was looked at alone.
func (r *Recoverer) crowded(ctx context.Context, vms []PlannedVM) (warnings []string, err error) {
	need := map[string]map[string]int64{}
	for _, vm := range vms {
		if vm.Err != nil {
			continue
		}
		for store, n := range vm.Plan.needs() {
			if need[vm.Plan.ConnectionID] == nil {
				need[vm.Plan.ConnectionID] = map[string]int64{}
			}
			need[vm.Plan.ConnectionID][store] += n
		}
	}
	for _, connection := range slices.Sorted(maps.Keys(need)) {
		driver, err := r.drivers(ctx, connection)
		if err != nil {
			return nil, err
		}
		stores, err := driver.Datastores(ctx)
		if err != nil {
			return nil, err
		}
		for _, s := range stores {
			n := need[connection][s.Name]
			if s.ID != s.Name {
				n += need[connection][s.ID]
			}
			if n > s.FreeBytes {
				warnings = append(warnings, fmt.Sprintf("The datastore %s has %d bytes free, and about %d are needed for all VMs together.", s.Name, s.FreeBytes, n))
			}
		}
	}
	return warnings, nil
}

// needs estimates what a restore takes, by datastore.
func (p Plan) needs() map[string]int64 {
	out := map[string]int64{}
	for _, d := range p.Request.Disks {
		i := slices.IndexFunc(p.Request.VM.Disks, func(src hypervisors.Disk) bool { return src.ID == d.ID })
		if i < 0 {
			continue
		}
		src := p.Request.VM.Disks[i]
		store, n := d.Datastore, d.SizeBytes
		if store == "" {
			store = src.Datastore
		}
		if src.UsedBytes > 0 {
			n = min(n, src.UsedBytes)
		}
		out[store] += n
	}
	return out
}

// RequestMany makes the tasks for what PlanMany would make, and does not store them. VMs that cannot be restored are an error, unless
// they may be left out.
func (r *Recoverer) RequestMany(ctx context.Context, spec ManySpec, leaveOut bool) ([]*catalog.Task, error) {
	p, err := r.PlanMany(ctx, spec)
	if err != nil {
		return nil, err
	}
	var tasks []*catalog.Task
	var cannot []string
	for _, vm := range p.VMs {
		if vm.Err != nil {
			cannot = append(cannot, vm.VM.Name)
			continue
		}
		tasks = append(tasks, vm.task)
	}
	if len(cannot) == 0 || leaveOut && len(tasks) > 0 {
		return tasks, nil
	}
	return nil, fault.New(fault.Conflict, "restore VMs with", spec.Filter, "%d of %d VMs cannot be restored: %s", len(cannot), len(p.VMs), some(cannot)).Explain(
		"Nothing was started, as a part of what was asked for is not possible.", "Ask for a dry run, which says why for each VM; then correct that, or leave these VMs out.")
}

// some names a few things of many.
func some(names []string) string {
	const shown = 5
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}
