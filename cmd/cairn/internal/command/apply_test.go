package command

import (
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
)

// declared is an appliance with something of each kind, which answers plans with what it is given.
func declared(t *testing.T, plan client.CoveragePlan) *appliance {
	t.Helper()
	a := guarded(t)
	a.get("/repositories/repo_02", client.Repository{ID: "repo_02", Name: "second"})
	a.get("/exclusions/excl_2", excluded[1])
	for pattern, v := range map[string]any{
		"POST /coverage/plan":      plan,
		"POST /repositories":       client.Repository{ID: "repo_02", Name: "second", KeyFile: "/k"},
		"PATCH /repositories/{id}": mainRepo,
	} {
		a.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { reply(w, 200, v) })
	}
	a.HandleFunc("POST /connections", func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 1024)
		if n, _ := r.Body.Read(b); strings.Contains(string(b[:n]), "broken") {
			refuse(w, 409, "conflict", "it is broken", "", "")
			return
		}
		reply(w, 201, client.Connection{ID: "conn_03", Name: "engine"})
	})
	a.HandleFunc("PUT /connections/{id}", func(w http.ResponseWriter, r *http.Request) {
		change := client.ConnectionChange{Fields: []string{}}
		b := make([]byte, 1024)
		if n, _ := r.Body.Read(b); strings.Contains(string(b[:n]), "hunter2") {
			change.Fields = []string{"password"}
		}
		reply(w, 200, change)
	})
	for _, pattern := range []string{"DELETE /connections/conn_01", "DELETE /connections/conn_02", "DELETE /repositories/repo_01", "DELETE /exclusions/excl_2"} {
		a.HandleFunc(pattern, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) })
	}
	return a
}

func site(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pw"), []byte("hunter2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "site.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// changed are the requests that change something.
func (a *appliance) changed() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(a.requests), func(r string) bool {
		return strings.HasPrefix(r, "GET ") || strings.HasPrefix(r, "POST /coverage/plan") || strings.Contains(r, "dry_run=true")
	})
}

const declaredSite = `
connections:
  - {name: lab, platform: kvm, address: qemu:///system, password: {file: pw}}
  - {name: engine, platform: ovirt, address: https://engine}
repositories:
  - {name: second, path: /srv/second, verification: {every_days: 7, bytes_per_second: 0}}
policies:
  - {name: gold, filter: tag = gold, schedule: hourly, repository: main}
  - {name: bronze, filter: all, schedule: daily, repository: second}
exclusions:
  - {filter: name = db, reason: made anew}
`

var declaredPlan = client.CoveragePlan{
	Policies: []client.PolicyDiff{{Name: "bronze", Action: client.PlanCreate}, {Name: "gold", Action: client.PlanChange, Fields: []string{"schedule"}}},
	Changed:  []client.PlannedVM{{VMID: "vm_1", Name: "web01", After: "bronze"}, {VMID: "vm_2", Name: "db", Before: "gold"}},
	Pruned:   []client.PointVerdict{{RestorePointID: "rp_01", VMID: "vm_1", VMName: "web01", Time: noon, SizeBytes: 1 << 30, Reasons: []string{}}},
}

func TestPlanChangesNothing(t *testing.T) {
	a := declared(t, declaredPlan)
	got := a.run(t, "plan", "-f", site(t, declaredSite))
	if got.code != 0 || len(a.changed()) > 0 {
		t.Errorf("exit code %d, requests %q, stderr %q", got.code, a.changed(), got.stderr)
	}
	compare(t, filepath.Join("testdata", "pages", "plan.txt"), got.stdout)
	if got := a.run(t, "plan", "--exit-code", "-f", site(t, declaredSite)); got.code != 3 {
		t.Errorf("--exit-code: %d, want 3", got.code)
	}
	got = a.run(t, "plan", "-o", "json", "-f", site(t, declaredSite))
	if got.code != 0 || strings.Contains(got.stdout+got.stderr, "hunter2") || !strings.Contains(got.stdout, `"action": "create"`) {
		t.Errorf("as JSON: %d %s%s", got.code, got.stdout, got.stderr)
	}
}

func TestApply(t *testing.T) {
	a := declared(t, declaredPlan)
	file := site(t, declaredSite)
	if got := a.run(t, "apply", "-f", file); got.code != 2 || !strings.Contains(got.stderr, "1 VM unprotected, 1 restore point pruned") || len(a.changed()) > 0 {
		t.Errorf("without a yes: %d, %q, %q", got.code, got.stderr, a.changed())
	}
	got := a.run(t, "apply", "--yes", "-f", file)
	if got.code != 0 || strings.Contains(got.stdout+got.stderr, "hunter2") {
		t.Fatalf("exit code %d, stderr %q", got.code, got.stderr)
	}
	want := []string{
		`PUT /connections/conn_01 {"address":"qemu:///system","password":"hunter2"}`,
		`POST /connections {"address":"https://engine","name":"engine","platform":"ovirt"}`,
		`POST /repositories {"name":"second","path":"/srv/second"}`,
		`PATCH /repositories/repo_02 `, `POST /exclusions `, `POST /policies {`, `PUT /policies/pol_01 {`,
	}
	is := a.changed()
	for i := range want {
		if i >= len(is) || !strings.HasPrefix(is[i], want[i]) {
			t.Fatalf("requests %q\nwant %q", is, want)
		}
	}
	if !strings.Contains(is[5], `"repository":"repo_02"`) || len(is) != len(want) {
		t.Errorf("requests %q", is)
	}
}

