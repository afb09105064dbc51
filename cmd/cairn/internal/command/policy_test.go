package command

import (
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
)

var (
	gold = client.Policy{
		ID: "pol_01", Name: "gold", Version: 2, Filter: "tag = gold", Priority: 10, Schedule: "Mon..Fri 22:00", TimeZone: "Europe/Zurich", Windows: []string{"20:00-06:00"},
		Missed: client.MissedSkip, WithinSeconds: 5400, RPOSeconds: 93600, RepositoryID: "repo_01", Retention: client.Retention{Daily: 14, Weekly: 8},
		Retries: 2, BackoffSeconds: 300, Limits: client.PolicyLimits{Connection: 8, Host: 2}, CreatedAt: noon.Add(-48 * time.Hour), UpdatedAt: noon.Add(-2 * time.Hour), UpdatedBy: "admin",
		VMs: 2, Waiting: 1, Running: 1, NextDue: []time.Time{noon.Add(10 * time.Hour), noon.Add(34 * time.Hour)},
		LastMissed: client.MissedDue{Due: noon.Add(-38 * time.Hour), Reason: "nobody looked until it was due again: the manager was off, or its clock was put forward", VMs: 2},
	}
	rest = client.Policy{
		ID: "pol_02", Name: "rest", Version: 1, Filter: "all", Paused: true, Schedule: "daily", TimeZone: "UTC", Missed: client.MissedRun, RPOSeconds: 129600, RPODerived: true,
		RepositoryID: "repo_01", BackoffSeconds: 300, CreatedAt: noon, UpdatedAt: noon,
	}
	turns = []client.Turn{
		{ID: "turn_3", PolicyID: "pol_01", VMID: "vm_web", VMName: "web01", Due: noon.Add(-14 * time.Hour), State: client.TurnRunning, Attempt: 2, RunID: "run_03"},
		{ID: "turn_2", PolicyID: "pol_01", VMID: "vm_db1", VMName: "db", Due: noon.Add(-14 * time.Hour), State: client.TurnWaiting, Reason: "the window 20:00-06:00 is closed"},
		{ID: "turn_1", PolicyID: "pol_01", VMID: "vm_web", VMName: "web01", Due: noon.Add(-38 * time.Hour), State: client.TurnDone, Attempt: 1, RunID: "run_01", EndedAt: noon.Add(-37 * time.Hour)},
	}
	verdicts = []client.PointVerdict{
		{RestorePointID: "rp_02", VMID: "vm_web", VMName: "web01", Time: noon.Add(-26 * time.Hour), SizeBytes: 12 << 30, Reasons: []string{"daily 1 of 14", "the newest good restore point"}},
		{RestorePointID: "rp_01", VMID: "vm_web", VMName: "web01", Time: noon.Add(-50 * time.Hour), SizeBytes: 12 << 30, Reasons: []string{}},
	}
	covered = []client.Coverage{
		{VMID: "vm_db1", Name: "db", ConnectionID: "conn_01", State: client.ProtectionExcluded, ExclusionID: "excl_1", Why: "It is excluded by ana: is made anew each night."},
		{VMID: "vm_web", Name: "web01", ConnectionID: "conn_01", State: client.ProtectionLate, PolicyID: "pol_01", Policy: "gold", Why: "Policy gold covers it: its filter selects the VM: \"tag = gold\".", RestorePointID: "rp_02",
			RestorePointAt: noon.Add(-30 * time.Hour), RPOAchievedSeconds: 108000, RPOTargetSeconds: 93600, Waits: "the window 20:00-06:00 is closed"},
	}
	excluded = []client.Exclusion{
		{ID: "excl_1", Filter: "id = vm_db1", Reason: "is made anew each night", Holds: true, VMs: 1, CreatedAt: noon, CreatedBy: "ana"},
		{ID: "excl_2", Filter: "tag = scratch", Reason: "moves", EndsAt: noon.Add(-time.Hour), CreatedAt: noon},
	}
)

