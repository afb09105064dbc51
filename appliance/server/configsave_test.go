package server

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/store"
)

// saved returns the newest configuration in the bench's repository.
func (b *bench) saved() document {
	b.t.Helper()
	repo, err := b.repository(b.t.Context(), b.repo)
	if err != nil {
		b.t.Fatal(err)
	}
	who, err := b.catalog.Standing(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	d, _, err := newestOf(b.t.Context(), repo.Saves(), who.Appliance)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

// eventually polls until ok.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("waited in vain for " + what)
		}
	}
}

// policyNamed makes a policy that selects nothing.
func (b *bench) policyNamed(name string) {
	b.t.Helper()
	c := b.change(policy.Spec{Filter: "name = nobody"})
	c.Name = name
	if _, err := b.CreatePolicy(b.t.Context(), admin, c); err != nil {
		b.t.Fatal(err)
	}
}

func hasPolicy(d document, name string) bool {
	for _, p := range d.Configuration.Policies {
		if p.Name == name {
			return true
		}
	}
	return false
}

func TestConfigurationIsSavedAfterAChange(t *testing.T) {
	b := stillBench(t)
	b.reopenWithSaves()
	b.policyNamed("gold")
	eventually(t, "the configuration to be saved", func() bool { return hasPolicy(b.saved(), "gold") })
	eventually(t, "the appliance to say so", func() bool {
		info, err := b.GetAppliance(t.Context())
		if err != nil || len(info.Repositories) != 1 {
			t.Fatalf("appliance = %+v, %v", info, err)
		}
		s := info.Repositories[0].Saved
		return s != nil && s.SavedAt != nil && s.Error == nil && s.Digest == b.saved().Digest
	})
}

