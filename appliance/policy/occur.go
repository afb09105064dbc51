package policy

import (
	"slices"
	"time"
)

// horizon is for how many days an occurrence is looked for: in 40 years every date falls on every day of the week, also
// the 29th of February around a century that has none.
const horizon = 41 * 366

// Next returns the first occurrence after an instant, on clocks of a place; false when there is none.
//
// A local time that the clocks skip occurs once, as much later as they are put forward: 02:30 becomes 03:30. A local time
// that they show twice occurs once, when they show it first.
func (c Calendar) Next(after time.Time, loc *time.Location) (time.Time, bool) {
	return c.search(after, loc, 1, func(t time.Time) bool { return t.After(after) }, time.Time.Before)
}

// Previous returns the last occurrence before an instant; see Next.
func (c Calendar) Previous(before time.Time, loc *time.Location) (time.Time, bool) {
	return c.search(before, loc, -1, func(t time.Time) bool { return t.Before(before) }, time.Time.After)
}

// search goes from the day of an instant in a direction. It begins one day early and looks at one day more than it must,
// because clocks that are put forward can move an occurrence into the next day.
func (c Calendar) search(
	from time.Time, loc *time.Location, step int, wanted func(time.Time) bool, better func(a, b time.Time) bool,
) (best time.Time, found bool) {
	y, m, d := from.In(loc).Date()
	day := time.Date(y, m, d-step, 0, 0, 0, 0, time.UTC)
	last := horizon
	for i := 0; i <= last; i++ {
		for _, t := range c.on(day, loc) {
			if wanted(t) && (!found || better(t, best)) {
				best = t
				if !found {
					found, last = true, i+1
				}
			}
		}
		day = day.AddDate(0, 0, step)
	}
	return best, found
}

// on returns the occurrences of a day, given as its midnight in UTC, each once.
func (c Calendar) on(day time.Time, loc *time.Location) []time.Time {
	if len(c.minutes) == 0 || !c.years.has(day.Year()) || !c.months.has(int(day.Month())) || !c.weekdays.has(int(day.Weekday())) {
		return nil
	}
	number := day.Day()
	if c.fromEnd {
		number = daysIn(day.Year(), day.Month()) - day.Day() + 1
	}
	if !c.day.has(number) {
		return nil
	}
	out := make([]time.Time, 0, len(c.minutes))
	for _, m := range c.minutes {
		out = append(out, instant(day.Add(time.Duration(m)*time.Minute), loc))
	}
	slices.SortFunc(out, time.Time.Compare)
	return slices.CompactFunc(out, time.Time.Equal)
}

// instant returns when clocks of a place show what wall shows in UTC; see Next for those they never or twice show.
func instant(wall time.Time, loc *time.Location) time.Time {
	y, m, d := wall.Date()
	t := time.Date(y, m, d, wall.Hour(), wall.Minute(), 0, 0, loc)
	_, offset := t.Zone()
	begin, _ := t.ZoneBounds()
	switch shown := t.UTC().Add(time.Duration(offset) * time.Second); {
	case shown.Before(wall): // skipped, and t is reckoned with what holds after the gap
		return wall.Add(-time.Duration(offset) * time.Second).In(loc)
	case shown.After(wall), begin.IsZero():
		return t
	}
	_, before := begin.Add(-time.Second).Zone()
	if first := wall.Add(-time.Duration(before) * time.Second); first.Before(begin) {
		return first.In(loc) // shown twice
	}
	return t
}

// Between returns the occurrences after one instant and not after another, at most so many, the earliest first.
func (c Calendar) Between(after, until time.Time, loc *time.Location, limit int) []time.Time {
	var out []time.Time
	for len(out) < limit {
		next, ok := c.Next(after, loc)
		if !ok || next.After(until) {
			break
		}
		out = append(out, next)
		after = next
	}
	return out
}

// LongestPause returns the longest time between two of the occurrences that follow an instant; 0 when there are fewer.
func (c Calendar) LongestPause(after time.Time, loc *time.Location) time.Duration {
	const look = 64
	var longest time.Duration
	last := time.Time{}
	for range look {
		next, ok := c.Next(after, loc)
		if !ok {
			break
		}
		if !last.IsZero() {
			longest = max(longest, next.Sub(last))
		}
		last, after = next, next
	}
	return longest
}
