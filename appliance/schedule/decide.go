package schedule

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
)

// The numbers that no policy says.
const (
	// ahead is how many backups of policies may wait in the queue: enough to keep the workers busy, few enough that what is more
	// urgent comes soon.
	ahead = 8
	// atOnce is how many instants of a policy are noticed in one step; after a long time off it goes on in the next.
	atOnce = 1000
	// slack is by how much a clock may have been put back without anything being noticed again.
	slack = 25 * time.Hour
)

// Policy is a policy as the scheduler needs it.
type Policy struct {
	policy.Candidate
	OpenedUntil time.Time
}

// Use is a task that is under way.
type Use struct {
	VMID   string
	Queued bool
	At     Place
}

// Place is where a VM stands, as far as limits go.
type Place struct {
	Connection string
	Host       string
	Datastores []string
}

func placeOf(v policy.VM) Place {
	return Place{Connection: v.ConnectionID, Host: v.Host, Datastores: v.Datastores}
}

// State is what the catalog says at an instant.
type State struct {
	Now        time.Time
	Policies   []Policy
	Exclusions []policy.Exclusion
	VMs        []policy.VM    // that are there
	Turns      []catalog.Turn // that are not over
	Uses       []Use
	Breakers   map[string]catalog.Breaker // by connection
	// Newest is when the newest good restore point was made, by VM; read only when something is due.
	Newest map[string]catalog.NewestPoint
}

// Plan is what is to be done, in this order.
type Plan struct {
	Rewinds []Rewind
	Opens   []catalog.Opening
	Changes []catalog.TurnChange // waiting turns that are over
	Begins  []Begin
	Waits   map[string]string // why the other turns wait, by the turn's id
	More    bool              // there is more to notice at once
}

// Rewind puts a policy back whose OpenedUntil lies in a future that is none.
type Rewind struct {
	PolicyID string
	Before   time.Time
}

// Begin is a turn that begins now.
type Begin struct {
	Turn  catalog.Turn
	Rules policy.Rules
	VM    policy.VM
}

// decider is one decision under way.
type decider struct {
	State
	policies map[string]Policy
	vms      map[string]policy.VM
	covers   policy.Covers
	coverOf  map[string]string   // policy, by VM
	byPolicy map[string][]string // ids of VMs, in the order of State.VMs
	closed   map[string]bool     // windows, by policy
	used     *used
	plan     Plan
}

// Decide says what is to be done. It is pure.
func Decide(s State) Plan {
	d := &decider{State: s, policies: map[string]Policy{}, vms: map[string]policy.VM{}, coverOf: map[string]string{}, byPolicy: map[string][]string{}, closed: map[string]bool{}, used: usage(s.Uses)}
	d.plan.Waits = map[string]string{}
	candidates := make([]policy.Candidate, len(s.Policies))
	for i, p := range s.Policies {
		d.policies[p.ID], candidates[i] = p, p.Candidate
		d.closed[p.ID] = !p.Rules.Windows.Open(s.Now, p.Rules.Zone)
	}
	d.covers = policy.NewCovers(candidates, s.Exclusions, s.Now)
	for _, vm := range s.VMs {
		id := d.covers.Which(vm)
		d.vms[vm.ID], d.coverOf[vm.ID] = vm, id
		if id != "" {
			d.byPolicy[id] = append(d.byPolicy[id], vm.ID)
		}
	}
	newest := d.open()
	d.weed(newest)
	d.begin()
	return d.plan
}

// open notices what became due. It returns the newest instant of each policy, also of those that were noticed before.
func (d *decider) open() map[string]time.Time {
	newest := map[string]time.Time{}
	for _, t := range d.Turns {
		if t.Due.After(newest[t.PolicyID]) {
			newest[t.PolicyID] = t.Due
		}
	}
	for _, p := range d.Policies {
		if p.Paused {
			continue
		}
		if p.OpenedUntil.After(d.Now.Add(slack)) {
			d.plan.Rewinds = append(d.plan.Rewinds, Rewind{p.ID, p.OpenedUntil})
			d.plan.More = true
			continue
		}
		due := p.Rules.Calendar.Between(p.OpenedUntil, d.Now, p.Rules.Zone, atOnce)
		if len(due) == 0 {
			continue
		}
		o, more := d.opening(p, due)
		d.plan.Opens = append(d.plan.Opens, o)
		d.plan.More = d.plan.More || more || len(o.VMs) > 0
		if !more && o.Due.After(newest[p.ID]) {
			newest[p.ID] = o.Due
		}
	}
	return newest
}

// opening makes turns of the newest instant, and notes the others as missed.
func (d *decider) opening(p Policy, due []time.Time) (o catalog.Opening, more bool) {
	last := due[len(due)-1]
	o = catalog.Opening{PolicyID: p.ID, Before: p.OpenedUntil, Until: last, Due: last}
	if next, ok := p.Rules.Calendar.Next(last, p.Rules.Zone); len(due) == atOnce && ok && !next.After(d.Now) {
		more = true
	}
	covered := d.byPolicy[p.ID]
	for _, at := range due {
		row := catalog.Occurrence{PolicyID: p.ID, Due: at.UTC(), VMs: len(covered), At: d.Now.UTC()}
		switch late := d.Now.Sub(at); {
		case at != last || more:
			row.Missed = "nobody looked until it was due again: the manager was off, or its clock was put forward"
		case p.Rules.Spec.Missed == policy.MissedSkip && late > p.Rules.Spec.Within.Duration():
			row.Missed = fmt.Sprintf("nobody looked until %s later: the manager was off, or its clock was put forward", late.Round(time.Second))
		default:
			o.VMs = d.byAge(covered)
		}
		o.Rows = append(o.Rows, row)
	}
	return o, more
}

