package policy

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Retention says how many restore points of a VM are kept. All zero keeps every one.
type Retention struct {
	Last    int `json:"last,omitempty"`
	Hourly  int `json:"hourly,omitempty"`
	Daily   int `json:"daily,omitempty"`
	Weekly  int `json:"weekly,omitempty"` // weeks begin on Monday
	Monthly int `json:"monthly,omitempty"`
	Yearly  int `json:"yearly,omitempty"`
}

// rule is one of the counts, with what two restore points have in common of which it keeps one.
type rule struct {
	name   string
	count  int
	period func(time.Time) string
}

func (r Retention) rules() []rule {
	return []rule{
		{"last", r.Last, nil},
		{"hourly", r.Hourly, func(t time.Time) string { return t.Format("2006-01-02 15 -0700") }},
		{"daily", r.Daily, func(t time.Time) string { return t.Format(time.DateOnly) }},
		{"weekly", r.Weekly, func(t time.Time) string { y, w := t.ISOWeek(); return fmt.Sprintf("%d week %d", y, w) }},
		{"monthly", r.Monthly, func(t time.Time) string { return t.Format("2006-01") }},
		{"yearly", r.Yearly, func(t time.Time) string { return t.Format("2006") }},
	}
}

// KeepsAll reports whether nothing is ever pruned.
func (r Retention) KeepsAll() bool { return r == Retention{} }

// Point is what retention looks at of a restore point.
type Point struct {
	ID      string
	Time    time.Time // of the freeze
	Damaged bool      // known not to be whole
	Held    string    // why it is held; "" is not held
	Needed  string    // why it cannot go now, in words: a task reads it, the next incremental builds on it; "" is none
}

// Verdict is what becomes of a restore point, and why. Without a reason it goes.
type Verdict struct {
	Point
	Reasons []string
}

// Keep reports whether the restore point stays.
func (v Verdict) Keep() bool { return len(v.Reasons) > 0 }

// Apply decides about the restore points of one VM in one repository, the newest first. A rule keeps the newest one of each of
// the most recent periods that have any, on clocks of a place; periods without restore points do not count.
//
// A damaged restore point never takes a good one's place: the rules are applied to all and once more to the good ones, and
// what either keeps stays. The newest good one stays whatever the rules say.
func (r Retention) Apply(points []Point, loc *time.Location) []Verdict {
	out := make([]Verdict, len(points))
	for i, p := range points {
		out[i].Point = p
	}
	slices.SortFunc(out, func(a, b Verdict) int { return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.ID, a.ID)) })
	var every, good []*Verdict
	for i := range out {
		every = append(every, &out[i])
		if !out[i].Damaged {
			good = append(good, &out[i])
		}
	}
	if r.KeepsAll() {
		for _, v := range every {
			v.add("the policy keeps every restore point")
		}
	}
	for _, rule := range r.rules() {
		rule.apply(every, loc)
		if len(good) < len(every) {
			rule.apply(good, loc)
		}
	}
	for i, v := range every {
		if v.Held != "" {
			v.add("held: " + v.Held)
		}
		if v.Needed != "" {
			v.add(v.Needed)
		}
		if len(good) > 0 && v == good[0] {
			v.add("the newest good restore point")
		}
		if len(good) == 0 && i == 0 {
			v.add("the newest restore point, and none is known to be good")
		}
	}
	return out
}

// apply adds the rule's reason to those it keeps of restore points that are ordered, the newest first.
func (r rule) apply(points []*Verdict, loc *time.Location) {
	kept, last := 0, ""
	for i, v := range points {
		if kept == r.count {
			return
		}
		if r.period != nil {
			period := r.period(v.Time.In(loc))
			if i > 0 && period == last {
				continue
			}
			last = period
		}
		kept++
		v.add(fmt.Sprintf("%s %d of %d", r.name, kept, r.count))
	}
}

// add adds a reason, once: of two counts of one rule the first stays.
func (v *Verdict) add(reason string) {
	if !slices.Contains(v.Reasons, reason) {
		v.Reasons = append(v.Reasons, reason)
	}
}
