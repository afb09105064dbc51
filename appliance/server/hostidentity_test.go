package server

import (
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// connection returns the bench's connection as it is stored.
func (b *bench) connection() catalog.Connection {
	b.t.Helper()
	c, err := b.catalog.Connection(b.t.Context(), b.conn)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

// known returns the names of the VMs that the catalog has as there.
func (b *bench) known() (names []string) {
	b.t.Helper()
	list, err := b.ListVMs(b.t.Context(), catalog.VMFilter{}, catalog.Page{})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, v := range list.Items {
		if v.GoneAt == nil {
			names = append(names, v.Name)
		}
	}
	slices.Sort(names)
	return names
}

func TestAnotherHostIsRefused(t *testing.T) {
	for _, id := range []string{"another", ""} {
		t.Run(shownIdentity(id), func(t *testing.T) {
			b := newBench(t)
			point := b.backup()
			right := b.platform.ID()
			before, err := b.platform.Driver().Leftovers(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			extra := b.platform.AddVM(memplatform.VMSpec{Name: "of-the-other", Disks: []int64{diskBytes}})
			b.platform.Reinstall(id)

			refused := func(what string, err error) {
				t.Helper()
				meaning, advice := fault.Explanation(err)
				if kindOf(err) != "conflict" || !strings.Contains(err.Error(), right) || !strings.Contains(err.Error(), "identity "+shownIdentity(id)) ||
					!strings.Contains(meaning, "another host") || !strings.Contains(advice, "--accept-host "+shownIdentity(id)) {
					t.Errorf("%s: %v\n%s\n%s", what, err, meaning, advice)
				}
				c := b.connection()
				if c.Status != catalog.HealthProblem || c.LastError == nil || !strings.Contains(c.LastError.What, right) || c.HostID != right {
					t.Errorf("%s: the connection is %+v with %+v", what, c, c.LastError)
				}
			}
			_, err = b.RefreshConnection(t.Context(), b.conn)
			refused("inventory", err)
			_, err = b.CheckConnection(t.Context(), b.conn)
			refused("check", err)
			d, err := b.driver(t.Context(), b.conn)
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.rereadVM(t.Context(), b.conn, d, extra.ID)
			refused("what the platform told of", err)
			b.forgetDriver(t.Context(), b.conn)
			_, err = b.RefreshConnection(t.Context(), b.conn)
			refused("inventory by a driver that was opened anew", err)

			for what, start := range map[string]func() (httpapi.Started, error){
				"backup":  b.startBackup,
				"restore": func() (httpapi.Started, error) { return b.startRestore(point.ID, "back") },
			} {
				started, err := start()
				if err == nil {
					if task := b.ended(started, err); task.State != catalog.Failed || task.Error == nil || !strings.Contains(task.Error.What, right) {
						t.Errorf("%s: %s, %+v", what, task.State, task.Error)
					}
					continue
				}
				refused(what, err)
			}
			if left, err := b.platform.Driver().Leftovers(t.Context()); err != nil || len(left) != len(before) || b.vms() != 2 {
				t.Errorf("on the other host: %+v and %d VMs, %v", left, b.vms(), err)
			}
			if rows, err := b.catalog.OpenCleanups(t.Context(), ""); err != nil || len(rows) != 0 {
				t.Errorf("owed: %+v, %v", rows, err)
			}
			if got := b.known(); !slices.Equal(got, []string{"web"}) {
				t.Errorf("the catalog has %v", got)
			}

			b.platform.Reinstall(right)
			if _, err := b.RefreshConnection(t.Context(), b.conn); err != nil {
				t.Fatal(err)
			}
			if c := b.connection(); c.Status != catalog.HealthOK || c.LastError != nil {
				t.Errorf("with the right host again: %+v with %+v", c, c.LastError)
			}
			b.backup()
		})
	}
}

func TestAcceptHost(t *testing.T) {
	b := newBench(t)
	b.backup()
	second := catalog.Connection{Name: "second", Platform: memplatform.PlatformName, Address: "there", HostID: "of-second"}
	if err := b.catalog.CreateConnection(t.Context(), &second, ""); err != nil {
		t.Fatal(err)
	}
	right := b.platform.ID()
	b.platform.AddVM(memplatform.VMSpec{Name: "db", Disks: []int64{diskBytes}})
	change := func(accept string, dry bool) ([]string, error) {
		return b.ReplaceConnection(t.Context(), admin, b.conn, httpapi.NewConnection{Address: "here", AcceptHost: accept}, dry)
	}
	for _, c := range []struct{ name, host, accept, want string }{
		{"the one it has", right, right, "nil"},
		{"not the one that answers", "another", "yet-another", "conflict"},
		{"that of another connection", "of-second", "of-second", "exists"},
		{"none while one is said", "another", noIdentity, "conflict"},
	} {
		b.platform.Reinstall(c.host)
		for _, dry := range []bool{true, false} {
			if fields, err := change(c.accept, dry); kindOf(err) != c.want || len(fields) > 0 && err == nil {
				t.Errorf("%s: %v, %v", c.name, fields, err)
			}
		}
	}
	b.platform.Reinstall("another")
	if _, err := b.ReplaceConnection(t.Context(), admin, b.conn, httpapi.NewConnection{Address: "there"}, false); kindOf(err) != "conflict" {
		t.Errorf("another address without accepting: %v", err)
	}
	if fields, err := change("another", true); err != nil || !slices.Equal(fields, []string{"host"}) || b.connection().HostID != right {
		t.Errorf("planned: %v, %v, %+v", fields, err, b.connection())
	}
	if fields, err := change("another", false); err != nil || !slices.Equal(fields, []string{"host"}) {
		t.Errorf("accepted: %v, %v", fields, err)
	}
	if c := b.connection(); c.HostID != "another" || c.Status != catalog.HealthOK || c.LastError != nil {
		t.Errorf("the connection is %+v", c)
	}
	if got := b.known(); !slices.Equal(got, []string{"db", "web"}) {
		t.Errorf("the catalog has %v", got)
	}
	log, err := b.catalog.AuditLog(t.Context(), 0, 100)
	if err != nil || !slices.ContainsFunc(log, func(e catalog.AuditEntry) bool {
		return e.Action == "connection.change" && e.Actor == admin.User && e.Detail == "host: "+right+" is another now"
	}) {
		t.Errorf("the audit log has %+v, %v", log, err)
	}
	b.backup()
	b.platform.Reinstall("")
	if fields, err := change(noIdentity, false); err != nil || !slices.Equal(fields, []string{"host"}) || b.connection().HostID != "" {
		t.Errorf("one without an identity: %v, %v, %+v", fields, err, b.connection())
	}
	b.platform.Reinstall("of-second")
	if _, err := b.ReplaceConnection(t.Context(), admin, b.conn, httpapi.NewConnection{Address: "elsewhere"}, false); kindOf(err) != "exists" {
		t.Errorf("the first identity is that of another connection: %v", err)
	}
}

func TestTheFirstIdentityIsTaken(t *testing.T) {
	b := newBench(t)
	if _, err := b.catalog.UpdateConnection(t.Context(), b.conn, func(c *catalog.Connection) { c.HostID = "" }); err != nil {
		t.Fatal(err)
	}
	b.forgetDriver(t.Context(), b.conn)
	if _, err := b.RefreshConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	if got := b.connection().HostID; got != b.platform.ID() {
		t.Errorf("the identity is %q, want %q", got, b.platform.ID())
	}
}

// TestTheFirstIdentityIsThatOfAnotherConnection: a connection that had none does not come to own the VMs of another one.
func TestTheFirstIdentityIsThatOfAnotherConnection(t *testing.T) {
	b := newBench(t)
	second := catalog.Connection{Name: "second", Platform: memplatform.PlatformName, Address: "here"}
	if err := b.catalog.CreateConnection(t.Context(), &second, ""); err != nil {
		t.Fatal(err)
	}
	for what, ask := range map[string]func() error{
		"inventory": func() error { _, err := b.RefreshConnection(t.Context(), second.ID); return err },
		"check":     func() error { _, err := b.CheckConnection(t.Context(), second.ID); return err },
	} {
		err := ask()
		meaning, advice := fault.Explanation(err)
		if kindOf(err) != "conflict" || !strings.Contains(err.Error(), "connection lab leads to the same host, "+b.platform.ID()) ||
			!strings.Contains(meaning, "connected once") || !strings.Contains(advice, "Use the connection lab, and remove second") {
			t.Errorf("%s: %v\n%s\n%s", what, err, meaning, advice)
		}
	}
	row, err := b.catalog.Connection(t.Context(), second.ID)
	if err != nil || row.HostID != "" || row.Status != catalog.HealthProblem || row.LastError == nil || !strings.Contains(row.LastError.What, "connection lab") {
		t.Errorf("the second one is %+v with %+v, %v", row, row.LastError, err)
	}
	if n, err := b.catalog.CountVMs(t.Context(), second.ID); err != nil || n != 0 {
		t.Errorf("it has %d VMs, %v", n, err)
	}
	if err := b.RemoveConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	if _, err := b.CheckConnection(t.Context(), second.ID); err != nil {
		t.Errorf("once the other is removed: %v", err)
	}
}

func TestTwoHostsWithOneIdentityAreExplainedByPlatform(t *testing.T) {
	for platform, want := range map[hypervisors.Platform]string{hypervisors.KVM: "libvirtd.conf", hypervisors.OVirt: "engine-setup"} {
		err := connectedTwice("add connection", "b", &catalog.HostTaken{Other: catalog.Connection{Name: "a", Platform: platform}})
		if _, advice := fault.Explanation(err); !strings.Contains(advice, want) || !strings.Contains(advice, "connection a") || strings.Count(advice, "libvirt") > 0 != (platform == hypervisors.KVM) {
			t.Errorf("%s: %s", platform, advice)
		}
	}
}
