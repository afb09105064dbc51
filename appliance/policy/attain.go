package policy

import (
	"cmp"
	"slices"
	"time"
)

// Account is how far the RPO that a VM achieves has been accounted for. It is advanced from instant to instant by what happened in
// between, so what it has counted stays right when restore points are pruned later.
type Account struct {
	AsOf   time.Time
	Newest time.Time     // freeze of the newest good restore point; zero: there is none
	Target time.Duration // the RPO that is promised from AsOf on; 0: no policy covers the VM
}

// Stamp is that a restore point was made: of an instant, and when it could be used.
type Stamp struct{ Time, Published time.Time }

// Day is what was achieved on one day (UTC), or on a part of it. Days of several VMs can be added up.
type Day struct {
	Date    time.Time     // its midnight
	Covered time.Duration // how long a policy covered the VM
	Late    time.Duration // how long of that the newest restore point was older than promised, or there was none
	Worst   time.Duration // the age of the newest restore point when it was oldest
	Target  time.Duration // that was promised last; 0 when none was
	Points  int           // restore points that were made
}

// Advance accounts for the time until now, in which stamps happened, and returns what that adds to which days. An instant before
// AsOf, when a clock was put back, adds nothing.
func (a Account) Advance(now time.Time, stamps []Stamp) (Account, []Day) {
	stamps = slices.SortedFunc(slices.Values(stamps), func(a, b Stamp) int { return cmp.Or(a.Published.Compare(b.Published), a.Time.Compare(b.Time)) })
	var days []Day
	for _, s := range stamps {
		days = a.reach(s.Published, days)
		if s.Time.After(a.Newest) {
			a.Newest = s.Time
		}
		days = dayOf(days, a.AsOf)
		days[len(days)-1].Points++
	}
	days = a.reach(now, days)
	return a, days
}

// reach advances the account to an instant, midnight by midnight.
func (a *Account) reach(to time.Time, days []Day) []Day {
	for a.AsOf.Before(to) {
		end := midnight(a.AsOf).AddDate(0, 0, 1)
		if to.Before(end) {
			end = to
		}
		days = dayOf(days, a.AsOf)
		a.spend(end, &days[len(days)-1])
		a.AsOf = end
	}
	return days
}

// spend adds the time from AsOf until an instant of the same day.
func (a *Account) spend(end time.Time, d *Day) {
	if a.Target == 0 {
		return
	}
	d.Target = a.Target
	d.Covered += end.Sub(a.AsOf)
	if a.Newest.IsZero() {
		d.Late += end.Sub(a.AsOf)
		return
	}
	d.Worst = max(d.Worst, end.Sub(a.Newest))
	from := a.Newest.Add(a.Target)
	if from.Before(a.AsOf) {
		from = a.AsOf
	}
	d.Late += max(0, end.Sub(from))
}

// dayOf returns days with that of an instant at its end.
func dayOf(days []Day, at time.Time) []Day {
	date := midnight(at)
	if n := len(days); n > 0 && days[n-1].Date.Equal(date) {
		return days
	}
	return append(days, Day{Date: date})
}

func midnight(t time.Time) time.Time { return t.UTC().Truncate(24 * time.Hour) }

// Add adds what another part of the day, or another VM, has.
func (d Day) Add(o Day) Day {
	d.Covered += o.Covered
	d.Late += o.Late
	d.Worst = max(d.Worst, o.Worst)
	d.Points += o.Points
	if o.Target != 0 {
		d.Target = o.Target
	}
	return d
}

// Attained is the share of the time under a policy in which its promise was kept, from 0 to 1; 1 when there was no such time.
func (d Day) Attained() float64 {
	if d.Covered == 0 {
		return 1
	}
	return 1 - float64(d.Late)/float64(d.Covered)
}
