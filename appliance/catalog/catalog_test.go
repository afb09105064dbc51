package catalog

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

func open(t *testing.T, dir string) *Catalog {
	t.Helper()
	c, err := Open(t.Context(), options(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func kindOf(err error) string {
	if err == nil {
		return "nil"
	}
	return fault.KindOf(err).String()
}

func noQueue(context.Context, *sql.Tx, Task) (int64, error) { return 7, nil }

func TestSecretsAreSealedAndSurviveReopen(t *testing.T) {
	onEach(t, testSecretsAreSealedAndSurviveReopen)
}

func testSecretsAreSealedAndSurviveReopen(t *testing.T, dir string) {
	c := open(t, dir)
	conn := Connection{Name: "host", Platform: hypervisors.KVM, Address: "qemu:///system", Options: map[string]string{"a": "b"}}
	if err := c.CreateConnection(t.Context(), &conn, "opensesame"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"catalog.db", "catalog.db-wal"} {
		if raw, _ := os.ReadFile(filepath.Join(dir, name)); strings.Contains(string(raw), "opensesame") {
			t.Errorf("%s holds the secret in the clear", name)
		}
	}
	c = open(t, dir)
	got, err := c.ConnectionSecret(t.Context(), conn.ID)
	if err != nil || string(got) != "opensesame" {
		t.Errorf("secret = %q, %v", string(got), err)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", got, got, got, got); strings.Contains(s, "opensesame") {
		t.Errorf("secret prints as %s", s)
	}
	again, err := c.ConnectionByName(t.Context(), "host")
	if err != nil || again.Options["a"] != "b" || len(again.SealedSecret) == 0 {
		t.Errorf("connection = %+v, %v", again, err)
	}
}

func TestWrongOrMissingKey(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	conn := Connection{Name: "host"}
	if err := c.CreateConnection(t.Context(), &conn, "x"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(dir, "keys", "catalog.key")
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	o := Options{Path: filepath.Join(dir, "catalog.db"), KeyFile: key}
	if _, err := Open(t.Context(), o); kindOf(err) != "not-found" {
		t.Errorf("without key: %v, want not-found", err)
	}
	if err := os.WriteFile(key, make([]byte, 32), 0o400); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if _, err := c.ConnectionSecret(t.Context(), conn.ID); kindOf(err) != "corrupt" {
		t.Errorf("with another key: %v, want corrupt", err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) { onEach(t, testNewerSchemaIsRefused) }

func testNewerSchemaIsRefused(t *testing.T, dir string) {
	c := open(t, dir)
	if _, err := c.sql.Exec("UPDATE schema_version SET version = 99"); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), options(dir))
	if kindOf(err) != "unsupported" {
		t.Errorf("newer schema: %v, want unsupported", err)
	}
}

func TestSchemaOfTheFirstVersionIsBroughtUpToDate(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	conn := Connection{Name: "host", Platform: hypervisors.KVM, Address: "qemu:///system"}
	if err := c.CreateConnection(t.Context(), &conn, "opensesame"); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		"DROP INDEX idx_tasks_manager_id", "ALTER TABLE tasks DROP COLUMN manager_id", "ALTER TABLE events DROP COLUMN manager_id",
		"ALTER TABLE connections DROP COLUMN host_id", "ALTER TABLE repositories DROP COLUMN members",
		"ALTER TABLE repositories DROP COLUMN verification", "ALTER TABLE repositories DROP COLUMN generation", "ALTER TABLE vms DROP COLUMN facts", "DROP INDEX idx_runs_policy_id", "ALTER TABLE runs DROP COLUMN policy_id", "ALTER TABLE runs DROP COLUMN turn_id",
		"ALTER TABLE repositories DROP COLUMN compression", "UPDATE schema_version SET version = 1",
	} {
		if _, err := c.sql.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	if _, err := c.ConnectionToHost(t.Context(), hypervisors.KVM, "h1"); kindOf(err) != "not-found" {
		t.Errorf("a host that no check has met: %v, want not-found", err)
	}
	_, err := c.UpdateConnection(t.Context(), conn.ID, func(c *Connection) { c.HostID = "h1" })
	if err != nil {
		t.Fatal(err)
	}
	if got, err := c.ConnectionToHost(t.Context(), hypervisors.KVM, "h1"); err != nil || got.ID != conn.ID {
		t.Errorf("connection to h1 = %+v, %v", got, err)
	}
	if secret, err := c.ConnectionSecret(t.Context(), conn.ID); err != nil || string(secret) != "opensesame" {
		t.Errorf("secret = %q, %v", string(secret), err)
	}
}

func TestRepositoryOfTheSecondVersionGetsItsColumns(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	repo := Repository{Name: "main", Kind: KindDirectory, Path: "/backup"}
	if err := c.CreateRepository(t.Context(), &repo); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{
		"DROP INDEX idx_tasks_manager_id", "ALTER TABLE tasks DROP COLUMN manager_id", "ALTER TABLE events DROP COLUMN manager_id",
		"ALTER TABLE repositories DROP COLUMN members", "ALTER TABLE repositories DROP COLUMN verification",
		"ALTER TABLE repositories DROP COLUMN generation", "ALTER TABLE vms DROP COLUMN facts", "DROP INDEX idx_runs_policy_id", "ALTER TABLE runs DROP COLUMN policy_id", "ALTER TABLE runs DROP COLUMN turn_id",
		"ALTER TABLE repositories DROP COLUMN compression", "UPDATE schema_version SET version = 2",
	} {
		if _, err := c.sql.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c = open(t, dir)
	got, err := c.Repository(t.Context(), repo.ID)
	if err != nil || got.Path != "/backup" || got.VerificationOf().EveryDays != DefaultVerifyDays {
		t.Errorf("repository = %+v, %v", got, err)
	}
	_, err = c.UpdateRepository(t.Context(), repo.ID, func(r *Repository) {
		r.Members = []RepositoryMember{{ID: "m", Path: "/a"}}
		r.Verification = &Verification{}
		r.Generation = Generation{Set: "s", Version: 7, Document: "d", Session: 1 << 63}
	})
	if err != nil {
		t.Fatal(err)
	}
	got, err = c.Repository(t.Context(), repo.ID)
	if err != nil || len(got.Members) != 1 || got.VerificationOf().EveryDays != 0 || got.Generation.Session != 1<<63 || got.Generation.Version != 7 {
		t.Errorf("changed = %+v, %v", got, err)
	}
}

func TestCatalogThatIsNoDatabase(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "catalog.db"))
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(whole)
	for i := 100; i < len(damaged); i++ {
		damaged[i] = 0xa5
	}
	for name, content := range map[string][]byte{"text": []byte(strings.Repeat("not a database\n", 100)), "damaged": damaged} {
		if err := os.WriteFile(filepath.Join(dir, "catalog.db"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(t.Context(), Options{Path: filepath.Join(dir, "catalog.db"), KeyFile: filepath.Join(dir, "keys", "catalog.key")})
		meaning, advice := fault.Explanation(err)
		if kindOf(err) != "corrupt" || meaning == "" || !strings.Contains(advice, "attach the repositories") {
			t.Errorf("%s: %v (%s), %q, %q, want corrupt", name, err, kindOf(err), meaning, advice)
		}
	}
	if err := os.Remove(filepath.Join(dir, "catalog.db")); err != nil {
		t.Fatal(err)
	}
	open(t, dir) // the key that is there serves the new one
}

func TestOneActiveTaskPerSubject(t *testing.T) { onEach(t, testOneActiveTaskPerSubject) }

func testOneActiveTaskPerSubject(t *testing.T, dir string) {
	c := open(t, dir)
	start := func(subject string) (Task, error) {
		task := &Task{VMID: "vm_1", VMName: "web", Subject: subject}
		_, err := c.CreateRun(t.Context(), &Run{Kind: KindBackup, Trigger: TriggerManual}, []*Task{task}, noQueue)
		return *task, err
	}
	one, err := start("vm_1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := start("vm_1"); kindOf(err) != "conflict" {
		t.Errorf("second task: %v, want conflict", err)
	}
	if runs, err := c.Runs(t.Context(), RunFilter{}, Page{}); err != nil || len(runs.Items) != 1 {
		t.Errorf("runs after a conflict = %d, %v, want 1", len(runs.Items), err)
	}
	if _, err := start("vm_2"); err != nil {
		t.Errorf("another subject: %v", err)
	}
	for range 2 {
		if _, err := start(""); err != nil {
			t.Errorf("no subject: %v", err)
		}
	}
	if _, err := c.MoveTask(t.Context(), one.ID, Running, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := start("vm_1"); kindOf(err) != "conflict" {
		t.Errorf("while running: %v, want conflict", err)
	}
	if _, err := c.MoveTask(t.Context(), one.ID, Failed, func(t *Task) { t.Error = &Failure{What: "broke"} }); err != nil {
		t.Fatal(err)
	}
	if _, err := start("vm_1"); err != nil {
		t.Errorf("after the end: %v", err)
	}
	run, err := c.Run(t.Context(), one.RunID)
	if err != nil || run.State != Failed || run.FinishedAt == nil || run.Error == nil || run.Error.What != "broke" {
		t.Errorf("run = %+v, %v", run, err)
	}
}

func TestMoves(t *testing.T) { onEach(t, testMoves) }

func testMoves(t *testing.T, dir string) {
	all := []State{Queued, Running, Succeeded, Warning, Failed, Cancelled}
	legal := map[string]bool{
		"queued running": true, "queued cancelled": true, "queued failed": true, "running succeeded": true,
		"running warning": true, "running failed": true, "running cancelled": true,
	}
	for _, from := range all {
		for _, to := range all {
			name := string(from + " " + to)
			if got := from.CanBecome(to); got != legal[name] {
				t.Errorf("%s: %v, want %v", name, got, legal[name])
			}
		}
	}
	c := open(t, dir)
	task := &Task{}
	if _, err := c.CreateRun(t.Context(), &Run{Kind: KindVerify}, []*Task{task}, noQueue); err != nil {
		t.Fatal(err)
	}
	if _, err := c.MoveTask(t.Context(), task.ID, Succeeded, nil); kindOf(err) != "conflict" {
		t.Errorf("queued to succeeded: %v, want conflict", err)
	}
	if got, err := c.RequestCancel(t.Context(), task.ID); err != nil || got.State != Cancelled {
		t.Errorf("cancel = %s, %v", got.State, err)
	}
	if _, err := c.RequestCancel(t.Context(), task.ID); kindOf(err) != "conflict" {
		t.Errorf("cancel twice: %v, want conflict", err)
	}
	if _, err := c.RequestCancel(t.Context(), "task_none"); kindOf(err) != "not-found" {
		t.Errorf("cancel nothing: %v, want not-found", err)
	}
}

func TestRunState(t *testing.T) {
	tests := []struct {
		tasks []State
		want  State
	}{
		{[]State{Queued, Queued}, Queued},
		{[]State{Queued, Succeeded}, Running},
		{[]State{Running, Failed}, Running},
		{[]State{Succeeded, Warning}, Warning},
		{[]State{Cancelled, Warning}, Cancelled},
		{[]State{Failed, Cancelled}, Failed},
		{[]State{Succeeded}, Succeeded},
		{nil, Succeeded},
	}
	for _, tt := range tests {
		if got := runState(tt.tasks); got != tt.want {
			t.Errorf("%v: %s, want %s", tt.tasks, got, tt.want)
		}
	}
}

func TestInventoryKeepsIdentity(t *testing.T) { onEach(t, testInventoryKeepsIdentity) }

func testInventoryKeepsIdentity(t *testing.T, dir string) {
	c := open(t, dir)
	conn := Connection{Name: "host"}
	if err := c.CreateConnection(t.Context(), &conn, ""); err != nil {
		t.Fatal(err)
	}
	sync := func(vms ...hypervisors.VM) (r InventoryReport) {
		t.Helper()
		r, err := c.SyncVMs(t.Context(), conn.ID, vms)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	sync(hypervisors.VM{ID: "a", Name: "web", CPUs: 2}, hypervisors.VM{ID: "b", Name: "db"})
	before, err := c.VMByPlatformID(t.Context(), conn.ID, "a")
	if err != nil {
		t.Fatal(err)
	}
	report := sync(hypervisors.VM{ID: "a", Name: "web2"}, hypervisors.VM{ID: "c", Name: "new"})
	if diff := cmp.Diff(InventoryReport{VMs: 2, Added: 1, Changed: 1, Gone: 1}, report); diff != "" {
		t.Errorf("report: -want +got %s", diff)
	}
	sync(hypervisors.VM{ID: "a", Name: "web2"})
	after, err := c.VM(t.Context(), before.ID)
	if err != nil || after.Name != "web2" || !after.FirstSeen.Equal(before.FirstSeen) {
		t.Errorf("renamed VM = %+v, %v", after, err)
	}
	names := func(f VMFilter) (out []string) {
		list, err := c.VMs(t.Context(), f, Page{})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list.Items {
			out = append(out, v.Name)
		}
		return out
	}
	if diff := cmp.Diff([]string{"web2"}, names(VMFilter{})); diff != "" {
		t.Errorf("present VMs: -want +got %s", diff)
	}
	if diff := cmp.Diff([]string{"db", "new", "web2"}, names(VMFilter{Gone: true, ConnectionID: conn.ID})); diff != "" {
		t.Errorf("all VMs: -want +got %s", diff)
	}
	if diff := cmp.Diff([]string(nil), names(VMFilter{Name: "%*"})); diff != "" {
		t.Errorf("VMs with %%: -want +got %s", diff)
	}
	if diff := cmp.Diff([]string{"web2"}, names(VMFilter{Name: "w*2"})); diff != "" {
		t.Errorf("VMs with w*2: -want +got %s", diff)
	}
	sync(hypervisors.VM{ID: "b", Name: "db"})
	if diff := cmp.Diff([]string{"db"}, names(VMFilter{})); diff != "" {
		t.Errorf("after it came back: -want +got %s", diff)
	}
}

func TestPagesCoverEverythingOnce(t *testing.T) { onEach(t, testPagesCoverEverythingOnce) }

func testPagesCoverEverythingOnce(t *testing.T, dir string) {
	c := open(t, dir)
	var vms []hypervisors.VM
	for i := range 25 {
		vms = append(vms, hypervisors.VM{ID: fmt.Sprint(i), Name: fmt.Sprint("same", i%3)})
	}
	if _, err := c.SyncVMs(t.Context(), "conn_x", vms); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	p := Page{Limit: 4}
	for pages := 0; ; pages++ {
		list, err := c.VMs(t.Context(), VMFilter{}, p)
		if err != nil || pages > 10 {
			t.Fatalf("page %d: %v", pages, err)
		}
		for _, v := range list.Items {
			seen[v.PlatformID]++
		}
		if p.Cursor = list.Next; p.Cursor == "" {
			break
		}
	}
	for _, v := range vms {
		if seen[v.ID] != 1 {
			t.Errorf("VM %s was listed %d times", v.ID, seen[v.ID])
		}
	}
	if _, err := c.VMs(t.Context(), VMFilter{}, Page{Cursor: "nonsense"}); kindOf(err) != "invalid" {
		t.Errorf("bad cursor: %v, want invalid", err)
	}
}

func TestOwedCleanups(t *testing.T) { onEach(t, testOwedCleanups) }

func testOwedCleanups(t *testing.T, dir string) {
	c := open(t, dir)
	want := []string{"job", "volume", "checkpoint"}
	for _, name := range []string{"checkpoint", "volume", "job"} {
		if _, err := c.Owe(t.Context(), "conn_1", "task_1", hypervisors.Owed{Kind: "k", Name: name, Args: map[string]string{"a": "b"}}); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := c.OpenCleanups(t.Context(), "task_1")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, r.Owed.Name)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of clean-ups: -want +got %s", diff)
	}
	if err := c.CleanupFailed(t.Context(), rows[0], fault.New(fault.Transient, "remove", "x", "no answer")); err != nil {
		t.Fatal(err)
	}
	if err := c.StrikeOff(t.Context(), rows[1].ID); err != nil {
		t.Fatal(err)
	}
	rows, err = c.OpenCleanups(t.Context(), "")
	if err != nil || len(rows) != 2 || rows[0].Attempts != 1 || rows[0].LastError.Kind != "transient" {
		t.Errorf("open clean-ups = %+v, %v", rows, err)
	}
	if err := c.StrikeOffTask(t.Context(), "task_1"); err != nil {
		t.Fatal(err)
	}
	if rows, err = c.OpenCleanups(t.Context(), ""); err != nil || len(rows) != 0 {
		t.Errorf("after strike-off: %d, %v", len(rows), err)
	}
}

func TestDeleteConnectionWithOwedCleanups(t *testing.T) {
	onEach(t, testDeleteConnectionWithOwedCleanups)
}

func testDeleteConnectionWithOwedCleanups(t *testing.T, dir string) {
	c := open(t, dir)
	conn := Connection{Name: "host"}
	if err := c.CreateConnection(t.Context(), &conn, ""); err != nil {
		t.Fatal(err)
	}
	row, err := c.Owe(t.Context(), conn.ID, "task_1", hypervisors.Owed{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteConnection(t.Context(), conn.ID); kindOf(err) != "conflict" {
		t.Errorf("delete: %v, want conflict", err)
	}
	if err := c.StrikeOff(t.Context(), row.ID); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteConnection(t.Context(), conn.ID); err != nil {
		t.Error(err)
	}
	if err := c.DeleteConnection(t.Context(), conn.ID); kindOf(err) != "not-found" {
		t.Errorf("delete again: %v, want not-found", err)
	}
}

// TestRerouteConnection: a connection is reached in another way only while no task uses it.
func TestRerouteConnection(t *testing.T) { onEach(t, testRerouteConnection) }

func testRerouteConnection(t *testing.T, dir string) {
	c := open(t, dir)
	conn := Connection{Name: "host", Address: "here"}
	if err := c.CreateConnection(t.Context(), &conn, "before"); err != nil {
		t.Fatal(err)
	}
	task := &Task{ConnectionID: conn.ID}
	if _, err := c.CreateRun(t.Context(), &Run{Kind: KindBackup}, []*Task{task}, noQueue); err != nil {
		t.Fatal(err)
	}
	reroute := func() error {
		_, err := c.RerouteConnection(t.Context(), conn.ID, "after", func(c *Connection) { c.Address = "there" })
		return err
	}
	is := func(address, password string) {
		t.Helper()
		row, err := c.Connection(t.Context(), conn.ID)
		secret, secretErr := c.ConnectionSecret(t.Context(), conn.ID)
		if err != nil || secretErr != nil || row.Address != address || string(secret) != password {
			t.Errorf("%s by %q, %v, %v; want %s by %q", row.Address, string(secret), err, secretErr, address, password)
		}
	}
	if err := reroute(); kindOf(err) != "conflict" {
		t.Errorf("beside a task: %v, want conflict", err)
	}
	is("here", "before")
	if _, err := c.MoveTask(t.Context(), task.ID, Cancelled, nil); err != nil {
		t.Fatal(err)
	}
	if err := reroute(); err != nil {
		t.Error(err)
	}
	is("there", "after")
}

func TestFirstUserOnlyOnce(t *testing.T) { onEach(t, testFirstUserOnlyOnce) }

func testFirstUserOnlyOnce(t *testing.T, dir string) {
	c := open(t, dir)
	if err := c.CreateFirstUser(t.Context(), &User{Name: "admin"}); err != nil {
		t.Fatal(err)
	}
	if err := c.CreateFirstUser(t.Context(), &User{Name: "other"}); kindOf(err) != "exists" {
		t.Errorf("second first user: %v, want exists", err)
	}
}

func TestPointsAndCheckpoints(t *testing.T) { onEach(t, testPointsAndCheckpoints) }

func testPointsAndCheckpoints(t *testing.T, dir string) {
	c := open(t, dir)
	vm, err := c.EnsureVM(t.Context(), "conn_1", hypervisors.VM{ID: "uuid", Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	for i, cp := range []string{"cairn-1", "cairn-2"} {
		p := RestorePoint{ID: fmt.Sprint("rp_", i), RepositoryID: "repo_1", VMID: vm.ID, Checkpoint: cp}
		for range 2 { // the second time is a repetition after a crash
			if err := c.AddRestorePoint(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := c.Checkpoints(t.Context(), "conn_1")
	if diff := cmp.Diff(map[string]string{"uuid": "cairn-2"}, got); diff != "" || err != nil {
		t.Errorf("checkpoints: %v, -want +got %s", err, diff)
	}
	newest, err := c.NewestRestorePoint(t.Context(), vm.ID, "")
	if err != nil || newest.ID != "rp_1" {
		t.Errorf("newest = %s, %v", newest.ID, err)
	}
	if err := c.SetVerified(t.Context(), "rp_1", fault.New(fault.Corrupt, "read", "chunk", "changed")); err != nil {
		t.Fatal(err)
	}
	if newest, err = c.RestorePoint(t.Context(), "rp_1"); err != nil || newest.VerifyResult != VerifyDamaged || newest.VerifyError.Kind != "corrupt" {
		t.Errorf("verified = %+v, %v", newest, err)
	}
}

func TestRepeatedRequestStartsNothing(t *testing.T) { onEach(t, testRepeatedRequestStartsNothing) }

func testRepeatedRequestStartsNothing(t *testing.T, dir string) {
	c := open(t, dir)
	start := func(user, key string) (Run, bool) {
		t.Helper()
		run := Run{Kind: KindVerify, User: user, RequestKey: key, RequestPrint: "p"}
		replayed, err := c.CreateRun(t.Context(), &run, []*Task{{}}, noQueue)
		if err != nil {
			t.Fatal(err)
		}
		return run, replayed
	}
	one, replayed := start("ann", "k")
	if replayed {
		t.Error("first request counts as a repetition")
	}
	if again, replayed := start("ann", "k"); !replayed || again.ID != one.ID || again.RequestPrint != "p" {
		t.Errorf("repetition = %s, %v, want %s, true", again.ID, replayed, one.ID)
	}
	if _, replayed := start("bob", "k"); replayed {
		t.Error("another user's request counts as a repetition")
	}
	if err := c.db.Exec("UPDATE runs SET created_at = ?", time.Now().UTC().Add(-25*time.Hour)).Error; err != nil {
		t.Fatal(err)
	}
	if _, replayed := start("ann", "k"); replayed {
		t.Error("a day later the request still counts as a repetition")
	}
}

func TestNewestPoints(t *testing.T) { onEach(t, testNewestPoints) }

func testNewestPoints(t *testing.T, dir string) {
	c := open(t, dir)
	for id, vm := range map[string]string{"rp_1": "vm_a", "rp_3": "vm_a", "rp_2": "vm_b", "rp_4": "vm_c"} {
		if err := c.AddRestorePoint(t.Context(), RestorePoint{ID: id, RepositoryID: "repo_1", VMID: vm}); err != nil {
			t.Fatal(err)
		}
	}
	for _, vm := range []string{"vm_a", "vm_b", "vm_c", "vm_none"} {
		if err := c.db.Create(&VM{ID: vm, ConnectionID: "conn_1", PlatformID: vm}).Error; err != nil {
			t.Fatal(err)
		}
	}
	got, err := c.NewestPoints(t.Context(), []string{"vm_a", "vm_b", "vm_none"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]NewestPoint{"vm_a": {VMID: "vm_a", ID: "rp_3"}, "vm_b": {VMID: "vm_b", ID: "rp_2"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("newest: -want +got %s", diff)
	}
}

func TestEveryFailureExplainsItself(t *testing.T) {
	for kind := fault.Internal; kind <= fault.Canceled; kind++ {
		f := FailureOf(fault.New(kind, "do", "it", "no"))
		if f.Kind != kind.String() || f.What != "do it: no" || f.Meaning == "" || f.Advice == "" {
			t.Errorf("%s: %+v", kind, f)
		}
	}
	f := FailureOf(fault.Context("outer", "", fault.New(fault.Transient, "inner", "", "no").Explain("It is off.", "")))
	if f.Meaning != "It is off." || f.Advice != kindWords[fault.Transient][1] {
		t.Errorf("own words are lost: %+v", f)
	}
}
