package catalog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestAnyTextAndOrder(t *testing.T) { onEach(t, testAnyTextAndOrder) }

// What platforms answer is not always text, and pages must not depend on the order of some language.
func testAnyTextAndOrder(t *testing.T, dir string) {
	c := open(t, dir)
	names := []string{"B", "Z-1", "_x", "a", "b\x00c", "b\xffd", "é"} // by their bytes
	for i, name := range names {
		vm := hypervisors.VM{ID: fmt.Sprintf("id-%d", i), Name: name, Power: hypervisors.PowerOn}
		if _, err := c.SeeVM(t.Context(), "conn_1", vm); err != nil {
			t.Fatalf("store %q: %v", name, err)
		}
	}
	var got []string
	for cursor := ""; ; {
		list, err := c.VMs(t.Context(), VMFilter{}, Page{Limit: 2, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range list.Items {
			got = append(got, v.PlatformID)
		}
		if cursor = list.Next; cursor == "" {
			break
		}
	}
	want := []string{"id-0", "id-1", "id-2", "id-3", "id-4", "id-5", "id-6"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	list, err := c.VMs(t.Context(), VMFilter{Name: "z-*"}, Page{})
	if err != nil || len(list.Items) != 1 || list.Items[0].Name != "Z-1" {
		t.Errorf("z-* finds %v, %v, want Z-1", list.Items, err)
	}
}

// pair opens one PostgreSQL catalog twice, as two managers do.
func pair(t *testing.T) (a, b *Catalog) {
	t.Helper()
	dir := onPostgres(t)
	return open(t, dir), open(t, dir)
}

func TestTwoManagersMakeOneFirstUser(t *testing.T) {
	a, b := pair(t)
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			errs[i] = []*Catalog{a, b}[i%2].CreateFirstUser(t.Context(), &User{Name: fmt.Sprintf("user%d", i)})
		})
	}
	wg.Wait()
	made := 0
	for _, err := range errs {
		switch {
		case err == nil:
			made++
		case kindOf(err) != "exists":
			t.Errorf("another first user: %v, want exists", err)
		}
	}
	if made != 1 {
		t.Errorf("%d first users were made, want 1", made)
	}
}

