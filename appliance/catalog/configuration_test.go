package catalog

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/hypervisors"
)

// Every table is part of the configuration, or it is said here that it is not.
func TestConfigurationKnowsEveryTable(t *testing.T) {
	c := open(t, t.TempDir())
	left := []string{ // history, what is read again, and who is at work
		"schema_version", "key_checks", "managers", "repository_owners", "vm_holds", "maintenance_requests", "runs", "tasks", "events", "restore_points", "owed_cleanups",
		"join_tokens", "audit_entries", "kept_tasks", "occurrences", "turns", "breakers", "keyed_requests", "shared_files", "standings",
		"rpo_accounts", "rpo_stamps", "rpo_months",
	}
	var names, missing []string
	if err := c.db.Raw("SELECT name FROM sqlite_master WHERE type = 'table'").Scan(&names).Error; err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !configurationTables[name] && !slices.Contains(left, name) && !strings.HasPrefix(name, "sqlite_") {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 || len(names) < len(configurationTables)+len(left) {
		t.Errorf("of %d tables these are neither saved nor left on purpose: %v", len(names), missing)
	}
}

func TestConfigurationIsInstalledOnce(t *testing.T) {
	for name, dest := range map[string]func(*testing.T) string{"sqlite": func(t *testing.T) string { return t.TempDir() }, "postgres": onPostgres} {
		t.Run(name, func(t *testing.T) {
			c, ctx, now := open(t, t.TempDir()), t.Context(), time.Now().UTC()
			conn := Connection{Name: "host", Platform: hypervisors.KVM, HostID: "h"}
			if err := c.CreateConnection(ctx, &conn, "opensesame"); err != nil {
				t.Fatal(err)
			}
			vm, err := c.SeeVM(ctx, conn.ID, hypervisors.VM{ID: "p1", Name: "web"})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.CreatePolicy(ctx, &Policy{Name: "gold", Spec: policy.Spec{Filter: "id = " + vm.ID, Schedule: "22:00", TimeZone: "UTC"}}, now.Add(-time.Hour)); err != nil {
				t.Fatal(err)
			}
			conf, err := c.Configuration(ctx)
			if err != nil {
				t.Fatal(err)
			}
			to := open(t, dest(t))
			who := Standing{Appliance: "app_1", Incarnation: 2, RecoveredAt: &now, Held: true}
			if err := to.Install(ctx, conf, who, now); err != nil {
				t.Fatal(err)
			}
			again, err := to.Configuration(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(again.Settled(), conf.Settled(), cmp.Comparer(func(a, b time.Time) bool { return a.Sub(b).Abs() < time.Millisecond })); diff != "" {
				t.Errorf("-installed +was\n%s", diff)
			}
			policies, err := to.Policies(ctx)
			if err != nil || len(policies) != 1 || policies[0].OpenedUntil.Before(now.Add(-time.Millisecond)) {
				t.Errorf("what was due before the recovery is due: %+v, %v", policies, err)
			}
			if err := to.Install(ctx, conf, who, now); kindOf(err) != "exists" {
				t.Errorf("again: %v, want exists", err)
			}
			if got, err := to.Standing(ctx); err != nil || got.Appliance != "app_1" || !got.Idle() {
				t.Errorf("standing = %+v, %v", got, err)
			}
			if err := to.Resume(ctx, now.Add(time.Hour)); err != nil {
				t.Fatal(err)
			}
			if got, err := to.Standing(ctx); err != nil || got.Idle() {
				t.Errorf("resumed: %+v, %v", got, err)
			}
			if err := to.Supersede(ctx, "on b", now); err != nil {
				t.Fatal(err)
			}
			if got, err := to.Standing(ctx); err != nil || !got.Idle() || got.By != "on b" {
				t.Errorf("superseded: %+v, %v", got, err)
			}
		})
	}
}
