package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

func rulesOf(t *testing.T, s Spec) Rules {
	t.Helper()
	if s.Schedule == "" {
		s.Schedule = "22:00"
	}
	r, err := Understand(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestCover(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	filter := func(text string) Filter {
		f, err := ParseFilter(text)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	policies := []Candidate{
		{ID: "p1", Name: "silver", Rules: rulesOf(t, Spec{Filter: "cluster = prod"})},
		{ID: "p2", Name: "gold", Rules: rulesOf(t, Spec{Filter: "tag = gold", Priority: 10})},
		{ID: "p3", Name: "bronze", Rules: rulesOf(t, Spec{Filter: "cluster = prod"})},
		{ID: "p4", Name: "test", Paused: true, Rules: rulesOf(t, Spec{Filter: "cluster = test"})},
	}
	exclusions := []Exclusion{
		{ID: "x1", Filter: filter("name ~ tmp-*"), Reason: "is made anew each night", By: "ana"},
		{ID: "x2", Filter: filter("name = old"), Reason: "moves", Until: now.Add(time.Hour)},
		{ID: "x3", Filter: filter("name = older"), Reason: "moved", Until: now},
	}
	tests := []struct {
		name             string
		vm               VM
		policy, excluded string
		why              string
	}{
		{"by priority", VM{Cluster: "prod", Tags: []string{"gold"}}, "p2", "", `Policy gold covers it: its filter selects the VM: "tag = gold". It goes before bronze, silver, by priority and then by name.`},
		{"by name", VM{Cluster: "prod"}, "p3", "", `It goes before silver`},
		{"paused", VM{Cluster: "test"}, "p4", "", "The policy is paused."},
		{"by nobody", VM{Cluster: "other"}, "", "", "No policy's filter selects it."},
		{"excluded", VM{Cluster: "prod", Name: "tmp-1"}, "", "x1", "It is excluded by ana: is made anew each night."},
		{"excluded for a while", VM{Cluster: "prod", Name: "old"}, "", "x2", "It is excluded, until 2026-03-04 13:00 UTC: moves."},
		{"unprotectable", VM{Cluster: "prod", Unprotectable: "it is the engine's"}, "", "", "It cannot be backed up: it is the engine's."},
		{"unprotectable and excluded", VM{Cluster: "prod", Name: "tmp-1", Unprotectable: "it is the engine's"}, "", "x1", "is made anew"},
		{"with no disk that can be frozen", VM{Cluster: "prod", UnprotectableDisks: "a: it is a direct LUN"}, "p3", "", "None of its disks can be backed up: a: it is a direct LUN."},
		{"the same, by nobody", VM{UnprotectableDisks: "a: it is a direct LUN"}, "", "", "No policy's filter selects it. None of its disks"},
		{"excluded no more", VM{Cluster: "prod", Name: "older"}, "p3", "", "Policy bronze"},
	}
	covers := NewCovers(policies, exclusions, now)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := covers.Of(tt.vm)
			if got.PolicyID != tt.policy || got.ExclusionID != tt.excluded || !strings.Contains(got.Why, tt.why) {
				t.Errorf("got %+v, want policy %q, exclusion %q and %q", got, tt.policy, tt.excluded, tt.why)
			}
			if want := got.PolicyID == "" && got.ExclusionID == "" && tt.vm.Unprotectable+tt.vm.UnprotectableDisks != ""; got.Unprotectable != want {
				t.Errorf("unprotectable: %v, want %v", got.Unprotectable, want)
			}
			if id := covers.Which(tt.vm); id != got.PolicyID {
				t.Errorf("covered by %q, and by %q when asked for the reason", id, got.PolicyID)
			}
		})
	}
}

func TestStand(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	covered := Cover{PolicyID: "p"}
	for _, tt := range []struct {
		name   string
		cover  Cover
		newest time.Time
		want   Standing
	}{
		{"young", covered, now.Add(-time.Hour), Standing{Protected, time.Hour, 24 * time.Hour}},
		{"just in time", covered, now.Add(-24 * time.Hour), Standing{Protected, 24 * time.Hour, 24 * time.Hour}},
		{"late", covered, now.Add(-25 * time.Hour), Standing{Late, 25 * time.Hour, 24 * time.Hour}},
		{"never", covered, time.Time{}, Standing{NeverRan, 0, 24 * time.Hour}},
		{"unprotected, with an old restore point", Cover{}, now.Add(-time.Hour), Standing{Unprotected, time.Hour, 0}},
		{"excluded", Cover{ExclusionID: "x"}, time.Time{}, Standing{Excluded, 0, 0}},
		{"unprotectable", Cover{Unprotectable: true}, time.Time{}, Standing{Unprotectable, 0, 0}},
		{"from a clock that was ahead", covered, now.Add(time.Minute), Standing{Protected, 0, 24 * time.Hour}},
	} {
		if got := Stand(tt.cover, 24*time.Hour, tt.newest, now); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestUnderstand(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 0, 0, 0, time.UTC)
	r := rulesOf(t, Spec{Filter: "all", Schedule: "Mon..Fri 22:00", Retries: 2, Backoff: 60})
	if got, want := r.RPO(now), 108*time.Hour; got != want { // one and a half weekends
		t.Errorf("the RPO that nobody said is %v, want %v", got, want)
	}
	for failed, want := range map[int]time.Duration{1: time.Minute, 2: 2 * time.Minute, 3: -1} {
		wait, ok := r.RetryAfter(failed)
		if !ok {
			wait = -1
		}
		if wait != want {
			t.Errorf("after %d failures it waits %v, want %v", failed, wait, want)
		}
	}
	if wait, _ := rulesOf(t, Spec{Filter: "all", Retries: 20, Backoff: 3600}).RetryAfter(20); wait != maxBackoff {
		t.Errorf("the longest wait is %v", wait)
	}
	good := Spec{Filter: "all", Schedule: "daily"}
	for name, change := range map[string]func(*Spec){
		"filter":    func(s *Spec) { s.Filter = "" },
		"schedule":  func(s *Spec) { s.Schedule = "at noon" },
		"window":    func(s *Spec) { s.Windows = []string{"night"} },
		"zone":      func(s *Spec) { s.TimeZone = "Europe/Atlantis" },
		"local":     func(s *Spec) { s.TimeZone = "Local" },
		"missed":    func(s *Spec) { s.Missed = "never" },
		"rpo":       func(s *Spec) { s.RPO = -1 },
		"retries":   func(s *Spec) { s.Retries = 21 },
		"priority":  func(s *Spec) { s.Priority = 1001 },
		"retention": func(s *Spec) { s.Retention.Weekly = -1 },
		"limits":    func(s *Spec) { s.Limits.Host = -1 },
	} {
		s := good
		change(&s)
		if _, err := Understand(s); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}