func TestTasksThatEndAtOnceEndTheirRun(t *testing.T) {
	a, b := pair(t)
	tasks := make([]*Task, 8)
	for i := range tasks {
		tasks[i] = &Task{}
	}
	run := Run{Kind: KindBackup}
	if _, err := a.CreateRun(t.Context(), &run, tasks, noQueue); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	errs := make([]error, len(tasks))
	for i, task := range tasks {
		wg.Go(func() {
			c := []*Catalog{a, b}[i%2]
			_, err := c.MoveTask(t.Context(), task.ID, Running, nil)
			_, endErr := c.MoveTask(t.Context(), task.ID, Succeeded, nil)
			errs[i] = errors.Join(err, endErr, c.Audit(t.Context(), AuditEntry{Action: "test"}), c.AddEvent(t.Context(), &Event{RunID: run.ID}))
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Run(t.Context(), run.ID); err != nil || got.State != Succeeded || got.FinishedAt == nil {
		t.Errorf("run = %+v, %v, want succeeded", got, err)
	}
	if err := b.CheckAudit(t.Context()); err != nil {
		t.Errorf("audit log of two writers: %v", err)
	}
}

func TestOneRequestAtTwoManagersStartsOneRun(t *testing.T) {
	a, b := pair(t)
	var wg sync.WaitGroup
	runs, errs := make([]Run, 8), make([]error, 8)
	for i := range runs {
		runs[i] = Run{Kind: KindBackup, User: "u", RequestKey: "k"}
		wg.Go(func() {
			_, errs[i] = []*Catalog{a, b}[i%2].CreateRun(t.Context(), &runs[i], []*Task{{}}, noQueue)
		})
	}
	wg.Wait()
	for i, r := range runs {
		if errs[i] != nil || r.ID != runs[0].ID {
			t.Errorf("run %d = %s, %v, want %s", i, r.ID, errs[i], runs[0].ID)
		}
	}
}

func TestSecondManagerNeedsTheKeyOfTheFirst(t *testing.T) {
	dir := onPostgres(t)
	open(t, dir)
	o := options(dir)
	o.KeyFile = filepath.Join(t.TempDir(), "catalog.key")
	if _, err := Open(t.Context(), o); kindOf(err) != "not-found" {
		t.Errorf("without a key: %v, want not-found", err)
	}
	if err := os.WriteFile(o.KeyFile, make([]byte, keyBytes), 0o400); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), o)
	if _, advice := fault.Explanation(err); kindOf(err) != "denied" || advice == "" {
		t.Errorf("with another key: %v, %q, want denied", err, advice)
	}
	key, err := os.ReadFile(options(dir).KeyFile)
	if err != nil {
		t.Fatal(err)
	}
	o.KeyFile = filepath.Join(t.TempDir(), "copy.key")
	if err := os.WriteFile(o.KeyFile, key, 0o400); err != nil {
		t.Fatal(err)
	}
	c, err := Open(t.Context(), o)
	if err != nil {
		t.Fatalf("with a copy of the key: %v", err)
	}
	_ = c.Close()
}

func TestDatabaseThatIsNotThere(t *testing.T) {
	for name, address := range map[string]struct {
		address Secret
		want    string
	}{
		"no address": {"postgres://user:hush@:notaport/x", "invalid"},
		"no server":  {Secret("postgres://user:hush@/x?host=" + t.TempDir()), "transient"},
	} {
		_, err := Open(t.Context(), Options{Address: address.address, KeyFile: filepath.Join(t.TempDir(), "key")})
		meaning, advice := fault.Explanation(err)
		if kindOf(err) != address.want || meaning == "" || advice == "" {
			t.Errorf("%s: %v (%s), want %s and an explanation", name, err, kindOf(err), address.want)
		}
	}
}

func TestTablesAreNotChangedUnderOthers(t *testing.T) {
	dir := onPostgres(t)
	old := open(t, dir)
	if err := old.Join(t.Context(), &Manager{Name: "old"}); err != nil {
		t.Fatal(err)
	}
	if err := old.db.Exec("UPDATE schema_version SET version = ?", schemaVersion-1).Error; err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), options(dir))
	if _, advice := fault.Explanation(err); kindOf(err) != "conflict" || advice == "" {
		t.Errorf("a newer version beside an older one: %v, want conflict", err)
	}
}

