package policy

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
)

// countMinutes is the oracle: it asks each minute anew how old the newest restore point is.
func countMinutes(from, to time.Time, target time.Duration, newest time.Time, stamps []Stamp) []Day {
	var days []Day
	add := func(at time.Time) *Day {
		if n := len(days); n == 0 || !days[n-1].Date.Equal(midnight(at)) {
			days = append(days, Day{Date: midnight(at)})
		}
		return &days[len(days)-1]
	}
	for at := from; ; at = at.Add(time.Minute) {
		for _, s := range stamps {
			if s.Published.Equal(at) {
				add(at).Points++
				if s.Time.After(newest) {
					newest = s.Time
				}
			}
		}
		if !at.Before(to) {
			return days
		}
		d := add(at)
		if target == 0 {
			continue
		}
		d.Covered += time.Minute
		d.Target = target
		age := at.Add(time.Minute).Sub(newest)
		switch {
		case newest.IsZero():
			d.Late += time.Minute
			continue
		case age > target:
			d.Late += time.Minute
		}
		d.Worst = max(d.Worst, age)
	}
}

// TestAccountIsWhatTheOracleCounts also cuts the time into pieces, as the appliance does, and adds them up.
func TestAccountIsWhatTheOracleCounts(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, seed))
	for range 200 {
		from := time.Date(2026, 10, 1, r.IntN(24), r.IntN(60), 0, 0, time.UTC)
		minutes := 1 + r.IntN(4*24*60)
		to := from.Add(time.Duration(minutes) * time.Minute)
		target := time.Duration(r.IntN(3)*r.IntN(2000)) * time.Minute
		a := Account{AsOf: from, Target: target}
		if r.IntN(3) > 0 {
			a.Newest = from.Add(-time.Duration(r.IntN(3000)) * time.Minute)
		}
		var stamps []Stamp
		for range r.IntN(8) {
			published := from.Add(time.Duration(1+r.IntN(minutes)) * time.Minute)
			stamps = append(stamps, Stamp{Time: published.Add(-time.Duration(r.IntN(200)) * time.Minute), Published: published})
		}
		want := countMinutes(from, to, target, a.Newest, stamps)
		end, got := a.Advance(to, stamps)
		if diff := gocmp.Diff(got, want); diff != "" {
			t.Fatalf("%v until %v, target %v, newest %v, stamps %v: -got +want\n%s", from, to, target, a.Newest, stamps, diff)
		}
		cut := from.Add(time.Duration(r.IntN(minutes+1)) * time.Minute)
		var before, after []Stamp
		for _, s := range stamps {
			if s.Published.After(cut) {
				after = append(after, s)
			} else {
				before = append(before, s)
			}
		}
		half, first := a.Advance(cut, before)
		whole, second := half.Advance(to, after)
		if diff := gocmp.Diff(sumDays(first, second), want); diff != "" || whole != end {
			t.Fatalf("cut at %v: %+v, not %+v; -got +want\n%s", cut, whole, end, diff)
		}
	}
}

func sumDays(parts ...[]Day) []Day {
	all := map[time.Time]Day{}
	for _, part := range parts {
		for _, d := range part {
			sum, ok := all[d.Date]
			if !ok {
				sum.Date = d.Date
			}
			all[d.Date] = sum.Add(d)
		}
	}
	var out []Day
	for _, d := range all {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b Day) int { return cmp.Compare(a.Date.Unix(), b.Date.Unix()) })
	return out
}

func TestAccountWhenClocksArePutBack(t *testing.T) {
	at := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	a := Account{AsOf: at, Target: time.Hour, Newest: at}
	got, days := a.Advance(at.Add(-time.Hour), nil)
	if got != a || len(days) != 0 {
		t.Errorf("an hour back: %+v, %+v", got, days)
	}
	// A restore point that was made by the other clock counts at once, on the day that has been reached.
	got, days = a.Advance(at, []Stamp{{Time: at.Add(time.Minute), Published: at.Add(-48 * time.Hour)}})
	if got.Newest != at.Add(time.Minute) || len(days) != 1 || days[0].Points != 1 || !days[0].Date.Equal(midnight(at)) {
		t.Errorf("a restore point of before: %+v, %+v", got, days)
	}
	for d, want := range map[Day]float64{{Covered: 4, Late: 1}: 0.75, {Covered: 4, Late: 4}: 0, {}: 1} {
		if got := d.Attained(); got != want {
			t.Errorf("%+v attains %v, want %v", d, got, want)
		}
	}
}