var kept = []client.Maintenance{
	{Kind: "inventory", Schedule: "*:0/15", TimeZone: "UTC", NextAt: noon.Add(time.Minute), LastStartedAt: noon.Add(-14 * time.Minute), LastResult: "1 of 2 connections read: 3 VMs, 1 new, 0 changed, 0 gone", LastError: client.Failure{Detail: "read inventory of far: connection refused"}},
	{Kind: "verify", Schedule: "*:00", TimeZone: "Europe/Zurich", Windows: []string{"08:00-18:00"}, BudgetBytes: 256 << 30, Busy: true},
	{Kind: "prune", Schedule: "05:00", TimeZone: "UTC", BudgetBytes: 1 << 40, LastStartedAt: noon.Add(-7 * time.Hour), LastResult: "2 of 2 repositories are pruned", LastParts: []client.MaintenancePart{
		{ID: "repo_01", Name: "large", At: noon.Add(-7 * time.Hour), RunID: "run_11", State: client.StateFailed, Error: client.Failure{Detail: "the disk is gone"}},
		{ID: "repo_02", Name: "main", At: noon.Add(-7 * time.Hour), RunID: "run_12", State: client.StateSucceeded, Result: "12 restore points pruned, 40 stay"},
	}},
	{Kind: "collect", Schedule: "05:30", TimeZone: "UTC", Paused: true},
}

// guarded is an appliance with policies.
func guarded(t *testing.T) *appliance {
	a := newAppliance(t)
	a.inventory()
	a.get("/policies", client.PolicyList{Items: []client.Policy{gold, rest}})
	a.get("/policies/pol_01", gold)
	a.get("/policies/pol_02", rest)
	a.get("/policies/pol_01/turns", client.TurnList{Items: turns})
	a.get("/exclusions", client.ExclusionList{Items: excluded})
	a.get("/exclusions/excl_1", excluded[0])
	a.get("/coverage", client.CoverageList{Items: covered, Counts: client.CoverageCounts{Late: 1, Excluded: 1}})
	a.get("/maintenance", client.MaintenanceList{Items: kept})
	a.get("/maintenance/verify", kept[1])
	a.get("/maintenance/prune", kept[2])
	a.get("/coverage/history", client.CoverageHistory{Items: []client.CoverageDay{
		{Date: "2026-11-20", VMs: 2, VMsLate: 1, CoveredSeconds: 172800, LateSeconds: 17, Attained: 0.9999, RPOWorstSeconds: 93617, RPOTargetSeconds: 93600, RestorePoints: 1},
		{Date: "2026-11-21", VMs: 2, CoveredSeconds: 90000, Attained: 1, RPOWorstSeconds: 3600, RPOTargetSeconds: 93600, RestorePoints: 2},
	}})
	for pattern, v := range map[string]any{
		"PUT /maintenance/verify":            kept[1],
		"POST /maintenance/verify/run":       kept[1],
		"POST /policies/pol_01/preview":      client.Preview{VMs: 1, Kept: 1, Pruned: 1, Items: verdicts},
		"POST /policies/pol_01/run":          client.PolicyRun{VMs: 2},
		"POST /policies":                     rest,
		"PUT /policies/pol_01":               client.PolicyPlan{Policy: gold, Changed: []client.PlannedVM{{VMID: "vm_web", Name: "web01", Before: "gold"}}, Pruned: verdicts[1:]},
		"PUT /policies/pol_02":               client.PolicyPlan{Policy: gold, Changed: []client.PlannedVM{}, Pruned: []client.PointVerdict{}},
		"POST /exclusions":                   excluded[0],
		"POST /restore-points/rp_02/hold":    client.RestorePoint{ID: "rp_02", VMName: "web01"},
		"POST /restore-points/rp_02/release": client.RestorePoint{ID: "rp_02", VMName: "web01"},
	} {
		a.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, v) })
	}
	for _, pattern := range []string{"DELETE /policies/pol_01", "DELETE /exclusions/excl_1"} {
		a.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	}
	return a
}

func TestPolicyPages(t *testing.T) {
	a := guarded(t)
	for _, page := range []string{
		"policy list", "policy list -o wide", "policy list -o name", "policy show gold", "policy show rest -o yaml", "policy turns gold", "policy preview gold --all", "exclusion list", "coverage", "maintenance list", "maintenance show prune",
		"coverage history", "coverage history web01",
		"coverage -o wide", "coverage -o name",
	} {
		t.Run(page, func(t *testing.T) {
			if strings.HasPrefix(page, "policy show rest") {
				a.get("/policies/pol_02/turns", client.TurnList{})
			}
			got := a.run(t, strings.Fields(page)...)
			if got.code != 0 {
				t.Fatalf("exit code %d, stderr %q", got.code, got.stderr)
			}
			compare(t, filepath.Join("testdata", "pages", strings.ReplaceAll(page, " ", "_")+".txt"), got.stdout)
		})
	}
}

