package policy

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatalf("the time zone database is needed: %v", err)
	}
	return loc
}

const minute = "2006-01-02 15:04 -0700"

func TestNextOccurrences(t *testing.T) {
	const zurich = "Europe/Zurich"
	tests := []struct {
		name, text, zone, after string
		want                    []string
	}{
		{"every evening", "22:00", "UTC", "2026-03-01 21:59 +0000", []string{"2026-03-01 22:00 +0000", "2026-03-02 22:00 +0000"}},
		{"not at the instant itself", "22:00", "UTC", "2026-03-01 22:00 +0000", []string{"2026-03-02 22:00 +0000"}},
		{"working days", "Mon..Fri 22:00", "UTC", "2026-03-06 22:00 +0000", []string{"2026-03-09 22:00 +0000"}},
		{"over the weekend", "Sat..Mon 06:30", "UTC", "2026-03-06 00:00 +0000", []string{"2026-03-07 06:30 +0000", "2026-03-08 06:30 +0000", "2026-03-09 06:30 +0000", "2026-03-14 06:30 +0000"}},
		{"quarters of an hour", "8..9:0/15", "UTC", "2026-03-01 09:31 +0000", []string{"2026-03-01 09:45 +0000", "2026-03-02 08:00 +0000"}},
		{"the last day of the month", "*~1 23:00", "UTC", "2026-01-31 23:00 +0000", []string{"2026-02-28 23:00 +0000", "2026-03-31 23:00 +0000"}},
		{"the first Saturday", "Sat *-1..7 04:00", "UTC", "2026-03-07 04:00 +0000", []string{"2026-04-04 04:00 +0000"}},
		{"a leap day on a Monday", "Mon 02-29 00:00", "UTC", "2026-01-01 00:00 +0000", []string{"2044-02-29 00:00 +0000"}},
		{"one date", "2026-05-05 05:05", "UTC", "2026-01-01 00:00 +0000", []string{"2026-05-05 05:05 +0000"}},
		{"a word", "weekly", "UTC", "2026-03-04 00:00 +0000", []string{"2026-03-09 00:00 +0000"}},
		{"a day without a time", "Sun", "UTC", "2026-03-04 00:00 +0000", []string{"2026-03-08 00:00 +0000"}},
		{"skipped in spring", "02:30", zurich, "2026-03-28 02:30 +0100", []string{"2026-03-29 03:30 +0200", "2026-03-30 02:30 +0200"}},
		{"skipped, and the instant is due anyway", "2..3:30", zurich, "2026-03-29 00:00 +0100", []string{"2026-03-29 03:30 +0200", "2026-03-30 02:30 +0200"}},
		{"twice in autumn", "02:30", zurich, "2026-10-24 02:30 +0200", []string{"2026-10-25 02:30 +0200", "2026-10-26 02:30 +0100"}},
		{"hourly in autumn", "*:00", zurich, "2026-10-25 01:00 +0200", []string{"2026-10-25 02:00 +0200", "2026-10-25 03:00 +0100"}},
		{"midnight that is skipped", "00:30", "Asia/Beirut", "2026-03-28 12:00 +0200", []string{"2026-03-29 01:30 +0300"}},
		{"a day that is skipped", "12:00", "Pacific/Apia", "2011-12-29 12:00 -1000", []string{"2011-12-31 12:00 +1400"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := ParseCalendar(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			loc := zone(t, tt.zone)
			at, err := time.Parse(minute, tt.after)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, o := range c.Between(at, at.AddDate(30, 0, 0), loc, len(tt.want)) {
				got = append(got, o.Format(minute))
			}
			if diff := cmp.Diff(got, tt.want); diff != "" {
				t.Errorf("-got +want:\n%s", diff)
			}
		})
	}
	once, _ := ParseCalendar("2026-05-05 05:05")
	if at, ok := once.Next(time.Date(2026, 5, 5, 5, 5, 0, 0, time.UTC), time.UTC); ok {
		t.Errorf("what is over is due again at %v", at)
	}
}

func TestCalendarErrors(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", "at character 1: expected days of the week, a date or a time, got the end"},
		{"Mo 22:00", "at character 1: expected a day of the week, Mon to Sun, got 'M'"},
		{"Mon-Fri 22:00", "at character 4: expected a space or the end, got '-'"},
		{"24:00", "at character 1: expected an hour, 0 to 23, got '2'"},
		{"22:60", "at character 4: expected a minute, 0 to 59, got '6'"},
		{"22", `at character 3: expected ":" and a minute, got the end`},
		{"*-13-01 00:00", "at character 3: expected a month, 1 to 12, got '1'"},
		{"*-02-30", "at character 1: expected a day that one of the months has, got '*'"},
		{"*:0/0", "at character 5: expected a step of 1 or more, got '0'"},
		{"9..8:00", "at character 4: expected an hour, 0 to 23, not before the first, got '8'"},
		{"22:00 UTC", "at character 7: expected the end, got 'U'"},
	}
	for _, tt := range tests {
		_, err := ParseCalendar(tt.text)
		s, ok := errors.AsType[*SyntaxError](err)
		if !ok || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: got error %v", tt.text, err)
			continue
		}
		if s.Error() != tt.want {
			t.Errorf("%q: got %q, want %q", tt.text, s.Error(), tt.want)
		}
	}
}

