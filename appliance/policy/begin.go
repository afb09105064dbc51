package policy

import "time"

// looksAhead bounds how many windows NeverBegins looks at: more than a year of daily ones.
const looksAhead = 400

// NeverBegins reports whether no turn can begin by itself, because each is due outside all windows and given up before the next one
// opens. What begins late with MissedRun always begins.
func (r Rules) NeverBegins(now time.Time) bool {
	if r.Spec.Missed != MissedSkip || len(r.Windows) == 0 {
		return false
	}
	for at := range looksAhead {
		due, ok := r.Calendar.Next(now, r.Zone)
		if !ok {
			return at > 0
		}
		open := r.Windows.NextOpen(due, r.Zone)
		if open.IsZero() {
			return true
		}
		earliest := open.Add(-r.Spec.Within.Duration())
		if !due.Before(earliest) {
			return false
		}
		now = earliest.Add(-time.Nanosecond) // nothing that is due before it can wait for this window
	}
	return true
}
