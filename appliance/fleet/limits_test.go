package fleet

import (
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// at is a time of a day of the week of Monday, 4 January 2027.
func at(day int, clock string) time.Time {
	t, err := time.Parse("15:04", clock)
	if err != nil {
		panic(err)
	}
	return time.Date(2027, 1, 4+day, t.Hour(), t.Minute(), 30, 0, time.UTC)
}

func TestWhenALimitHolds(t *testing.T) {
	const monday, tuesday, sunday = 0, 1, 6
	night := catalog.MoverLimit{From: 22 * 60, To: 6 * 60}
	work := catalog.MoverLimit{From: 7*60 + 30, To: 19 * 60, Days: "mon,tue,wed,thu,fri"}
	mondayNight := night
	mondayNight.Days = "mon"
	tests := []struct {
		name  string
		limit catalog.MoverLimit
		at    time.Time
		want  bool
	}{
		{"always", catalog.MoverLimit{}, at(sunday, "00:00"), true},
		{"before", work, at(monday, "07:29"), false},
		{"from its beginning", work, at(monday, "07:30"), true},
		{"up to its end", work, at(monday, "18:59"), true},
		{"not at its end", work, at(monday, "19:00"), false},
		{"another day", work, at(sunday, "12:00"), false},
		{"over midnight, evening", night, at(monday, "22:00"), true},
		{"over midnight, morning", night, at(monday, "05:59"), true},
		{"over midnight, day", night, at(monday, "06:00"), false},
		{"belongs to the day it began, evening", mondayNight, at(monday, "23:00"), true},
		{"belongs to the day it began, morning after", mondayNight, at(tuesday, "03:00"), true},
		{"belongs to the day it began, morning before", mondayNight, at(monday, "03:00"), false},
		{"days alone", catalog.MoverLimit{Days: "sun"}, at(sunday, "03:00"), true},
		{"days alone, another", catalog.MoverLimit{Days: "sun"}, at(monday, "03:00"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := holds(tt.limit, tt.at); got != tt.want {
				t.Errorf("holds at %v: %v", tt.at, got)
			}
		})
	}
}

func TestBandwidthOf(t *testing.T) {
	const mib = 1 << 20
	limit := func(kind catalog.LimitKind, name string, read, network int64) catalog.MoverLimit {
		return catalog.MoverLimit{Kind: kind, Name: name, Read: read, Network: network}
	}
	m1 := member{name: "m1", source: "10.2.0.1", busy: true}
	m2 := member{name: "m2", source: "10.2.0.2", busy: true}
	idle := member{name: "m3", source: "10.2.0.3"}
	far := member{name: "m4", source: "10.9.0.1", busy: true}
	night := limit(catalog.LimitMover, "m1", 1*mib, 0)
	night.From, night.To = 22*60, 6*60
	tests := []struct {
		name   string
		limits []catalog.MoverLimit
		of     member
		want   Bandwidth
	}{
		{"none", nil, m1, Bandwidth{}},
		{"its own", []catalog.MoverLimit{limit(catalog.LimitMover, "m1", 2*mib, 3*mib)}, m1, Bandwidth{2 * mib, 3 * mib}},
		{"another's", []catalog.MoverLimit{limit(catalog.LimitMover, "m2", 2*mib, 3*mib)}, m1, Bandwidth{}},
		{"each", []catalog.MoverLimit{limit(catalog.LimitMover, "*", 2*mib, 0)}, m1, Bandwidth{Read: 2 * mib}},
		{"a name before each", []catalog.MoverLimit{limit(catalog.LimitMover, "*", 2*mib, 0), limit(catalog.LimitMover, "m1", 4*mib, 0)}, m1, Bandwidth{Read: 4 * mib}},
		{"the lowest", []catalog.MoverLimit{limit(catalog.LimitMover, "m1", 4*mib, 0), limit(catalog.LimitMover, "m1", 2*mib, 9*mib)}, m1, Bandwidth{2 * mib, 9 * mib}},
		{"not now", []catalog.MoverLimit{night}, m1, Bandwidth{}},
		{"half a link, of two that are busy", []catalog.MoverLimit{limit(catalog.LimitLink, "10.2.0.0/16", 0, 8*mib)}, m1, Bandwidth{Network: 4 * mib}},
		{"a third, when it begins, too", []catalog.MoverLimit{limit(catalog.LimitLink, "10.2.0.0/16", 0, 9*mib)}, idle, Bandwidth{Network: 3 * mib}},
		{"not on the link", []catalog.MoverLimit{limit(catalog.LimitLink, "10.2.0.0/16", 0, 8*mib)}, far, Bandwidth{}},
		{"a share is never nothing", []catalog.MoverLimit{limit(catalog.LimitLink, "10.2.0.0/16", 0, MinRate)}, m1, Bandwidth{Network: MinRate}},
		{"its own and the link's", []catalog.MoverLimit{limit(catalog.LimitLink, "10.2.0.0/16", 8*mib, 8*mib), limit(catalog.LimitMover, "m1", 1*mib, 5*mib)}, m1, Bandwidth{1 * mib, 4 * mib}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := bandwidthOf(tt.limits, tt.of, []member{m1, m2, idle, far}, at(0, "12:00")); got != tt.want {
				t.Errorf("bandwidth %+v, want %+v", got, tt.want)
			}
		})
	}
}

