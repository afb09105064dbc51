package e2e

import (
	"errors"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/kvmlab"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// anotherHost is a connection whose address leads to another host now.
type anotherHost struct {
	*commandLine
	connection client.Connection // as it was before
	vm         client.VM
	repo       client.Repository
	id         string // of the host that answers now
}

// refused runs a command that must be refused as it meets another host, in words that name both and the way out.
func (h anotherHost) refused(args ...string) {
	h.t.Helper()
	cmd := exec.CommandContext(h.t.Context(), h.binary, args...)
	cmd.Env, cmd.Dir = h.env, h.dir
	out, err := cmd.CombinedOutput()
	if _, failed := errors.AsType[*exec.ExitError](err); !failed {
		h.t.Fatalf("cairn %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	said := strings.Join(strings.Fields(string(out)), " ")
	for _, want := range []string{h.connection.HostID, h.id, "another host than before", "--accept-host " + h.id} {
		if !strings.Contains(said, want) {
			h.t.Errorf("cairn %s does not say %q:\n%s", strings.Join(args, " "), want, out)
		}
	}
}

// shown is the connection as it is stored.
func (h anotherHost) shown() (c client.Connection) {
	h.t.Helper()
	h.must("GET", "/connections/"+h.connection.ID, nil, &c)
	return c
}

// isRefused looks whether nothing at all is done on the host that answers until it is accepted, and everything then. changes counts
// what was changed on it.
func (h anotherHost) isRefused(changes func() int) {
	t := h.t
	t.Helper()
	var before, after client.VMList
	h.must("GET", "/vms", nil, &before)
	was := changes()
	h.refused("connection", "refresh", h.connection.Name)
	h.refused("connection", "check", h.connection.Name)
	h.refused("backup", "start", h.vm.Name, "--repository", h.repo.Name, "--wait")
	if c := h.shown(); c.Status != client.StatusProblem || c.HostID != h.connection.HostID || !strings.Contains(c.Error.Detail, h.id) {
		t.Errorf("the connection is %+v", c)
	}
	if n := changes() - was; n != 0 {
		t.Errorf("%d changes on the other host", n)
	}
	h.must("GET", "/vms", nil, &after)
	if diff := cmp.Diff(after, before); diff != "" {
		t.Errorf("the VMs, -now +before:\n%s", diff)
	}

	h.cairn(6, "connection", "edit", h.connection.Name, "--accept-host", "b7ff51a8-92f4-4f0f-8a9d-1c8d7f3d9e11")
	h.cairn(0, "connection", "edit", h.connection.Name, "--accept-host", h.id, "--dry-run")
	if c := h.shown(); c.HostID != h.connection.HostID {
		t.Errorf("a dry run has made it %s", c.HostID)
	}
	h.cairn(0, "connection", "edit", h.connection.Name, "--accept-host", h.id)
	if c := h.shown(); c.Error.Detail != "" || c.HostID != h.id {
		t.Errorf("the connection is %+v", c)
	}
	h.backup(h.vm.ID, h.repo.ID, nil)
	var log client.AuditList
	h.must("GET", "/audit?limit=1000", nil, &log)
	found := false
	for _, e := range log.Items {
		found = found || e.Action == "connection.change" && e.Subject == h.connection.Name && strings.Contains(e.Detail, h.id)
	}
	if !found {
		t.Error("the audit log does not say who accepted it")
	}
}

func TestOVirtAnotherEngineIsRefused(t *testing.T) {
	s := newSite(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	vm := s.named("web")
	s.backup(vm.ID, s.repo.ID, nil)
	h := anotherHost{commandLine: newCommandLine(s.appliance), connection: s.connection, vm: vm, repo: s.repo}
	var changes atomic.Int64
	s.watch.onDone(func(string, int) { changes.Add(1) })
	h.id = s.engine.Reinstall()
	h.isRefused(func() int { return int(changes.Load()) })
	s.watch.onDone(nil)
	s.clean(vm.PlatformID, "after the other engine was accepted")
}

func TestAnotherHostIsRefused(t *testing.T) {
	s := newScene(t, kvmlab.Options{Private: true}, kvmlab.Spec{Name: "moved", Rate: -1, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 24, Fill: 8 << 20}}})
	s.backup(s.vmID, s.repo.ID, nil)
	h := anotherHost{commandLine: newCommandLine(s.appliance), connection: s.connection, vm: s.vm(s.connection.ID, s.guest.Name), repo: s.repo}
	checkpoints := s.checkpoints()
	var err error
	if h.id, err = s.lab.Daemon().Reidentify(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.isRefused(func() int {
		if diff := cmp.Diff(s.checkpoints(), checkpoints); diff != "" {
			t.Errorf("checkpoints, -now +before:\n%s", diff)
		}
		return len(s.leftovers())
	})
	s.noLeftovers()
}