func TestWhatTheDeadMayNotDo(t *testing.T) {
	a, b := pair(t)
	for _, c := range []*Catalog{a, b} {
		if err := c.Join(t.Context(), &Manager{Name: "m"}); err != nil {
			t.Fatal(err)
		}
	}
	task := &Task{}
	if _, err := a.CreateRun(t.Context(), &Run{Kind: KindBackup}, []*Task{task}, noQueue); err != nil {
		t.Fatal(err)
	}
	if _, err := a.MoveTask(t.Context(), task.ID, Running, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.MoveTask(t.Context(), task.ID, Failed, nil); kindOf(err) != "conflict" {
		t.Errorf("another manager's task: %v, want conflict", err)
	}
	if tasks, err := b.Adopt(t.Context(), ""); err != nil || len(tasks) != 0 {
		t.Errorf("a living manager's tasks: %v, %v, want none", tasks, err)
	}
	if held, err := a.HoldVM(t.Context(), "vm", "1"); err != nil || !held {
		t.Fatalf("hold = %v, %v", held, err)
	}
	if held, err := b.HoldVM(t.Context(), "vm", "2"); err != nil || held {
		t.Errorf("a VM that is held: %v, %v, want false", held, err)
	}
	if err := a.Leave(t.Context()); err != nil { // as others do it who miss it
		t.Fatal(err)
	}
	for what, do := range map[string]func() error{
		"beat":   func() error { return a.Beat(t.Context()) },
		"keep":   func() error { return a.Keep(t.Context(), task.ID, "x") },
		"owe":    func() error { _, err := a.Owe(t.Context(), "conn_1", task.ID, hypervisors.Owed{Name: "x"}); return err },
		"end":    func() error { _, err := a.MoveTask(t.Context(), task.ID, Succeeded, nil); return err },
		"result": func() error { return a.SetResult(t.Context(), task.ID, Result{}) },
		"hold":   func() error { _, err := a.HoldVM(t.Context(), "vm2", "3"); return err },
		"share":  func() error { _, err := a.Share(t.Context(), 0); return err },
		"adopt":  func() error { _, err := a.Adopt(t.Context(), ""); return err },
	} {
		if err := do(); !errors.Is(err, ErrBuried) {
			t.Errorf("%s: %v, want that it was taken for dead", what, err)
		}
	}
	tasks, err := b.Adopt(t.Context(), "")
	if err != nil || len(tasks) != 1 || tasks[0].ID != task.ID {
		t.Fatalf("adopted = %v, %v", tasks, err)
	}
	if again, err := b.Adopt(t.Context(), ""); err != nil || len(again) != 0 {
		t.Errorf("adopted again: %v, %v, want none", again, err)
	}
	if held, err := b.HoldVM(t.Context(), "vm", "2"); err != nil || !held {
		t.Errorf("what the dead had held: %v, %v, want true", held, err)
	}
	if _, err := b.MoveTask(t.Context(), task.ID, Succeeded, nil); err != nil {
		t.Error(err)
	}
}

// TestAHostHasOneConnection also where two managers store one at the same time, as a new one, as its first identity or as another host.
func TestAHostHasOneConnection(t *testing.T) {
	a, b := pair(t)
	both := func(one, two func(id string) error) {
		t.Helper()
		for range 10 {
			id := NewID("host")
			got := make([]error, 2)
			var wg sync.WaitGroup
			for i, do := range []func(string) error{one, two} {
				wg.Go(func() { got[i] = do(id) })
			}
			wg.Wait()
			refused := got[0]
			if refused == nil {
				refused = got[1]
			}
			taken, ok := errors.AsType[*HostTaken](refused)
			if !ok || got[0] != nil && got[1] != nil {
				t.Fatalf("%v and %v, want one refused", got[0], got[1])
			}
			if owner, err := a.ConnectionToHost(t.Context(), hypervisors.KVM, id); err != nil || owner.ID != taken.Other.ID {
				t.Errorf("the host is %s's, %v; refused was: %v", owner.Name, err, refused)
			}
		}
	}
	create := func(c *Catalog) func(string) error {
		return func(id string) error {
			return c.CreateConnection(t.Context(), &Connection{Name: NewID("c"), Platform: hypervisors.KVM, HostID: id}, "")
		}
	}
	give := func(c *Catalog, reroute bool) func(string) error {
		conn := Connection{Name: NewID("c"), Platform: hypervisors.KVM}
		if err := c.CreateConnection(t.Context(), &conn, ""); err != nil {
			t.Fatal(err)
		}
		return func(id string) (err error) {
			change := func(c *Connection) { c.HostID = id }
			if reroute {
				_, err = c.RerouteConnection(t.Context(), conn.ID, "", change)
			} else {
				_, err = c.UpdateConnection(t.Context(), conn.ID, change)
			}
			return err
		}
	}
	both(create(a), create(b))
	both(create(a), give(b, false))
	both(give(a, true), give(b, false))
}

// TestAskForMaintenance: who works with repositories is asked, until it has answered the last request or is no more.
func TestAskForMaintenance(t *testing.T) {
	a, b := pair(t)
	for _, c := range []*Catalog{a, b} {
		if err := c.Join(t.Context(), &Manager{Name: "m"}); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := b.AskMaintenance(t.Context(), MaintainPrune, time.Now()); err != nil || n != 0 {
		t.Errorf("nobody has a repository: %d asked, %v", n, err)
	}
	if err := a.CreateRepository(t.Context(), &Repository{Name: "one", Path: "/one"}); err != nil { // it is its maker's
		t.Fatal(err)
	}
	ask := func(kind MaintenanceKind) {
		t.Helper()
		if n, err := b.AskMaintenance(t.Context(), kind, time.Now()); err != nil || n != 1 {
			t.Errorf("%d asked, %v, want one", n, err)
		}
	}
	waiting := func(want ...MaintenanceKind) (list []MaintenanceRequest) {
		t.Helper()
		list, err := b.MaintenanceRequests(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var kinds []MaintenanceKind
		for _, r := range list {
			kinds = append(kinds, r.Kind)
			if r.ManagerID != a.ManagerID() || r.AskedAt.IsZero() {
				t.Errorf("request %+v", r)
			}
		}
		if !slices.Equal(kinds, want) {
			t.Errorf("%v wait, want %v", kinds, want)
		}
		return list
	}
	ask(MaintainPrune)
	first := waiting(MaintainPrune)
	ask(MaintainPrune)
	again := waiting(MaintainPrune)
	if again[0].ID == first[0].ID {
		t.Error("who asks again is content with what was asked before")
	}
	if err := a.EndMaintenanceRequest(t.Context(), first[0].ID); err != nil { // which is answered only now
		t.Fatal(err)
	}
	waiting(MaintainPrune)
	if n, err := a.AskMaintenance(t.Context(), MaintainPrune, time.Now()); err != nil || n != 0 {
		t.Errorf("asked itself: %d, %v", n, err)
	}
	ask(MaintainVerify)
	if err := a.EndMaintenanceRequest(t.Context(), again[0].ID); err != nil {
		t.Fatal(err)
	}
	waiting(MaintainVerify)
	if err := a.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	waiting()
	var rows int64
	if err := b.db.Model(&MaintenanceRequest{}).Count(&rows).Error; err != nil || rows != 0 {
		t.Errorf("%d rows of a manager that has left, %v", rows, err)
	}
}

func TestRepositoriesAreSharedOut(t *testing.T) {
	known := func(pairs ...string) map[string]RepositoryOwner {
		m := map[string]RepositoryOwner{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i]] = RepositoryOwner{RepositoryID: pairs[i], ManagerID: pairs[i+1]}
		}
		return m
	}
	refused := map[string]RepositoryOwner{"r1": {RepositoryID: "r1", ManagerID: "a", Refused: []string{"b", "gone"}}, "r2": {RepositoryID: "r2", ManagerID: "a"}}
	for name, tt := range map[string]struct {
		repositories []string
		known        map[string]RepositoryOwner
		live, busy   []string
		want         string
	}{
		"none":                   {nil, nil, []string{"a"}, nil, ""},
		"one manager":            {[]string{"r1", "r2"}, nil, []string{"a"}, nil, "a a"},
		"new ones are spread":    {[]string{"r1", "r2", "r3"}, nil, []string{"a", "b"}, nil, "a b a"},
		"owners keep theirs":     {[]string{"r1", "r2", "r3"}, known("r1", "b", "r2", "b", "r3", "a"), []string{"a", "b"}, nil, "b b a"},
		"the dead are replaced":  {[]string{"r1", "r2"}, known("r1", "x", "r2", "b"), []string{"a", "b"}, nil, "a b"},
		"a new manager gets one": {[]string{"r1", "r2"}, known("r1", "a", "r2", "a"), []string{"a", "b"}, nil, "b a"},
		"busy ones stay":         {[]string{"r1", "r2"}, known("r1", "a", "r2", "a"), []string{"a", "b"}, []string{"r1"}, "a b"},
		"all busy":               {[]string{"r1", "r2"}, known("r1", "a", "r2", "a"), []string{"a", "b"}, []string{"r1", "r2"}, "a a"},
		"not to who refused":     {[]string{"r1", "r2"}, refused, []string{"a", "b"}, nil, "a b"},
	} {
		var got []string
		for _, o := range share(tt.repositories, tt.known, tt.live, tt.busy) {
			got = append(got, o.ManagerID)
			if slices.Contains(o.Refused, "gone") {
				t.Errorf("%s: a manager that is no more still refuses", name)
			}
		}
		if got := strings.Join(got, " "); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}