// TestPolicyVerbs checks what is sent for each command that changes something.
func TestPolicyVerbs(t *testing.T) {
	a := guarded(t)
	const editBase = `"backoff_seconds":300,"filter":"tag = gold","limits":{"connection":8,"host":2},"missed":"skip","name":"gold",`
	tests := []struct {
		args    []string
		request string
		says    string
	}{
		{
			[]string{"policy", "create", "all", "--filter", "all", "--schedule", "22:00", "--keep", "daily=14", "--keep", "weekly=8", "--rpo", "26h", "--retries", "0", "--limit", "host=2", "--window", "20:00-06:00", "--zone", "Europe/Zurich"},
			`POST /policies {"filter":"all","limits":{"host":2},"name":"all","repository":"repo_01","retention":{"daily":14,"weekly":8},"retries":0,"rpo_seconds":93600,"schedule":"22:00","time_zone":"Europe/Zurich","windows":["20:00-06:00"]}`, "Late turns",
		},
		{
			[]string{"policy", "edit", "gold", "--keep", "all", "--window", "", "--dry-run"},
			`PUT /policies/pol_01?dry_run=true {` + editBase + `"priority":10,"repository":"repo_01","retries":2,"rpo_seconds":93600,"schedule":"Mon..Fri 22:00","time_zone":"Europe/Zurich","within_seconds":5400}`, "Nothing was changed.",
		},
		{[]string{"policy", "edit", "gold", "--repository", "main", "--name", "g"}, `"name":"g","priority":10,"repository":"repo_01"`, "Changed."},
		{[]string{"policy", "resume", "rest"}, `PUT /policies/pol_02 {"backoff_seconds":300,"filter":"all","missed":"run","name":"rest","repository":"repo_01","retries":0,"schedule":"daily","time_zone":"UTC"}`, "rest: next 2026-11-21 22:00:00 UTC."},
		{[]string{"policy", "pause", "gold"}, `"paused":true`, "gold: next"},
		{[]string{"policy", "run", "gold"}, "POST /policies/pol_01/run", "2 VMs have their turn."},
		{[]string{"policy", "preview", "gold", "--keep", "last=1", "--vm", "web01"}, `POST /policies/pol_01/preview {"retention":{"last":1},"vm":"vm_web"}`, "1 stay, 1 would be pruned"},
		{[]string{"policy", "turns", "gold", "--state", "failed", "--vm", "web01"}, "state=failed&vm=vm_web", "web01"},
		{[]string{"policy", "remove", "gold", "--yes"}, "DELETE /policies/pol_01", "Its restore points stay."},
		{[]string{"exclusion", "add", "--vm", "web01", "--reason", "moves", "--until", "2027-01-31"}, `POST /exclusions {"ends_at":"2027-01-31T00:00:00Z","filter":"id = vm_web","reason":"moves"}`, "excl_1: 1 VM excluded now."},
		{[]string{"exclusion", "remove", "excl_1"}, "DELETE /exclusions/excl_1", ""},
		{[]string{"coverage", "--state", "late", "--policy", "gold", "--filter", "all"}, "GET /coverage?filter=all&state=late&policy=pol_01&limit=1000", "0 protected, 1 late, 0 never ran, 0 unprotected, 1 excluded, 0 unprotectable"},
		{[]string{"vm", "list", "--filter", "cluster = prod"}, "GET /vms?filter=cluster+%3D+prod", ""},
		{[]string{"point", "hold", "rp_02", "--reason", "before the upgrade"}, `POST /restore-points/rp_02/hold {"reason":"before the upgrade"}`, "Held rp_02 of web01."},
		{[]string{"maintenance", "set", "verify", "--window", "", "--budget", "1G"}, `PUT /maintenance/verify {"budget_bytes":1073741824,"schedule":"*:00","time_zone":"Europe/Zurich"}`, "Schedule:"},
		{[]string{"maintenance", "run", "verify"}, "POST /maintenance/verify/run", "under way"},
		{[]string{"exclusion", "add", "--vm", "web01", "--reason", "r", "--dry-run"}, "GET /vms?filter=", "web01"},
		{[]string{"point", "release", "rp_02"}, "POST /restore-points/rp_02/release", "Released rp_02."},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args[:3], " "), func(t *testing.T) {
			before := len(a.seen())
			got := a.run(t, tt.args...)
			requests := strings.Join(a.seen()[before:], "\n")
			if got.code != 0 || !strings.Contains(requests, tt.request) {
				t.Errorf("exit code %d, requests\n%s\nwant\n%s\n%s", got.code, requests, tt.request, got.stderr)
			}
			if !strings.Contains(got.stdout+got.stderr, tt.says) {
				t.Errorf("it says %q, %q; want %q", got.stdout, got.stderr, tt.says)
			}
		})
	}
}