// byAge orders VMs by the age of their newest restore point, the oldest first: turns of one instant begin in the order in which they were
// made, and nobody must always be the last.
func (d *decider) byAge(vms []string) []string {
	vms = slices.Clone(vms)
	slices.SortStableFunc(vms, func(a, b string) int { return d.Newest[a].Time.Compare(d.Newest[b].Time) })
	return vms
}

// weed ends waiting turns that have lost their reason.
func (d *decider) weed(newest map[string]time.Time) {
	d.Turns = slices.DeleteFunc(slices.Clone(d.Turns), func(t catalog.Turn) bool {
		if t.State != catalog.TurnWaiting {
			return true
		}
		reason := d.pointless(t, newest[t.PolicyID])
		if reason == "" {
			return false
		}
		state := catalog.TurnMissed
		if t.Attempt > 0 {
			state, reason = catalog.TurnFailed, t.Reason+"; it is not tried again: "+reason
		}
		d.plan.Changes = append(d.plan.Changes, catalog.TurnChange{
			Turn: t, State: state, Attempt: t.Attempt, NotBefore: t.NotBefore, Reason: reason, At: d.Now,
		})
		return true
	})
}

// pointless says why a waiting turn is over; "" when it is not.
func (d *decider) pointless(t catalog.Turn, newest time.Time) string {
	p, ok := d.policies[t.PolicyID]
	vm, there := d.vms[t.VMID]
	switch {
	case !ok:
		return "the policy was removed"
	case p.Paused:
		return "the policy is paused"
	case !there:
		return "the VM is gone"
	case d.coverOf[vm.ID] != p.ID:
		return "the policy does not cover it any more. " + d.covers.Of(vm).Why
	case newest.After(t.Due):
		return because("the policy was due again", d.blocked(t))
	case t.Attempt == 0 && p.Rules.Spec.Missed == policy.MissedSkip && d.Now.Sub(t.Due) > p.Rules.Spec.Within.Duration():
		return because(fmt.Sprintf("it could not begin within %s", p.Rules.Spec.Within.Duration()), d.blocked(t))
	}
	return ""
}

func because(what, why string) string {
	if why == "" {
		return what
	}
	return what + ": " + why
}

// begin chooses the turns that begin, the most urgent first.
func (d *decider) begin() {
	slices.SortStableFunc(d.Turns, func(a, b catalog.Turn) int {
		pa, pb := d.policies[a.PolicyID].Rules.Spec.Priority, d.policies[b.PolicyID].Rules.Spec.Priority
		return cmp.Or(cmp.Compare(pb, pa), a.Due.Compare(b.Due), cmp.Compare(a.ID, b.ID))
	})
	for _, t := range d.Turns {
		if reason := d.blocked(t); reason != "" {
			d.plan.Waits[t.ID] = reason
			continue
		}
		vm := d.vms[t.VMID]
		d.plan.Begins = append(d.plan.Begins, Begin{t, d.policies[t.PolicyID].Rules, vm})
		d.used.add(Use{t.VMID, true, placeOf(vm)})
	}
}

// blocked says why a waiting turn cannot begin now; "" when it can.
func (d *decider) blocked(t catalog.Turn) string {
	p, vm := d.policies[t.PolicyID], d.vms[t.VMID]
	b := d.Breakers[vm.ConnectionID]
	switch {
	case d.Now.Before(t.NotBefore):
		return fmt.Sprintf("attempt %d failed, the next is at %s: %s", t.Attempt, t.NotBefore.UTC().Format(time.RFC3339), t.Reason)
	case d.closed[p.ID]:
		return "the window " + p.Rules.Windows.String() + " is closed"
	case d.used.vms[t.VMID]:
		return "another task works on the VM"
	case d.Now.Before(b.OpenUntil):
		return fmt.Sprintf("%d backups of the connection failed in a row, it is tried again at %s: %s", b.Failures, b.OpenUntil.UTC().Format(time.RFC3339), b.Reason)
	case b.Failures >= breakAfter && d.used.connections[vm.ConnectionID] > 0:
		return "the connection has failed; one backup tries it first"
	case d.used.queued >= ahead:
		return "enough others are queued"
	}
	return d.used.full(placeOf(vm), p.Rules.Spec.Limits)
}

// used counts what is under way.
type used struct {
	vms                            map[string]bool
	connections, hosts, datastores map[string]int
	queued                         int
}

func usage(uses []Use) *used {
	u := &used{map[string]bool{}, map[string]int{}, map[string]int{}, map[string]int{}, 0}
	for _, use := range uses {
		u.add(use)
	}
	return u
}

func (u *used) add(use Use) {
	if use.Queued {
		u.queued++
	}
	u.vms[use.VMID] = true
	u.connections[use.At.Connection]++
	u.hosts[use.At.Connection+"/"+use.At.Host]++
	for _, ds := range use.At.Datastores {
		u.datastores[use.At.Connection+"/"+ds]++
	}
}

// full says which limit is reached; "" when none is.
func (u *used) full(p Place, l policy.Limits) string {
	reached := func(what, name string, have, limit int) string {
		if limit == 0 || have < limit {
			return ""
		}
		return fmt.Sprintf("%d tasks are under way on %s, as many as may be", have, strings.TrimSpace(what+" "+name))
	}
	if r := reached("the connection", "", u.connections[p.Connection], l.Connection); r != "" {
		return r
	}
	if r := reached("host", p.Host, u.hosts[p.Connection+"/"+p.Host], l.Host); r != "" && p.Host != "" {
		return r
	}
	for _, ds := range p.Datastores {
		if r := reached("datastore", ds, u.datastores[p.Connection+"/"+ds], l.Datastore); r != "" {
			return r
		}
	}
	return ""
}
