package policy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/appliance/policy/policytest"
)

func TestRetentionReasons(t *testing.T) {
	day := func(d, h int) time.Time { return time.Date(2026, 3, d, h, 0, 0, 0, time.UTC) }
	points := []policy.Point{
		{ID: "a", Time: day(1, 22)}, {ID: "b", Time: day(2, 22)}, {ID: "c", Time: day(3, 10), Held: "before the upgrade"}, {ID: "d", Time: day(3, 22)},
		{ID: "e", Time: day(4, 22), Damaged: true}, {ID: "f", Time: day(5, 22)}, {ID: "g", Time: day(6, 8), Damaged: true, Needed: "task t reads it"},
	}
	got := map[string][]string{}
	for _, v := range (policy.Retention{Last: 1, Daily: 3, Monthly: 2}).Apply(points, time.UTC) {
		got[v.ID] = v.Reasons
	}
	want := map[string][]string{
		"a": nil,
		"b": {"daily 3 of 3"}, // of the good ones
		"c": {"held: before the upgrade"},
		"d": {"daily 2 of 3"},
		"e": {"daily 3 of 3"},
		"f": {"last 1 of 1", "daily 2 of 3", "daily 1 of 3", "monthly 1 of 2", "the newest good restore point"},
		"g": {"last 1 of 1", "daily 1 of 3", "monthly 1 of 2", "task t reads it"},
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
}

func TestRetentionKeepsAllOrTheLast(t *testing.T) {
	at := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	damaged := []policy.Point{{ID: "a", Time: at, Damaged: true}, {ID: "b", Time: at.Add(time.Hour), Damaged: true}}
	for _, tt := range []struct {
		name   string
		r      policy.Retention
		points []policy.Point
		want   string
	}{
		{"nothing said", policy.Retention{}, []policy.Point{{ID: "a", Time: at}, {ID: "b", Time: at.Add(time.Hour)}}, "b a"},
		{"only damaged ones", policy.Retention{Hourly: 1}, damaged, "b"},
		{"no restore points", policy.Retention{Last: 1}, nil, ""},
		{"the good one is old", policy.Retention{Last: 1}, append(slices.Clone(damaged), policy.Point{ID: "c", Time: at.AddDate(-9, 0, 0)}), "b c"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(keptIDs(tt.r.Apply(tt.points, time.UTC)), " "); got != tt.want {
				t.Errorf("kept %q, want %q", got, tt.want)
			}
		})
	}
}

func place(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := policy.LoadZone(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

func keptIDs(verdicts []policy.Verdict) []string {
	var out []string
	for _, v := range verdicts {
		if v.Keep() {
			out = append(out, v.ID)
		}
	}
	return out
}

// TestRetentionAgainstOracle compares with a program that counts, for every restore point and every rule, the later periods.
func TestRetentionAgainstOracle(t *testing.T) {
	zones := []*time.Location{time.UTC, place(t, "Europe/Zurich"), place(t, "America/New_York"), place(t, "Pacific/Apia")}
	pruned := 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		loc := zones[r.IntN(len(zones))]
		rules := policy.Retention{r.IntN(4), r.IntN(6), r.IntN(8), r.IntN(5), r.IntN(4), r.IntN(3)}
		points := randomHistory(r)
		got := keptIDs(rules.Apply(points, loc))
		slices.Sort(got)
		want := policytest.Keeps(rules, points, loc)
		if diff := cmp.Diff(got, want); diff != "" {
			t.Fatalf("seed %d, %+v in %s, -got +want:\n%s", seed, rules, loc, diff)
		}
		pruned += len(points) - len(got)
	}
	if pruned == 0 {
		t.Error("nothing was ever pruned: the test compares nothing")
	}
}

func randomHistory(r *rand.Rand) []policy.Point {
	at := time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(r.IntN(400*24)) * time.Hour)
	steps := []time.Duration{15 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour, 9 * 24 * time.Hour, 60 * 24 * time.Hour}
	var out []policy.Point
	for i := range r.IntN(120) {
		at = at.Add(time.Duration(r.Int64N(int64(steps[r.IntN(len(steps))]))))
		p := policy.Point{ID: fmt.Sprintf("rp%03d", i), Time: at, Damaged: r.IntN(9) == 0}
		if r.IntN(20) == 0 {
			p.Held = "a reason"
		}
		out = append(out, p)
	}
	r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
