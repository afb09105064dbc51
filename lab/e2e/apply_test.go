package e2e

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
)

// commandLine is the cairn program beside an appliance.
type commandLine struct {
	*appliance
	binary, dir string
	env         []string
}

func newCommandLine(a *appliance) *commandLine {
	a.t.Helper()
	c := &commandLine{appliance: a, dir: a.t.TempDir()}
	c.binary = filepath.Join(c.dir, "cairn")
	command(a.t, "go", "build", "-o", c.binary, "github.com/cairn-backup/cairn/cmd/cairn")
	f := regexp.MustCompile(`CA fingerprint:\s+([0-9a-f]{64})`).FindStringSubmatch(a.log.String())
	if f == nil {
		a.t.Fatal("cairnd printed no fingerprint")
	}
	c.env = append(os.Environ(), "CAIRN_SERVER=https://"+a.addr, "CAIRN_TOKEN="+a.token, "CAIRN_CA_FINGERPRINT="+f[1], "CAIRN_CONFIG="+filepath.Join(c.dir, "config.yaml"))
	return c
}

// cairn runs a command line, which must end with a code, and returns its standard output.
func (c *commandLine) cairn(code int, args ...string) string {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), c.binary, args...)
	var errs strings.Builder
	cmd.Env, cmd.Dir, cmd.Stderr = c.env, c.dir, &errs
	out, err := cmd.Output()
	got := 0
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		got = e.ExitCode()
	} else if err != nil {
		c.t.Fatal(err)
	}
	if got != code {
		c.t.Fatalf("cairn %s ended with %d, want %d:\n%s%s", strings.Join(args, " "), got, code, out, errs.String())
	}
	return string(out)
}

func (c *commandLine) file(name, text string) string {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return name
}

// changes are the entries of the audit log; what changes anything leaves one.
func (c *commandLine) changes() int {
	c.t.Helper()
	var l client.AuditList
	c.must("GET", "/audit?limit=1000", nil, &l)
	return len(l.Items)
}

// What is exported is what there is; changed, planned and applied it is what there is then, once; and what is refused changes nothing.
func TestApplyMakesItAsTheFilesSay(t *testing.T) {
	needLab(t)
	c := newCommandLine(newAppliance(t))
	vault := filepath.Join(t.TempDir(), "vault")
	site := c.file("site.yaml", `
repositories:
  - {name: main, path: `+vault+`}
policies:
  - {name: gold, filter: name ~ web*, schedule: "22:00", repository: main, retention: {daily: 7}}
  - {name: silver, filter: all, schedule: "23:00", repository: main}
exclusions:
  - {filter: name = old, reason: moves}
`)
	const settled = "Everything is as the files say.\n"
	c.cairn(0, "apply", "--yes", "-f", site)
	export := c.cairn(0, "export")
	if got := c.cairn(0, "plan", "--exit-code", "-f", c.file("export.yaml", export)); got != settled {
		t.Errorf("a plan of the export: %s", got)
	}

	next := strings.NewReplacer("daily: 7", "daily: 3", "reason: moves", "reason: stays").Replace(export)
	changed := c.file("changed.yaml", next)
	before := c.changes()
	const plan = "~ exclusion name = old: reason\n~ policy gold: retention\n"
	if got := c.cairn(3, "plan", "--exit-code", "-f", changed); !strings.HasPrefix(got, plan) {
		t.Errorf("planned %s", got)
	}
	if n := c.changes(); n != before {
		t.Errorf("planning has left %d entries in the audit log", n-before)
	}
	c.cairn(0, "apply", "--yes", "-f", changed)
	if got := c.cairn(0, "plan", "--exit-code", "-f", changed); got != settled {
		t.Errorf("after it was applied: %s", got)
	}
	applied, before := c.cairn(0, "export"), c.changes()
	if diff := cmp.Diff(applied, next); diff != "" {
		t.Errorf("-is +files say:\n%s", diff)
	}
	if got := c.cairn(0, "apply", "--yes", "-f", changed); got != settled || c.changes() != before {
		t.Errorf("applied again: %s", got)
	}

	for name, bad := range map[string]string{
		"no time": strings.Replace(next, "schedule: 23:00", "schedule: 99:99", 1), "no filter": strings.Replace(next, "filter: all", "filter: nothing", 1),
		"no repository": strings.Replace(next, "repository: main", "repository: other", 1), "no such key": next + "\nrules: []\n", "twice": next + "\n---\n" + next,
	} {
		if bad == next {
			t.Fatalf("%s: nothing is wrong with it:\n%s", name, next)
		}
		c.cairn(2, "apply", "--yes", "-f", c.file("bad.yaml", strings.Replace(bad, "daily: 3", "daily: 2", 1))) // gold would change, too
		if got := c.cairn(0, "export"); got != applied || c.changes() != before {
			t.Errorf("%s: it was refused and has changed something: %s", name, cmp.Diff(got, applied))
		}
	}

	// What is in no file goes with --remove only: the policies before the repository that they need.
	empty := c.file("empty.yaml", "policies: []\n")
	if got := c.cairn(0, "apply", "--yes", "-f", empty); got != settled {
		t.Errorf("what is in no file stays: %s", got)
	}
	c.cairn(0, "apply", "--yes", "--remove", "-f", empty)
	var repositories client.RepositoryList
	var policies client.PolicyList
	c.must("GET", "/repositories", nil, &repositories)
	c.must("GET", "/policies", nil, &policies)
	if len(repositories.Items)+len(policies.Items) != 0 {
		t.Errorf("left are %+v and %+v", repositories.Items, policies.Items)
	}
	if _, err := os.Stat(vault); err != nil {
		t.Errorf("the repository's files: %v", err)
	}
}