// reopenWithSaves starts the appliance again, so that it saves its configuration by itself.
func (b *bench) reopenWithSaves() {
	b.t.Helper()
	if err := b.Close(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	b.saves = time.Millisecond
	b.start()
}

// What nobody has changed is not saved again, however much happens.
func TestConfigurationIsSavedOnceForEachChange(t *testing.T) {
	b := stillBench(t)
	versions := func() int {
		repo, err := b.repository(t.Context(), b.repo)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.saveConfiguration(t.Context()); err != nil {
			t.Fatal(err)
		}
		all, err := repo.Saves().Versions(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if n := versions(); n != 1 {
		t.Fatalf("%d versions at first", n)
	}
	b.backup()
	if _, err := b.CheckConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	if n := versions(); n != 1 {
		t.Errorf("%d versions after a backup and a check", n)
	}
	repo, err := b.repository(t.Context(), b.repo)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := repo.Save(t.Context(), "another appliance", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for i, want := range []int{3, 4, 5, 6, 6, 6} { // five of ours, and the other's
		b.policyNamed(string(rune('a' + i)))
		if n := versions(); n != want {
			t.Errorf("%d versions after %d changes, want %d", n, i+1, want)
		}
	}
}

// A change that was acknowledged just before the process was killed is saved when it is started again.
func TestConfigurationIsSavedAtTheNextStart(t *testing.T) {
	b := stillBench(t)
	b.policyNamed("gold")
	if hasPolicy(b.saved(), "gold") {
		t.Fatal("it is saved already")
	}
	b.saves = time.Millisecond
	after := b.crash(func() {})
	eventually(t, "the configuration to be saved", func() bool { return hasPolicy(after.saved(), "gold") })
}

// A repository that cannot be written to keeps nobody from a change, and the appliance says so until it can be.
func TestConfigurationThatCannotBeSaved(t *testing.T) {
	b := stillBench(t)
	place := filepath.Join(b.root, "repo", "saved")
	if err := os.RemoveAll(place); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(place, nil, 0o600); err != nil { // no directory
		t.Fatal(err)
	}
	b.policyNamed("gold")
	if err := b.saveConfiguration(t.Context()); err == nil {
		t.Fatal("it was saved")
	}
	s := b.savedState()
	if s == nil || s.Error == nil || !s.Pending {
		t.Errorf("state = %+v, want a failure", s)
	}
	if err := os.Remove(place); err != nil {
		t.Fatal(err)
	}
	if err := b.saveConfiguration(t.Context()); err != nil || !hasPolicy(b.saved(), "gold") {
		t.Errorf("after it could be written to again: %v", err)
	}
	if s := b.savedState(); s == nil || s.Error != nil || s.Pending {
		t.Errorf("state = %+v, want none", s)
	}
}

func (b *bench) savedState() *catalog.ConfigurationSave {
	b.t.Helper()
	row, err := b.catalog.Repository(b.t.Context(), b.repo)
	if err != nil {
		b.t.Fatal(err)
	}
	return row.Saved
}

// An appliance that finds a later incarnation of itself in a repository does nothing by itself any more.
func TestApplianceThatWasRecoveredElsewhere(t *testing.T) {
	b := stillBench(t)
	if err := b.saveConfiguration(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.supersede(func(d *document) { d.Incarnation++ })
	if err := b.saveConfiguration(t.Context()); !errors.Is(err, errSuperseded) {
		t.Errorf("save = %v, want superseded", err)
	}
	if !b.still(t.Context()) {
		t.Error("it goes on by itself")
	}
	b.policyNamed("gold")
	list, err := b.ListPolicies(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.RunPolicy(t.Context(), admin, list[0].ID); kindOf(err) != "conflict" {
		t.Errorf("run policy: %v, want conflict", err)
	}
	if err := b.ResumeAppliance(t.Context(), admin); kindOf(err) != "conflict" {
		t.Errorf("resume: %v, want conflict", err)
	}
	// After a restart it does not even take the repository over.
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.start()
	if _, err := b.repository(t.Context(), b.repo); !errors.Is(err, errSuperseded) {
		t.Errorf("open repository: %v, want superseded", err)
	}
}

// An incarnation of the same number that began later counts; one that began earlier does not.
func TestIncarnationsOfTheSameNumber(t *testing.T) {
	now := time.Now()
	who := catalog.Standing{Incarnation: 2, RecoveredAt: &now}
	for name, tt := range map[string]struct {
		d    document
		want bool
	}{
		"itself":  {document{Incarnation: 2, RecoveredAt: now}, false},
		"earlier": {document{Incarnation: 2, RecoveredAt: now.Add(-time.Hour)}, false},
		"later":   {document{Incarnation: 2, RecoveredAt: now.Add(time.Hour)}, true},
		"next":    {document{Incarnation: 3}, true},
		"none":    {document{}, false},
	} {
		if got := tt.d.after(who); got != tt.want {
			t.Errorf("%s: after = %v, want %v", name, got, tt.want)
		}
	}
}

// supersede writes a configuration as another machine would.
func (b *bench) supersede(change func(*document)) {
	b.t.Helper()
	d := b.saved()
	change(&d)
	text, err := d.encode()
	if err != nil {
		b.t.Fatal(err)
	}
	var repo *store.Repository
	if repo, err = b.repository(b.t.Context(), b.repo); err == nil {
		_, err = repo.Save(b.t.Context(), d.Appliance, text)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func TestDecodeDocument(t *testing.T) {
	good := document{
		Format: documentFormat, Appliance: "app_1", Incarnation: 1,
		Files: map[string][]byte{catalogKeyFile: []byte("k"), authorityFile: []byte("c"), "keys/repo_1.key": []byte("r")},
	}
	for name, tt := range map[string]struct {
		change func(*document)
		want   string
	}{
		"good":         {func(*document) {}, "nil"},
		"newer":        {func(d *document) { d.Format++ }, "unsupported"},
		"older":        {func(d *document) { d.Format = 0 }, "corrupt"},
		"no appliance": {func(d *document) { d.Appliance = "" }, "corrupt"},
		"no key":       {func(d *document) { delete(d.Files, catalogKeyFile) }, "corrupt"},
		"outside":      {func(d *document) { d.Files["../x"] = nil }, "corrupt"},
		"above":        {func(d *document) { d.Files["keys/../../x"] = nil }, "corrupt"},
		"absolute":     {func(d *document) { d.Files["/etc/passwd"] = nil }, "corrupt"},
		"elsewhere":    {func(d *document) { d.Files["catalog.db"] = nil }, "corrupt"},
		"hidden":       {func(d *document) { d.Files["keys/.x"] = nil }, "corrupt"},
		"deeper":       {func(d *document) { d.Files["keys/a/b"] = nil }, "corrupt"},
	} {
		d := good
		d.Files = map[string][]byte{}
		for k, v := range good.Files {
			d.Files[k] = v
		}
		tt.change(&d)
		p, err := d.encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeDocument(p); kindOf(err) != tt.want {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
	}
	for _, p := range [][]byte{nil, []byte("x"), {0x1f, 0x8b}} {
		if _, err := decodeDocument(p); kindOf(err) != "corrupt" {
			t.Errorf("%q: %v, want corrupt", p, err)
		}
	}
}