func TestPolicyUsage(t *testing.T) {
	a := guarded(t)
	for _, tt := range []struct{ args, word string }{
		{"policy create x --filter all", "--schedule"},
		{"policy create x --filter all --schedule 22:00 --keep daily", "is no rule"},
		{"policy create x --filter all --schedule 22:00 --keep daily=1,daily=2", "rule daily is there twice"},
		{"policy create x --filter all --schedule 22:00 --keep daily=1,weekly=2 --keep daily=1", "rule daily is there twice"},
		{"policy create x --filter all --schedule 22:00 --keep all --keep daily=1", `"all" is no rule`},
		{"policy edit gold --keep=", "is no rule"},
		{"policy preview gold --keep last=2,last=3", "rule last is there twice"},
		{"policy create x --filter all --schedule 22:00 --limit vm=2", "is no limit"},
		{"policy create x --filter all --schedule 22:00 --limit host=2 --limit connection=3,host=4", "limit host is there twice"},
		{"connection add lab qemu:///system --option a=b,c=d,a=e", "a is there twice"},
		{"connection edit lab --option a=b --option a=b", "a is there twice"},
		{"connection edit lab --option a", "it is not KEY=VALUE"},
		{"policy create x --filter all --schedule 22:00 --rpo soon", "is no time"},
		{"exclusion add --reason r", "--vm or --filter"},
		{"exclusion add --vm web01", "--reason"},
		{"exclusion add --vm web01 --reason r --until soon", "is no date"},
		{"point hold rp_02", "--reason"},
		{"maintenance set verify", "nothing was said"},
		{"coverage history --since 9x", "no day"},
	} {
		if got := a.run(t, strings.Fields(tt.args)...); got.code != 2 || !strings.Contains(got.stderr, tt.word) {
			t.Errorf("%s: exit code %d, %q", tt.args, got.code, got.stderr)
		}
	}
}

// TestPolicyThatIsNeverDue says so instead of leaving it out.
func TestPolicyThatIsNeverDue(t *testing.T) {
	a := newAppliance(t)
	a.inventory()
	over := rest
	over.Paused, over.Schedule, over.RPOSeconds = false, "2020-01-01 22:00", 0
	a.HandleFunc("POST /policies", func(w http.ResponseWriter, _ *http.Request) { reply(w, 201, over) })
	got := a.run(t, "policy", "create", "rest", "--filter", "all", "--schedule", over.Schedule)
	for _, want := range []string{"never, its schedule is over", "its VMs count as late"} {
		if got.code != 0 || !strings.Contains(got.stdout, want) {
			t.Errorf("exit code %d, no %q in:\n%s%s", got.code, want, got.stdout, got.stderr)
		}
	}
}

func TestSpans(t *testing.T) {
	for text, seconds := range map[string]int64{"90m": 5400, "26h": 93600, "7d": 604800, "2w": 1209600, "0": 0} {
		if d, err := parseSpan(text); err != nil || int64(d.Seconds()) != seconds {
			t.Errorf("%s: %v, %v", text, d, err)
		}
	}
	for _, text := range []string{"30501w", "213504d", "", "d", "-1d", "99999999999999999999h"} { // the first two would become three days and half an hour
		if d, err := parseSpan(text); err == nil {
			t.Errorf("%q: got %v", text, d)
		}
	}
	got := map[int64]string{}
	for _, s := range []int64{0, 59, 60, 5400, 93600, 86400, 90061} {
		got[s] = span(s)
	}
	want := map[int64]string{0: "", 59: "59s", 60: "1m", 5400: "1h30m", 93600: "1d2h", 86400: "1d", 90061: "1d1h"}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
}