// What fails ends it there; what was done before stays, and the exit code says so.
func TestApplyThatFailsInBetween(t *testing.T) {
	one := "  - {name: %, platform: ovirt, address: https://engine}\n"
	for names, want := range map[string]struct{ code, requests int }{"broken good": {6, 1}, "good broken other": {3, 2}} {
		a, text := declared(t, client.CoveragePlan{}), "connections:\n"
		for _, name := range strings.Fields(names) {
			text += strings.ReplaceAll(one, "%", name)
		}
		got := a.run(t, "apply", "-f", site(t, text))
		if got.code != want.code || len(a.changed()) != want.requests || !strings.Contains(got.stderr, "it is broken") {
			t.Errorf("%s: %d, requests %q, stderr %q", names, got.code, a.changed(), got.stderr)
		}
	}
}

// What is there is exported as a file that changes nothing.
func TestExportIsApplied(t *testing.T) {
	a := declared(t, client.CoveragePlan{})
	got := a.run(t, "export")
	if got.code != 0 {
		t.Fatalf("export: %d, %s", got.code, got.stderr)
	}
	compare(t, filepath.Join("testdata", "pages", "export.txt"), got.stdout)
	file := site(t, got.stdout)
	for _, args := range [][]string{{"apply", "-f", file}, {"apply", "--remove", "-f", file}} {
		got := a.run(t, args...)
		if got.code != 0 || !strings.Contains(got.stdout, "Everything is as the files say.") || len(a.changed()) > 0 {
			t.Errorf("%q: %d, %s%s, requests %q", args, got.code, got.stdout, got.stderr, a.changed())
		}
	}
}

func TestApplyRemovesOnlyWhenAsked(t *testing.T) {
	a := declared(t, client.CoveragePlan{Policies: []client.PolicyDiff{{Name: "gold", Action: client.PlanRemove}}})
	file := site(t, "policies: []")
	got := a.run(t, "plan", "--remove", "-f", file)
	if got.code != 0 || strings.Count(got.stdout, "\n- ") < 4 && strings.Count(got.stdout, "- ") < 4 {
		t.Errorf("plan: %d %s%s", got.code, got.stdout, got.stderr)
	}
	if got := a.run(t, "apply", "--remove", "--yes", "-f", file); got.code != 0 {
		t.Fatalf("apply: %d %s", got.code, got.stderr)
	}
	var kinds []string
	for _, r := range a.changed() {
		kinds = append(kinds, strings.Join(strings.Split(r, "/")[:2], "/"))
	}
	kinds = slices.Compact(kinds)
	if diff := cmp.Diff(kinds, []string{"DELETE /exclusions", "DELETE /policies", "DELETE /repositories", "DELETE /connections"}); diff != "" {
		t.Errorf("order: %s", diff)
	}
}

func TestApplyRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"connections: [{name: lab, platform: ovirt, address: x}]":                                    "is one to kvm",
		"repositories: [{name: main, path: /elsewhere}]":                                             "shall lie in /elsewhere",
		"policies: [{name: a, filter: all, schedule: daily, repository: none}]":                      `names repository "none"`,
		"repositories: [{name: two, path: /b}]\npolicies: [{name: a, filter: all, schedule: daily}]": "names no repository, and there are 2",
		"connections: [{name: lab, platform: kvm, address: x, password: {env: NOT_SET}}]":            "the environment variable is not set",
		"connections: [{name: lab, platform: kvm, address: x, passwort: hunter2}]":                   `there is no "passwort" here`,
	} {
		a := declared(t, client.CoveragePlan{})
		got := a.run(t, "apply", "--yes", "-f", site(t, text))
		if got.code == 0 || !strings.Contains(got.stderr, want) || strings.Contains(got.stderr, "hunter2") || len(a.changed()) > 0 {
			t.Errorf("%s: %d %q, requests %q", text, got.code, got.stderr, a.changed())
		}
	}
	a := declared(t, client.CoveragePlan{})
	if got := a.run(t, "apply"); got.code != 2 {
		t.Errorf("without files: %d", got.code)
	}
	// A policy that stays needs its repository.
	got := a.run(t, "plan", "--remove", "-f", site(t, "policies: [{name: gold, filter: tag = gold, schedule: hourly, repository: main}]"))
	if got.code != 2 || !strings.Contains(got.stderr, "needs a repository that would be detached") {
		t.Errorf("%d %s", got.code, got.stderr)
	}
}