// TestOccurrencesAgainstClock compares with a clock that is looked at every minute: what it shows first counts, and what it
// never shows is put off by as much as it was put forward.
func TestOccurrencesAgainstClock(t *testing.T) {
	zones := []string{"UTC", "Europe/Zurich", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut", "America/Sao_Paulo", "Asia/Kathmandu", "Africa/Casablanca"}
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		loc := zone(t, zones[r.IntN(len(zones))])
		text := randomExpression(r)
		begin := time.Date(2016+r.IntN(4), time.Month(1+r.IntN(12)), 1+r.IntN(28), 0, 0, 0, 0, time.UTC)
		if r.IntN(2) == 0 { // around a change of the clocks
			if _, end := begin.In(loc).ZoneBounds(); !end.IsZero() {
				begin = end.Truncate(time.Minute).AddDate(0, 0, -3).UTC()
			}
		}
		end := begin.AddDate(0, 0, 6)
		c, err := ParseCalendar(text)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		want := watch(c, begin, end, loc)
		got := []string{}
		for _, o := range c.Between(begin, end, loc, 20_000) {
			got = append(got, o.UTC().Format(minute))
		}
		if diff := cmp.Diff(got, want); diff != "" {
			t.Fatalf("seed %d, %q in %s from %v, -got +want:\n%s", seed, text, loc, begin, diff)
		}
		back := []string{}
		for at := end.Add(time.Second); ; {
			o, ok := c.Previous(at, loc)
			if !ok || !o.After(begin) {
				break
			}
			back, at = append(back, o.UTC().Format(minute)), o
		}
		for i, j := 0, len(back)-1; i < j; i, j = i+1, j-1 {
			back[i], back[j] = back[j], back[i]
		}
		if diff := cmp.Diff(back, want); diff != "" {
			t.Fatalf("seed %d, %q in %s backwards, -got +want:\n%s", seed, text, loc, diff)
		}
	}
}

func randomExpression(r *rand.Rand) string {
	days := []string{"", "", "Mon..Fri ", "Sun ", "Sat,Wed "}
	dates := []string{"", "", "", "*-1/2 ", "*~1..9 "}
	times := []string{"02:30", "2:0/20", "*:00", "0..3:15,45", "23:59", "00:00", "0:30", "*:0/7"}
	return days[r.IntN(len(days))] + dates[r.IntN(len(dates))] + times[r.IntN(len(times))]
}

// watch is the oracle: it knows nothing of offsets, and sees only what the clock shows.
func watch(c Calendar, begin, end time.Time, loc *time.Location) []string {
	due := map[time.Time]bool{}
	shown := map[time.Time]bool{} // wall clock, as UTC
	var last time.Time
	for at := begin.AddDate(0, 0, -2); !at.After(end.AddDate(0, 0, 2)); at = at.Add(time.Minute) {
		l := at.In(loc)
		wall := time.Date(l.Year(), l.Month(), l.Day(), l.Hour(), l.Minute(), 0, 0, time.UTC)
		if !last.IsZero() {
			for skipped := last.Add(time.Minute); skipped.Before(wall); skipped = skipped.Add(time.Minute) {
				if !shown[skipped] && wanted(c, skipped) {
					due[at.Add(skipped.Sub(last)-time.Minute)] = true
				}
				shown[skipped] = true
			}
		}
		if !shown[wall] && wanted(c, wall) {
			due[at] = true
		}
		shown[wall] = true
		last = wall
	}
	out := []string{}
	for at := begin.Add(time.Minute); !at.After(end); at = at.Add(time.Minute) {
		if due[at] {
			out = append(out, at.Format(minute))
		}
	}
	return out
}

