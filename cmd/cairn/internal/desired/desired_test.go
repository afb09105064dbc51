package desired

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/internal/boundary"
)

const good = `
# what a site has
connections:
  - name: lab
    platform: kvm
    address: qemu+ssh://root@h1/system
    user: root
    password: {file: pw}
    options: {ssh_key_file: /k, port: 22}
repositories:
  - {name: main, path: /srv/backups, verification: {every_days: 30, bytes_per_second: 0}}
  - name: 007
    set: {data: 1, parity: 1, members: [{path: /a}, {path: /b, domain: d}]}
---
policies:
  - name: gold
    filter: cluster = prod
    schedule: 22:00
    repository: main
    retention: {daily: 14, weekly: 8}
    retries: 0
    fallback: true
exclusions:
  - {filter: name = db, reason: made anew, ends_at: 2027-01-31}
`

var want = State{
	Connections: []Connection{{Name: "lab", Platform: "kvm", Address: "qemu+ssh://root@h1/system", User: "root", Password: &Secret{File: "pw"}, Options: map[string]string{"ssh_key_file": "/k", "port": "22"}}},
	Repositories: []Repository{
		{client.CreateRepositoryRequest{Name: "main", Path: "/srv/backups"}, &client.VerificationSettings{EveryDays: 30}},
		{client.CreateRepositoryRequest{Name: "007", Set: client.NewSet{Data: 1, Parity: 1, Members: []client.SetMember{{Path: "/a"}, {Path: "/b", Domain: "d"}}}}, nil},
	},
	Policies: []client.PolicyRequest{{
		Name: "gold", Filter: "cluster = prod", Schedule: "22:00", Repository: "main", Retention: client.Retention{Daily: 14, Weekly: 8}, Retries: new(int), Fallback: true,
	}},
	Exclusions: []client.ExclusionRequest{{Filter: "name = db", Reason: "made anew", EndsAt: time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC)}},
}

var compareStates = cmp.Comparer(func(a, b Secret) bool { return a.File == b.File && a.Env == b.Env })

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"b.yaml": good, "a.yml": "# nothing", "c.txt": "not: read", "pw": "hunter2\r\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, source := range []string{dir, filepath.Join(dir, "b.yaml")} {
		got, err := Read([]string{source}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(got, want, compareStates); diff != "" {
			t.Errorf("%s: -got +want\n%s", source, diff)
		}
		if secret, err := got.Connections[0].Password.Resolve(nil); err != nil || secret != "hunter2" {
			t.Errorf("secret %q, %v", secret, err)
		}
	}
	// What is written is read as the same.
	var out bytes.Buffer
	if err := Write(&out, want); err != nil {
		t.Fatal(err)
	}
	got, err := Read([]string{"-"}, &out)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, want, compareStates); diff != "" {
		t.Errorf("written and read: -got +want\n%s", diff)
	}
}

func TestReadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"polices: []":                                           `line 1: there is no "polices" here; there are connections, exclusions, policies, repositories`,
		"policies:\n  - {name: a, filtr: all}":                  `line 2: there is no "filtr" here`,
		"policies:\n  - name: a\n    retention: {dayly: 3}":     `line 3: there is no "dayly" here; there are daily, hourly, last, monthly, weekly, yearly`,
		"policies:\n  - {name: a, name: b}":                     "name is there twice",
		"policies: gold":                                        "line 1: there should be a list",
		"policies: [gold]":                                      "line 1: there should be a mapping of",
		"policies: [{name: [a]}]":                               "line 1: there should be a simple value",
		"policies: [{name: a, priority: high}]":                 `line 1: "high" is no whole number`,
		"policies: [{name: a, paused: maybe}]":                  `line 1: "maybe" is no true or false`,
		"policies: [{name: a}, {name: a}]":                      `policy "a" is there twice`,
		"policies: [{filter: all}]":                             "a policy has no name",
		"policies: [{name: a, schedule: \"22:00\"}]":            `policy "a" has no filter`,
		"policies: [{name: a, filter: all}]":                    `policy "a" has no schedule`,
		"connections: [{name: a, address: b}]":                  `connection "a" has no platform`,
		"connections: [{name: a, platform: kvm}]":               `connection "a" has no address`,
		"repositories: [{name: a}]":                             `repository "a" has no path`,
		"exclusions: [{filter: all}]":                           `the exclusion of "all" has no reason`,
		"exclusions: [{reason: old}]":                           `an exclusion with the reason "old" has no filter`,
		"exclusions: [{filter: a, ends_at: soon}]":              `"soon" is neither a date`,
		"exclusions: [{filter: a}, {filter: a}]":                `the exclusion of "a" is there twice`,
		"connections: [{name: a, password: hunter2}]":           "there should be a mapping of env, file",
		"connections: [{name: a, password: {}}]":                "neither {file: PATH} nor {env: NAME}",
		"connections: [{name: a, password: {env: X, file: Y}}]": "neither {file: PATH} nor {env: NAME}",
		"connections: [{name: a, options: [x]}]":                "there should be a mapping",
		"a: &a {}\nconnections: *a":                             `there is no "a" here`,
		"connections: [&a {name: a}, *a]":                       "aliases are not understood",
		"connections: [{name: a, options: {x: 1, x: 2}}]":       "x is there twice",
		"- name: a": "there should be a mapping of connections",
		"\t":        "standard input",
		"connections: [{name: a, password: {file: p, vault: hunter2}}]": `there is no "vault" here`,
	} {
		_, err := Read([]string{"-"}, strings.NewReader(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: a secret is in the error: %v", text, err)
		}
	}
	if _, err := Read([]string{filepath.Join(t.TempDir(), "none")}, nil); err == nil {
		t.Error("a file that is not there was read")
	}
	if _, err := Read([]string{t.TempDir()}, nil); err == nil {
		t.Error("an empty directory was read")
	}
}

func TestSecretThatIsNotThere(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "empty"), []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Secret{{File: "none", dir: dir}, {File: "empty", dir: dir}, {Env: "NONE"}} {
		if text, err := s.Resolve(func(string) string { return "" }); err == nil {
			t.Errorf("%+v: %q", s, text)
		}
	}
}

// FuzzRead: whatever a file holds, it is read or refused, and what was read is written as the same.
func FuzzRead(f *testing.F) {
	boundary.Add(f, []byte(good), boundary.Text([]byte(good)))
	f.Fuzz(func(t *testing.T, p []byte) {
		s, err := Read([]string{"-"}, bytes.NewReader(p))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := Write(&out, s); err != nil {
			return // a time beyond the year 9999
		}
		again, err := Read([]string{"-"}, &out)
		if err != nil {
			t.Fatalf("what was written is refused: %v", err)
		}
		_ = again
	})
}