func TestCoverageOfAVM(t *testing.T) {
	got := map[string]string{}
	for _, f := range coverageFields(covered[1]) {
		got[f.Name] = f.Value
	}
	want := map[string]string{
		"Protection": "late", "RPO": "1d6h achieved, 1d2h promised", "Why": covered[1].Why, "Waits": covered[1].Waits,
	}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
	if fields := coverageFields(client.Coverage{}); fields != nil {
		t.Errorf("of a VM that is gone: %v", fields)
	}
}

// TestMaintenanceRunWaits: for the maintenance and then for the runs that it has begun, of which the worst decides.
func TestMaintenanceRunWaits(t *testing.T) {
	a := guarded(t)
	busy := kept[2]
	busy.Busy = true
	a.HandleFunc("POST /maintenance/prune/run", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, busy) })
	a.get("/runs/run_11", client.Run{ID: "run_11", Kind: client.RunPrune, State: client.StateFailed})
	a.get("/runs/run_12", client.Run{ID: "run_12", Kind: client.RunPrune, State: client.StateSucceeded})
	got := a.run(t, "maintenance", "run", "prune", "--wait")
	requests := strings.Join(a.seen(), "\n")
	if got.code != 1 || !strings.Contains(requests, "GET /runs/run_11") || !strings.Contains(requests, "GET /runs/run_12") || !strings.Contains(got.stdout, "the disk is gone") {
		t.Errorf("exit code %d, %s%s, requests\n%s", got.code, got.stdout, got.stderr, requests)
	}
}

// TestMaintenanceRunFails where one manager could not begin, although another one had no trouble and ended later.
func TestMaintenanceRunFails(t *testing.T) {
	for name, tt := range map[string]struct {
		at   time.Time
		want int
	}{"this time": {noon, 1}, "the time before": {noon.Add(-time.Hour), 0}} {
		t.Run(name, func(t *testing.T) {
			a := guarded(t)
			m := client.Maintenance{Kind: "collect", LastStartedAt: noon, LastResult: "1 of 2 repositories are collected", LastParts: []client.MaintenancePart{
				{ID: "repo_01", Name: "large", At: tt.at, Error: client.Failure{Detail: "it cannot be opened"}},
				{ID: "repo_02", Name: "main", At: noon, RunID: "run_12", State: client.StateSucceeded},
			}}
			a.get("/maintenance/collect", m)
			a.HandleFunc("POST /maintenance/collect/run", func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, m) })
			a.get("/runs/run_12", client.Run{ID: "run_12", Kind: client.RunCollect, State: client.StateSucceeded})
			if got := a.run(t, "maintenance", "run", "collect", "--wait"); got.code != tt.want {
				t.Errorf("exit code %d, want %d: %s%s", got.code, tt.want, got.stdout, got.stderr)
			}
		})
	}
}

// TestExclusionsAreNamedAtOnce asks for the names of the VMs of all exclusions by their ids, as many at once as a filter can hold.
func TestExclusionsAreNamedAtOnce(t *testing.T) {
	a := newAppliance(t)
	var list []client.Exclusion
	for i := range 150 {
		list = append(list, client.Exclusion{ID: fmt.Sprintf("excl_%03d", i), Filter: fmt.Sprintf("id = vm_01h455vb4pex5vsknk084sn%03d", i), Holds: true, VMs: 1})
	}
	list = append(list, client.Exclusion{ID: "excl_web", Filter: "id = vm_web"}, client.Exclusion{ID: "excl_or", Filter: "id = vm_db1 or all"})
	a.get("/exclusions", client.ExclusionList{Items: list})
	var filters []string
	a.HandleFunc("GET /vms", func(w http.ResponseWriter, r *http.Request) {
		filters = append(filters, r.URL.Query().Get("filter"))
		reply(w, 200, client.VMList{Items: []client.VM{{ID: "vm_web", Name: "web01"}, {ID: "vm_01h455vb4pex5vsknk084sn007", Name: "seven"}}})
	})
	got := a.run(t, "exclusion", "list")
	if got.code != 0 || !regexp.MustCompile(`id = vm_web +web01 `).MatchString(got.stdout) || !regexp.MustCompile(`sn007 +seven `).MatchString(got.stdout) {
		t.Errorf("exit code %d, %s\n%s", got.code, got.stderr, got.stdout)
	}
	if len(filters) != 2 || strings.Count(strings.Join(filters, ","), "vm_") != 151 || len(filters[0]) > 4096 {
		t.Errorf("%d filters are asked for: %q", len(filters), filters)
	}
}
