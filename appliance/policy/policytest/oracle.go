// Package policytest has a second opinion on retention, for tests: a program that was written from docs/policies.md alone, is
// slow and shares nothing with package policy but its words.
package policytest

import (
	"slices"
	"time"

	"github.com/cairn-backup/cairn/appliance/policy"
)

// Keeps returns the ids of the restore points that stay, in their order: for every one and every rule it counts the later periods.
func Keeps(rules policy.Retention, points []policy.Point, loc *time.Location) []string {
	if rules == (policy.Retention{}) {
		var out []string
		for _, p := range points {
			out = append(out, p.ID)
		}
		slices.Sort(out)
		return out
	}
	counts := []int{rules.Last, rules.Hourly, rules.Daily, rules.Weekly, rules.Monthly, rules.Yearly}
	begins := []func(time.Time) time.Time{ // of the period that an instant is in
		func(t time.Time) time.Time { return t },
		func(t time.Time) time.Time {
			return t.Add(-time.Duration(t.Minute())*time.Minute - time.Duration(t.Second())*time.Second - time.Duration(t.Nanosecond()))
		},
		func(t time.Time) time.Time { return time.Date(t.Year(), t.Month(), t.Day(), 12, 0, 0, 0, loc) },
		func(t time.Time) time.Time {
			return time.Date(t.Year(), t.Month(), t.Day()-(int(t.Weekday())+6)%7, 12, 0, 0, 0, loc)
		},
		func(t time.Time) time.Time { return time.Date(t.Year(), t.Month(), 1, 12, 0, 0, 0, loc) },
		func(t time.Time) time.Time { return time.Date(t.Year(), 1, 1, 12, 0, 0, 0, loc) },
	}
	var out []string
	for _, p := range points {
		keep := p.Held != ""
		newestGood, newest := true, true
		for _, q := range points {
			if q.Time.After(p.Time) {
				newest = false
				newestGood = newestGood && q.Damaged
			}
		}
		anyGood := slices.ContainsFunc(points, func(q policy.Point) bool { return !q.Damaged })
		keep = keep || (!p.Damaged && newestGood) || (newest && !anyGood)
		for i, begin := range begins {
			for _, onlyGood := range []bool{false, true} {
				if onlyGood && p.Damaged {
					continue
				}
				later, newestOfPeriod := map[time.Time]bool{}, true
				mine := begin(p.Time.In(loc))
				for _, q := range points {
					if onlyGood && q.Damaged || !q.Time.After(p.Time) {
						continue
					}
					if theirs := begin(q.Time.In(loc)); theirs.Equal(mine) {
						newestOfPeriod = false
					} else {
						later[theirs] = true
					}
				}
				keep = keep || newestOfPeriod && len(later) < counts[i]
			}
		}
		if keep {
			out = append(out, p.ID)
		}
	}
	slices.Sort(out)
	return out
}
