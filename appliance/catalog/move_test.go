package catalog

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
)

// Every table that is not about who is at work now goes along: one that is added must be named.
func TestMoveKnowsEveryTable(t *testing.T) {
	c := open(t, t.TempDir())
	var names []string
	if err := c.db.Raw("SELECT name FROM sqlite_master WHERE type = 'table'").Scan(&names).Error; err != nil {
		t.Fatal(err)
	}
	stays := []string{"schema_version", "key_checks", "managers", "repository_owners", "vm_holds", "maintenance_requests"}
	var missing []string
	for _, name := range names {
		known := slices.ContainsFunc(moved(), func(m table) bool { return m.name == name })
		if !known && !slices.Contains(stays, name) && !strings.HasPrefix(name, "sqlite_") {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 || len(names) < len(moved()) {
		t.Errorf("of %d tables these are neither moved nor left on purpose: %v", len(names), missing)
	}
}

func TestMove(t *testing.T) {
	dir, dest := t.TempDir(), onPostgres(t)
	c := open(t, dir)
	conn := Connection{Name: "host", Platform: hypervisors.KVM, Options: map[string]string{"a": "b"}}
	if err := c.CreateConnection(t.Context(), &conn, "opensesame"); err != nil {
		t.Fatal(err)
	}
	repo := Repository{Name: "main", Path: "/r"}
	if err := c.CreateRepository(t.Context(), &repo); err != nil {
		t.Fatal(err)
	}
	for i := range 3 * batch / 2 {
		vm := hypervisors.VM{ID: string(rune('a'+i%26)) + time.Duration(i).String(), Name: "vm\x00" + time.Duration(i).String()}
		if _, err := c.SeeVM(t.Context(), conn.ID, vm); err != nil {
			t.Fatal(err)
		}
	}
	task := &Task{RepositoryID: repo.ID, Spec: json.RawMessage(`{"x":1}`), Warnings: []string{"w"}}
	run := Run{Kind: KindBackup}
	if _, err := c.CreateRun(t.Context(), &run, []*Task{task}, noQueue); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := c.Audit(t.Context(), AuditEntry{Action: "a"}); err != nil {
			t.Fatal(err)
		}
		if err := c.AddEvent(t.Context(), &Event{RunID: run.ID, Message: "m", Fields: map[string]string{"k": "v"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	to := options(dest)
	to.KeyFile = options(dir).KeyFile
	report, err := Move(t.Context(), options(dir), to)
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, r := range report {
		if r.Rows > 0 {
			counts[r.Table] = r.Rows
		}
	}
	want := map[string]int64{"connections": 1, "repositories": 1, "vms": 3 * batch / 2, "runs": 1, "tasks": 1, "audit_entries": 3, "events": 3}
	if diff := cmp.Diff(want, counts); diff != "" {
		t.Error(diff)
	}
	m, err := Open(t.Context(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if secret, err := m.ConnectionSecret(t.Context(), conn.ID); err != nil || secret != "opensesame" {
		t.Errorf("secret = %v, %v", secret == "opensesame", err)
	}
	got, err := m.Task(t.Context(), task.ID)
	if err != nil || got.State != Queued || string(got.Spec) != `{"x":1}` {
		t.Errorf("task = %+v, %v", got, err)
	}
	// What is counted goes on where it was.
	if err := m.Audit(t.Context(), AuditEntry{Action: "b"}); err != nil {
		t.Fatal(err)
	}
	if err := m.CheckAudit(t.Context()); err != nil {
		t.Error(err)
	}
	e := Event{RunID: run.ID}
	if err := m.AddEvent(t.Context(), &e); err != nil || e.Seq != 4 {
		t.Errorf("next event = %d, %v, want 4", e.Seq, err)
	}
	if _, err := Move(t.Context(), options(dir), to); kindOf(err) != "exists" {
		t.Errorf("into a database that is not empty: %v, want exists", err)
	}
}