// wanted reads the expression's parts by hand.
func wanted(c Calendar, wall time.Time) bool {
	day := wall.Day()
	if c.fromEnd {
		first := time.Date(wall.Year(), wall.Month(), 1, 0, 0, 0, 0, time.UTC)
		day = first.AddDate(0, 1, 0).AddDate(0, 0, -1).Day() - wall.Day() + 1
	}
	at := false
	for _, m := range c.minutes {
		at = at || m == wall.Hour()*60+wall.Minute()
	}
	return at && c.weekdays.has(int(wall.Weekday())) && c.months.has(int(wall.Month())) && c.day.has(day)
}

func TestWindowsAgainstMinutes(t *testing.T) {
	loc := zone(t, "Europe/Zurich")
	for _, texts := range [][]string{{"22:00-06:00"}, {"Mon..Fri 20:00-24:00", "Sat,Sun 00:00-24:00"}, {"00:00-24:00"}, {"02:15-02:45"}, {"Sat 22:00-22:00"}} {
		ws, err := ParseWindows(texts)
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Date(2026, 3, 26, 0, 0, 0, 0, time.UTC)
		var open []bool
		const minutes = 6 * 24 * 60
		for m := range minutes {
			open = append(open, ws.Open(begin.Add(time.Duration(m)*time.Minute), loc))
		}
		next := -1
		for m := minutes - 1; m >= 0; m-- {
			if open[m] {
				next = m
			}
			at := begin.Add(time.Duration(m) * time.Minute)
			if next >= 0 && !ws.NextOpen(at, loc).Equal(begin.Add(time.Duration(next)*time.Minute)) {
				t.Fatalf("%v: after %v it opens at %v, want %v", texts, at, ws.NextOpen(at, loc), begin.Add(time.Duration(next)*time.Minute))
			}
		}
	}
}

func TestWindowOpen(t *testing.T) {
	loc := zone(t, "Europe/Zurich")
	tests := []struct {
		windows, at string
		want        bool
	}{
		{"", "2026-03-04 12:00", true},
		{"22:00-06:00", "2026-03-04 22:00", true},
		{"22:00-06:00", "2026-03-05 05:59", true},
		{"22:00-06:00", "2026-03-05 06:00", false},
		{"Fri 22:00-06:00", "2026-03-07 03:00", true}, // Saturday, but it was opened on Friday
		{"Fri 22:00-06:00", "2026-03-06 03:00", false},
		{"Sat 22:00-22:00", "2026-03-08 21:59", true},
		{"08:00-24:00", "2026-03-04 23:59", true},
		{"22:00-06:00", "2026-03-29 05:30", true}, // the night with 7 hours
		{"22:00-06:00", "2026-03-29 06:00", false},
	}
	for _, tt := range tests {
		ws, err := ParseWindows(strings.FieldsFunc(tt.windows, func(r rune) bool { return r == ';' }))
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.ParseInLocation("2006-01-02 15:04", tt.at, loc)
		if err != nil {
			t.Fatal(err)
		}
		if got := ws.Open(at, loc); got != tt.want {
			t.Errorf("%q at %s: got %v, want %v", tt.windows, tt.at, got, tt.want)
		}
	}
	for _, text := range []string{"", "22:00", "22:00-25:00", "24:00-06:00", "Fri 22:00-06:00 Sat", "Fri22:00-06:00", "22-06"} {
		if _, err := ParseWindow(text); fault.KindOf(err) != fault.Invalid {
			t.Errorf("window %q: got error %v", text, err)
		}
	}
}

// FuzzCalendar looks for texts on which reading or asking does not end well.
func FuzzCalendar(f *testing.F) {
	for _, text := range []string{"Mon..Fri 22:00", "*-*-01 03:00", "*~1 23:00", "*:00/15", "weekly", "Sat 22:00-06:00", "2026-02-28 1..3:0/5"} {
		f.Add(text)
		for p := range boundary.Text([]byte(text)) {
			f.Add(string(p))
		}
	}
	loc := zone(f, "Europe/Zurich")
	from := time.Date(2026, 3, 28, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text string) {
		if w, err := ParseWindow(text); err == nil {
			if at := (Windows{w}).NextOpen(from, loc); !at.IsZero() && !(Windows{w}).Open(at, loc) {
				t.Errorf("%q opens at %v and is not open then", text, at)
			}
		}
		c, err := ParseCalendar(text)
		if err != nil {
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		next, ok := c.Next(from, loc)
		if !ok {
			return
		}
		if !next.After(from) {
			t.Errorf("%q: after %v comes %v", text, from, next)
		}
		if back, ok := c.Previous(next.Add(time.Second), loc); !ok || !back.Equal(next) {
			t.Errorf("%q: %v is not the last occurrence before the second after it: %v", text, next, back)
		}
	})
}
