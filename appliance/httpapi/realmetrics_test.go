package httpapi_test

import (
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

const monitoring = "../../docs/monitoring"

// scrape reads /metrics.
func (r *real) scrape(accept string) string {
	r.t.Helper()
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, r.url+"/metrics", nil)
	check(r.t, err)
	check(r.t, r.authorize(r.ctx, req))
	req.Header.Set("Accept", accept)
	resp, err := r.plain.Do(req)
	check(r.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	check(r.t, err)
	if resp.StatusCode != http.StatusOK {
		r.t.Fatalf("/metrics: %s %s", resp.Status, text)
	}
	return string(text)
}

// names are those of the series in a text that has samples, or expressions.
var names = regexp.MustCompile(`\b(?:cairn|go|process)_[a-z0-9_]+`)

// busy makes an appliance in which everything that can be measured has happened.
func busy(t *testing.T) *real {
	r := newReal(t)
	made, err := r.CreateConnectionWithResponse(r.ctx, nil, client.CreateConnectionRequest{Name: "lab", Platform: string(memplatform.PlatformName), Address: "here"})
	check(t, err)
	got(t, made.JSON201, made.HTTPResponse, made.ApplicationProblemJSONDefault)
	dir := t.TempDir()
	built, err := r.CreateRepositoryWithResponse(r.ctx, nil, client.CreateRepositoryRequest{Name: "mirror", Set: client.NewSet{
		Data: 1, Parity: 1, Force: true, Members: []client.SetMember{{Path: filepath.Join(dir, "a")}, {Path: filepath.Join(dir, "b")}},
	}})
	check(t, err)
	repo := got(t, built.JSON201, built.HTTPResponse, built.ApplicationProblemJSONDefault).ID
	vms, err := r.ListVMsWithResponse(r.ctx, nil)
	check(t, err)
	point := r.backup(got(t, vms.JSON200, vms.HTTPResponse, vms.ApplicationProblemJSONDefault).Items[0].ID, repo)
	policy, err := r.CreatePolicyWithResponse(r.ctx, nil, client.PolicyRequest{Name: "gold", Filter: "all", Schedule: "22:00", Repository: repo})
	check(t, err)
	got(t, policy.JSON201, policy.HTTPResponse, policy.ApplicationProblemJSONDefault)
	verified, err := r.StartVerifyWithResponse(r.ctx, point.ID, &client.StartVerifyParams{Prefer: &wait})
	check(t, err)
	r.succeeded(got(t, verified.JSON200, verified.HTTPResponse, verified.ApplicationProblemJSONDefault))
	swept, err := r.StartRepositoryVerifyWithResponse(r.ctx, repo, &client.StartRepositoryVerifyParams{Prefer: &wait}, client.RepositoryVerifyRequest{})
	check(t, err)
	r.succeeded(got(t, swept.JSON200, swept.HTTPResponse, swept.ApplicationProblemJSONDefault))
	collected, err := r.StartCollectWithResponse(r.ctx, repo, &client.StartCollectParams{Prefer: &wait}, client.CollectRequest{})
	check(t, err)
	r.succeeded(got(t, collected.JSON200, collected.HTTPResponse, collected.ApplicationProblemJSONDefault))
	return r
}

// TestEveryMetricThatIsNamedIsThere: rules, dashboard and documentation name no series that a server does not have, and
// the documentation names all of ours.
func TestEveryMetricThatIsNamedIsThere(t *testing.T) {
	r := busy(t)
	text := r.scrape("text/plain")
	there := map[string]bool{}
	for line := range strings.Lines(text) {
		if name := names.FindString(line); name != "" && !strings.HasPrefix(line, "#") {
			there[name] = true
		}
	}
	for _, file := range []string{"alerts.yaml", "grafana.json"} {
		for _, expression := range expressions(t, file) {
			for _, name := range names.FindAllString(expression, -1) {
				if !there[name] {
					t.Errorf("%s: %s is not exported", file, name)
				}
			}
		}
	}
	page, err := os.ReadFile(filepath.Join(monitoring, "README.md"))
	check(t, err)
	for _, name := range slices.Sorted(maps.Keys(there)) {
		for _, part := range []string{"_bucket", "_sum", "_count"} {
			name = strings.TrimSuffix(name, part)
		}
		if last := name[strings.Index(name, "_")+1:]; strings.HasPrefix(name, "cairn_") && !documented(string(page), last) {
			t.Errorf("README.md does not have %s", name)
		}
	}
	for _, want := range []string{
		`cairn_job_runs_total{kind="backup",result="succeeded"} 1`, `cairn_tasks{state="queued"} 0`, `cairn_hypervisor_up{connection="lab",platform="memory"} 1`,
		`cairn_store_restore_points{repository="mirror"} 1`, `cairn_store_members_missing{repository="mirror"} 0`, `cairn_mover_up{mover="built-in"} 1`,
		"cairn_sample_errors 0", "cairn_snapshots_leftover 0",
		`cairn_vms{protection="protected"} 1`, `cairn_vms{protection="unprotected"} 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %s", want)
		}
	}
	if open := r.scrape("application/openmetrics-text; version=1.0.0"); !strings.HasSuffix(open, "# EOF\n") {
		t.Error("not in the format of OpenMetrics, though that was asked for")
	}
}

// documented looks for the rest of a name behind "cairn_", of which the page has some only as "_rest".
func documented(page, rest string) bool {
	if strings.Contains(page, "`cairn_"+rest+"`") {
		return true
	}
	_, last, _ := strings.Cut(rest, "_")
	return strings.Contains(page, "`_"+last+"`")
}

// expressions are those of a file of rules or of a dashboard.
func expressions(t *testing.T, file string) []string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(monitoring, file))
	check(t, err)
	var v any
	if strings.HasSuffix(file, ".json") {
		check(t, json.Unmarshal(raw, &v))
	} else {
		check(t, yaml.Unmarshal(raw, &v))
	}
	var out []string
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if e, ok := v["expr"].(string); ok {
				out = append(out, e)
			}
			for _, member := range v {
				walk(member)
			}
		case []any:
			for _, item := range v {
				walk(item)
			}
		}
	}
	walk(v)
	if len(out) < 10 {
		t.Fatalf("%s has %d expressions", file, len(out))
	}
	return out
}

func TestPrometheusUnderstandsTheRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil && os.Getenv("CAIRN_LAB") != "" {
		t.Fatal(err)
	}
	if err != nil {
		t.Skip("promtool, of the Debian package prometheus, is not installed")
	}
	out, err := exec.CommandContext(t.Context(), promtool, "check", "rules", filepath.Join(monitoring, "alerts.yaml")).CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
