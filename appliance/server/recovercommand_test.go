package server

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/postgrestest"
	"github.com/cairn-backup/cairn/lab/memplatform"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
)

// disaster is a bench whose appliance was closed, with a copy of the repository's key.
type disaster struct {
	*bench
	key string // file
}

// newDisaster fills a bench with all that a configuration has, makes a restore point, and closes it.
func newDisaster(t *testing.T) (d disaster, before catalog.Configuration, point catalog.RestorePoint) {
	t.Helper()
	b := stillBench(t)
	ctx := t.Context()
	if _, err := b.catalog.RerouteConnection(ctx, b.conn, "canary", func(*catalog.Connection) {}); err != nil {
		t.Fatal(err)
	}
	b.more("db")
	point = b.backup()
	_, err := b.CreatePolicy(ctx, admin, b.change(policy.Spec{Filter: "name = web", Retention: policy.Retention{Last: 3}}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.AddExclusion(ctx, admin, catalog.Exclusion{Filter: "name = db", Reason: "made anew"}); err != nil {
		t.Fatal(err)
	}
	if err := b.HoldRestorePoint(ctx, admin, catalog.Hold{RestorePointID: point.ID, Reason: "evidence"}); err != nil {
		t.Fatal(err)
	}
	if err := b.ReplaceMaintenance(ctx, admin, catalog.Maintenance{Kind: catalog.MaintainCollect, Schedule: "Sat 06:00", TimeZone: "UTC"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.AddMoverLimit(ctx, admin, catalog.MoverLimit{Kind: "host", Name: "h1", Slots: 2}); err != nil {
		t.Fatal(err)
	}
	user := catalog.User{Name: "ann", PasswordHash: "$argon2id$"}
	if err := b.catalog.CreateFirstUser(ctx, &user); err != nil {
		t.Fatal(err)
	}
	if err := b.catalog.CreateToken(ctx, &catalog.Token{Name: "ci", UserID: user.ID, Hash: "abc"}); err != nil {
		t.Fatal(err)
	}
	if before, err = b.catalog.Configuration(ctx); err != nil {
		t.Fatal(err)
	}
	if err := b.saveConfiguration(ctx); err != nil {
		t.Fatal(err)
	}
	d = disaster{b, filepath.Join(t.TempDir(), "main.key")}
	raw, err := os.ReadFile(filepath.Join(b.root, "data", "keys", b.repo+".key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.key, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	return d, before, point
}

func (d disaster) drivers() map[hypervisors.Platform]OpenDriver {
	return map[hypervisors.Platform]OpenDriver{
		memplatform.PlatformName: func(_ context.Context, t Target) (hypervisors.Driver, error) {
			return d.platform.Confirmed(t.Confirm), nil
		},
	}
}

// recover runs the command into a data directory.
func (d disaster) recover(data string, more ...string) (string, error) {
	d.t.Helper()
	var out bytes.Buffer
	args := append([]string{"recover", "--data", data, "--repository", filepath.Join(d.root, "repo")}, more...)
	if !strings.Contains(strings.Join(more, " "), "--key") {
		args = append(args, "--key", d.key)
	}
	err := Run(d.t.Context(), args, env(), &out, os.Stderr, d.drivers())
	return out.String(), err
}

// An appliance whose database and data directory are gone comes back from the repository and its key, and restores.
func TestRecover(t *testing.T) {
	d, before, point := newDisaster(t)
	disk0, disk1 := d.content(d.vm.ID, "disk0"), d.content(d.vm.ID, "disk1")
	fingerprint := d.authority.Fingerprint()
	if err := os.RemoveAll(filepath.Join(d.root, "data")); err != nil {
		t.Fatal(err)
	}
	out, err := d.recover(filepath.Join(d.root, "data"))
	if err != nil || !strings.Contains(out, "1 restore points") {
		t.Fatalf("recover: %v\n%s", err, out)
	}
	d.ticks = make(chan time.Time)
	d.start()
	after, err := d.catalog.Configuration(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(after.Settled(), before.Settled(), cmpopts.IgnoreFields(catalog.Policy{}, "UpdatedAt"), cmpopts.EquateEmpty(), cmpopts.IgnoreUnexported(policy.Spec{})); diff != "" {
		t.Errorf("the configuration is another one: -after +before\n%s", diff)
	}
	if secret, err := d.catalog.ConnectionSecret(t.Context(), d.conn); err != nil || string(secret) != "canary" {
		t.Errorf("secret of the connection: %q, %v", string(secret), err)
	}
	if got := d.authority.Fingerprint(); got != fingerprint {
		t.Errorf("the authority is another one: %s, was %s", got, fingerprint)
	}
	if err := d.PruneRestorePoint(t.Context(), point.ID); kindOf(err) != "conflict" {
		t.Errorf("the restore point is not held any more: %v", err)
	}
	d.restoresTo(point.ID, "again", disk0, disk1)

	// Nothing begins by itself until somebody says so; people may do what they want.
	info, err := d.GetAppliance(t.Context())
	if err != nil || !info.Held || info.Incarnation != 2 || info.From == "" {
		t.Errorf("appliance = %+v, %v", info, err)
	}
	if !d.still(t.Context()) {
		t.Error("policies begin by themselves")
	}
	policies, err := d.ListPolicies(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.RunPolicy(t.Context(), admin, policies[0].ID); kindOf(err) != "conflict" {
		t.Errorf("run policy: %v, want conflict", err)
	}
	if next := d.backup(); next.Kind != catalog.Incremental {
		t.Errorf("the next backup is %s: %q", next.Kind, next.Disks[0].Reason)
	}
	if err := d.ResumeAppliance(t.Context(), admin); err != nil {
		t.Fatal(err)
	}
	if d.still(t.Context()) {
		t.Error("it was resumed and is idle")
	}
	if n, err := d.RunPolicy(t.Context(), admin, policies[0].ID); err != nil || n != 1 {
		t.Errorf("run policy after it was resumed: %d, %v", n, err)
	}
}

// The appliance of before, started again, finds out that it is not the appliance any more.
func TestRecoverWhileTheOldOneLives(t *testing.T) {
	d, _, _ := newDisaster(t)
	if out, err := d.recover(filepath.Join(d.root, "new")); err != nil {
		t.Fatalf("recover: %v\n%s", err, out)
	}
	d.start() // the old one, on its data directory
	info, err := d.GetAppliance(t.Context())
	if err != nil || info.SupersededAt == nil || info.Incarnation != 1 {
		t.Errorf("the old appliance = %+v, %v", info, err)
	}
	if _, err := d.startBackup(); err == nil {
		task := d.ended(d.startBackup())
		if task.State != catalog.Failed {
			t.Errorf("a backup by the old appliance: %s", task.State)
		}
	}
}

func TestRecoverRefuses(t *testing.T) {
	d, _, _ := newDisaster(t)
	other := filepath.Join(t.TempDir(), "other.key")
	if _, err := store.NewKeyFile(other); err != nil {
		t.Fatal(err)
	}
	empty := func() string { return filepath.Join(t.TempDir(), "data") }
	for name, tt := range map[string]struct {
		data string
		args []string
		want string
	}{
		"the data directory is not empty": {filepath.Join(d.root, "data"), nil, "exists"},
		"another key":                     {empty(), []string{"--key", other}, "denied"},
		"no such version":                 {empty(), []string{"--version", "01kb0000000000000000000000"}, "not-found"},
		"two keys":                        {empty(), []string{"--key", d.key, "--paper", d.key}, "invalid"},
		"no key":                          {empty(), []string{"--key", ""}, "invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := d.recover(tt.data, tt.args...)
			if kindOf(err) != tt.want {
				t.Errorf("%v, want %s\n%s", err, tt.want, out)
			}
			if tt.data != filepath.Join(d.root, "data") {
				if _, err := os.Stat(tt.data); err == nil {
					t.Error("a data directory was made")
				}
			}
		})
	}
	out, err := d.recover(empty(), "--list")
	if err != nil || !strings.Contains(out, "1 connections, 1 repositories, 1 policies, 1 exclusions, 1 holds") {
		t.Errorf("list: %v\n%s", err, out)
	}

	// What a newer version has saved, and what another appliance has.
	d.start()
	d.supersede(func(doc *document) { doc.Format++ })
	d.supersede(func(doc *document) { doc.Appliance = "app_other" })
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, err = d.recover(empty(), "--list")
	if err != nil || !strings.Contains(out, "format 2") || !strings.Contains(out, "app_other") {
		t.Errorf("list: %v\n%s", err, out)
	}
	if out, err := d.recover(empty()); kindOf(err) != "invalid" {
		t.Errorf("two appliances: %v, want invalid\n%s", err, out)
	}
	var versions []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "format 2") || strings.Contains(line, "app_other") || strings.Contains(line, "connections") {
			versions = append(versions, strings.Fields(line)[0])
		}
	}
	if len(versions) != 3 {
		t.Fatalf("versions %q", versions)
	}
	if out, err := d.recover(empty(), "--version", versions[1]); kindOf(err) != "unsupported" {
		t.Errorf("a newer format: %v, want unsupported\n%s", err, out)
	}
	data := empty()
	if out, err := d.recover(data, "--version", versions[2]); err != nil || !strings.Contains(out, "API tokens are left out") {
		t.Errorf("an older version: %v\n%s", err, out)
	}

	// A recovery that was cut short is begun anew; until then cairnd does not start.
	if err := os.WriteFile(filepath.Join(data, unfinishedRecovery), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Options{Dir: data, Log: slog.New(slog.DiscardHandler), Drivers: d.drivers()}); kindOf(err) != "conflict" {
		t.Errorf("open what was cut short: %v, want conflict", err)
	}
	if out, err := d.recover(data, "--version", versions[0]); err != nil {
		t.Errorf("again: %v\n%s", err, out)
	}
}

// A paper key is enough, and the repository may be somewhere else than it was.
func TestRecoverWithAPaperKey(t *testing.T) {
	d, _, point := newDisaster(t)
	disk0, disk1 := d.content(d.vm.ID, "disk0"), d.content(d.vm.ID, "disk1")
	paper := filepath.Join(t.TempDir(), "paper")
	d.start()
	err := d.withKey(t.Context(), d.repo, func(_ catalog.Repository, b blob.Store, key store.Key) error {
		p, _, err := store.AddPaperKey(t.Context(), b, key, "safe")
		if err != nil {
			return err
		}
		text, err := p.Text()
		if err != nil {
			return err
		}
		return os.WriteFile(paper, []byte(text), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(filepath.Join(d.root, "repo"), moved); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(d.root, "data")); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	args := []string{"recover", "--data", filepath.Join(d.root, "data"), "--repository", moved, "--paper", paper}
	if err := Run(t.Context(), args, env(), &out, os.Stderr, d.drivers()); err != nil {
		t.Fatalf("recover: %v\n%s", err, out.String())
	}
	d.start()
	d.restoresTo(point.ID, "again", disk0, disk1)
}

// A recovery may go into PostgreSQL.
func TestRecoverIntoPostgreSQL(t *testing.T) {
	address := postgrestest.Database(t)
	d, before, point := newDisaster(t)
	disk0, disk1 := d.content(d.vm.ID, "disk0"), d.content(d.vm.ID, "disk1")
	data := filepath.Join(d.root, "new")
	out, err := d.recover(data, "--database", address)
	if err != nil || !strings.Contains(out, "1 restore points") {
		t.Fatalf("recover: %v\n%s", err, out)
	}
	if again, err := d.recover(filepath.Join(d.root, "another"), "--database", address); kindOf(err) != "exists" {
		t.Errorf("into a database that is not empty: %v, want exists\n%s", err, again)
	}
	d.watch = &watch{over: map[string]chan struct{}{}}
	a, err := Open(t.Context(), Options{
		Dir: data, Database: catalog.Secret(address), Log: slog.New(slog.DiscardHandler), observe: d.watch.see, Beat: 200 * time.Millisecond,
		Drivers: d.drivers(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.Close(context.Background()) })
	d.Appliance = a
	eventually(t, "the repository to be taken over", func() bool { return a.peers.Owns(d.repo) })
	after, err := a.catalog.Configuration(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(after.Policies) != len(before.Policies) || len(after.VMs) != len(before.VMs) || len(after.Holds) != 1 || len(after.Tokens) != 1 {
		t.Errorf("recovered %+v", after)
	}
	d.restoresTo(point.ID, "again", disk0, disk1)
}