func TestSlotsOf(t *testing.T) {
	all := []catalog.MoverLimit{
		{Kind: catalog.LimitHost, Name: "*", Slots: 3}, {Kind: catalog.LimitHost, Name: "big", Slots: 32},
		{Kind: catalog.LimitDatastore, Name: "big", Slots: 1}, {Kind: catalog.LimitMover, Name: "m1", Read: MinRate},
	}
	for _, tt := range []struct {
		kind catalog.LimitKind
		name string
		want int
	}{
		{catalog.LimitHost, "big", 32}, {catalog.LimitHost, "small", 3}, {catalog.LimitDatastore, "big", 1}, {catalog.LimitDatastore, "small", 8},
		{catalog.LimitMover, "m1", 8},
	} {
		if got := slotsOf(all, tt.kind, tt.name, at(0, "12:00"), 8); got != tt.want {
			t.Errorf("%s %s: %d slots, want %d", tt.kind, tt.name, got, tt.want)
		}
	}
}

func TestCheckLimit(t *testing.T) {
	mover := func(change func(*catalog.MoverLimit)) catalog.MoverLimit {
		l := catalog.MoverLimit{Kind: catalog.LimitMover, Name: "m1", Slots: 2}
		change(&l)
		return l
	}
	for name, l := range map[string]catalog.MoverLimit{
		"no kind":              mover(func(l *catalog.MoverLimit) { l.Kind = "x" }),
		"no name":              mover(func(l *catalog.MoverLimit) { l.Name = "" }),
		"no number":            mover(func(l *catalog.MoverLimit) { l.Slots = 0 }),
		"less than none":       mover(func(l *catalog.MoverLimit) { l.Slots = -1 }),
		"too little":           mover(func(l *catalog.MoverLimit) { l.Read = MinRate - 1 }),
		"no day":               mover(func(l *catalog.MoverLimit) { l.Days = "mon,holidays" }),
		"no time":              mover(func(l *catalog.MoverLimit) { l.To = 24 * 60 }),
		"a host's bandwidth":   {Kind: catalog.LimitHost, Name: "h", Read: MinRate},
		"a link's slots":       {Kind: catalog.LimitLink, Name: "10.0.0.0/8", Slots: 1},
		"a link of no network": {Kind: catalog.LimitLink, Name: "m1", Network: MinRate},
	} {
		if err := checkLimit(&l); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	l := catalog.MoverLimit{Kind: catalog.LimitLink, Name: "10.2.3.4/16", Network: MinRate, Days: "Fri, mon"}
	if err := checkLimit(&l); err != nil || l.Name != "10.2.0.0/16" || l.Days != "mon,fri" {
		t.Errorf("%+v, %v", l, err)
	}
}
