package server

import (
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

func TestWhoseTurnItIs(t *testing.T) {
	day := func(n int) *time.Time { d := time.Date(2026, 1, 1+n, 0, 0, 0, 0, time.UTC); return &d }
	row := func(id string, v *catalog.Verification) catalog.Repository {
		return catalog.Repository{ID: id, CreatedAt: *day(0), Verification: v}
	}
	last := map[string]time.Time{"never": *day(1), "done": *day(2), "begun": *day(3)}
	tests := []struct {
		name string
		now  *time.Time
		rows []catalog.Repository
		want string
	}{
		{"nothing set, too early", day(29), []catalog.Repository{row("never", nil)}, ""},
		{"nothing set, after the days that hold for all", day(catalog.DefaultVerifyDays), []catalog.Repository{row("never", nil)}, "never"},
		{"done a week ago", day(12), []catalog.Repository{row("done", &catalog.Verification{EveryDays: 7, LastCompleted: day(5)})}, "done"},
		{"done six days ago", day(11), []catalog.Repository{row("done", &catalog.Verification{EveryDays: 7, LastCompleted: day(5)})}, ""},
		{"never shall be", day(999), []catalog.Repository{row("off", &catalog.Verification{CycleStarted: day(1)})}, ""},
		{"a cycle is under way", day(6), []catalog.Repository{row("begun", &catalog.Verification{EveryDays: 7, LastCompleted: day(5), CycleStarted: day(6)})}, "begun"},
		{"the one that waits longest", day(99), []catalog.Repository{
			row("begun", &catalog.Verification{EveryDays: 7, CycleStarted: day(6)}), row("done", &catalog.Verification{EveryDays: 7, LastCompleted: day(5)}), row("never", nil),
		}, "never"},
		{"the one that had no turn yet", day(99), []catalog.Repository{row("never", nil), row("new", nil), row("done", nil)}, "new"},
	}
	for _, tt := range tests {
		got, ok := nextDue(tt.rows, *tt.now, last)
		if got.ID != tt.want || ok != (tt.want != "") {
			t.Errorf("%s: %q, %v, want %q", tt.name, got.ID, ok, tt.want)
		}
	}
	if got := scheduledSweep(row("x", &catalog.Verification{EveryDays: 1, BytesPerSecond: 10}), catalog.DefaultBudget); got.Budget != 36000 || got.BytesPerSecond != 10 {
		t.Errorf("at 10 bytes a second: %+v", got)
	}
	if got := scheduledSweep(row("x", nil), catalog.DefaultBudget); got.Budget != catalog.DefaultBudget {
		t.Errorf("without a rate: %+v", got)
	}
}
