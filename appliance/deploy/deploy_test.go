package deploy

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/datamover/guest"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// platform makes VMs in memory. What is owed for one is removed with it.
type platform struct {
	hypervisors.Unsupported
	mu     sync.Mutex
	vms    map[string]hypervisors.MoverRequest // by tag
	gone   []string                            // ids of VMs that were removed
	fail   error
	full   []string // datastores that will not do
	booted func(tag string, seed []byte)
}

func (p *platform) Close() error { return nil }

func (p *platform) Check(context.Context) (hypervisors.Health, error) {
	return hypervisors.Health{}, nil
}

func (p *platform) Capabilities() hypervisors.Capabilities {
	return hypervisors.Capabilities{Platform: hypervisors.KVM, DeployMover: true}
}

func (p *platform) Networks(context.Context) ([]hypervisors.Network, error) {
	return []hypervisors.Network{{Name: "network:off"}, {Name: "network:one", Active: true}}, nil
}

func (p *platform) Datastores(context.Context) ([]hypervisors.Datastore, error) {
	return []hypervisors.Datastore{{Name: "small", FreeBytes: 1}, {Name: "roomy", FreeBytes: 9}, {Name: "middle", FreeBytes: 5}}, nil
}

func (p *platform) CheckMover(_ context.Context, req hypervisors.MoverRequest) error {
	if slices.Contains(p.full, req.Datastore) {
		return fault.New(fault.Conflict, "", "", "the datastore %s keeps no files", req.Datastore)
	}
	return nil
}

func (p *platform) DeployMover(ctx context.Context, req hypervisors.MoverRequest) (hypervisors.VM, error) {
	if err := req.Owe(ctx, hypervisors.Owed{Kind: "vm", VM: req.Tag, Name: "cairn-" + req.Tag}); err != nil {
		return hypervisors.VM{}, err
	}
	if n, err := io.Copy(io.Discard, req.Image); err != nil || n != req.ImageBytes {
		return hypervisors.VM{}, errors.New("the image is not as long as it was said to be")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return hypervisors.VM{}, p.fail
	}
	p.vms[req.Tag] = req
	if p.booted != nil {
		p.booted(req.Tag, req.Seed)
	}
	return hypervisors.VM{ID: "vm-" + req.Tag, Name: "cairn-" + req.Name, Notes: []string{"It is slow."}}, nil
}

func (p *platform) CleanUp(_ context.Context, o hypervisors.Owed) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.vms, strings.TrimPrefix(o.Name, "cairn-"))
	return nil
}

func (p *platform) RemoveMover(_ context.Context, id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail != nil {
		return p.fail
	}
	p.gone = append(p.gone, id)
	return nil
}

func (p *platform) Leftovers(context.Context) ([]hypervisors.Owed, error) { return nil, nil }

func (p *platform) there() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.vms)
}

// bench is a manager's core with a connection to a platform, and movers that enrol without a network.
type bench struct {
	*testing.T
	catalog  *catalog.Catalog
	fleet    *enrolled
	deployer *Deployer
	queue    *jobs.Queue
	platform *platform
	conn     catalog.Connection
	ended    chan catalog.Task
}

// enrolled is a fleet in which all that have enrolled are connected.
type enrolled struct {
	*fleet.Fleet
	listed func() // called once after a list was made
}

func (e *enrolled) List(ctx context.Context) ([]fleet.Info, error) {
	all, err := e.Fleet.List(ctx)
	if e.listed != nil {
		e.listed()
		e.listed = nil
	}
	for i := range all {
		all[i].State = fleet.Online
	}
	return all, err
}

func newBench(t *testing.T) *bench {
	t.Helper()
	dir := t.TempDir()
	b := &bench{T: t, platform: &platform{vms: map[string]hypervisors.MoverRequest{}}, ended: make(chan catalog.Task, 1)}
	var err error
	b.catalog, err = catalog.Open(t.Context(), catalog.Options{Path: filepath.Join(dir, "c.db"), KeyFile: filepath.Join(dir, "key")})
	b.ok(err)
	t.Cleanup(func() { _ = b.catalog.Close() })
	authority, err := identity.OpenAuthority(filepath.Join(dir, "tls"), []string{"localhost"})
	b.ok(err)
	log := slog.New(slog.DiscardHandler)
	b.fleet = &enrolled{Fleet: fleet.New(fleet.Options{Catalog: b.catalog, Authority: authority, Log: log})}
	drivers := func(context.Context, string) (hypervisors.Driver, error) { return b.platform, nil }
	b.ok(os.WriteFile(filepath.Join(dir, imageOf[hypervisors.KVM]), []byte("an image"), 0o600))
	b.deployer = New(Options{
		Catalog: b.catalog, Drivers: drivers, Fleet: b.fleet, Fingerprint: authority.Fingerprint(), Port: func() int { return 8441 }, Images: dir, Log: log,
	})
	b.queue, err = jobs.New(t.Context(), jobs.Options{
		Catalog: b.catalog, Journal: jobs.NewJournal(b.catalog, drivers, log), Log: log, Publish: b,
		Handlers: map[catalog.RunKind]jobs.Handler{catalog.KindDeploy: b.deployer.Deploy},
	})
	b.ok(err)
	b.ok(b.queue.Start(t.Context()))
	t.Cleanup(func() { _ = b.queue.Stop(context.Background()) })
	b.conn = catalog.Connection{Name: "host1", Platform: hypervisors.KVM}
	b.ok(b.catalog.CreateConnection(t.Context(), &b.conn, ""))
	return b
}

func (b *bench) ok(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// PublishTask implements jobs.Publisher.
func (b *bench) PublishTask(t catalog.Task) {
	if t.State.Final() {
		b.ended <- t
	}
}

// PublishRun implements jobs.Publisher.
func (*bench) PublishRun(catalog.Run, []catalog.Task) {}

// PublishRunEvent implements jobs.Publisher.
func (*bench) PublishRunEvent(catalog.Event) {}

// spec is one that can be carried out.
func (b *bench) spec() Spec {
	return Spec{Name: "m1", ConnectionID: b.conn.ID, Manager: "192.0.2.1", User: "admin"}
}

// run deploys and returns the task as it ended.
func (b *bench) run(spec Spec) catalog.Task {
	b.Helper()
	task, err := b.deployer.RequestDeploy(b.Context(), spec)
	b.ok(err)
	_, err = b.queue.Submit(b.Context(), &catalog.Run{Kind: catalog.KindDeploy}, task)
	b.ok(err)
	return <-b.ended
}

// enrol does what a mover does that reads a seed on a machine.
func (b *bench) enrol(seed []byte, machine string) string {
	_, text, _ := strings.Cut(string(seed), "token: ")
	token, _, _ := strings.Cut(text, "\n")
	m := catalog.Mover{Facts: catalog.MoverFacts{MachineUUID: machine, Transports: []string{"hotadd"}}}
	sum := sha256.Sum256([]byte(token))
	if _, err := b.catalog.EnrolMover(context.Background(), hex.EncodeToString(sum[:]), "key", &m); err != nil {
		b.Error(err)
	}
	return m.ID
}

func (b *bench) owed() int {
	b.Helper()
	rows, err := b.catalog.OpenCleanups(b.Context(), "")
	b.ok(err)
	return len(rows)
}

func TestDeploy(t *testing.T) {
	b := newBench(t)
	b.platform.full = []string{"roomy"}
	id := ""
	b.platform.booted = func(tag string, seed []byte) { id = b.enrol(seed, "VM-"+tag) } // firmware may write its id so
	spec := b.spec()
	spec.Sessions = []string{"iscsi://192.0.2.5/iqn.2020-01.org.example:a", "iscsi://mover:S3cret@192.0.2.5/iqn.2020-01.org.example:b"}
	task := b.run(spec)
	if strings.Contains(string(task.Spec), "S3cret") || strings.Contains(string(task.Spec), "iqn.") {
		t.Errorf("the task is stored with the sessions' secrets: %s", task.Spec)
	}
	if task.State != catalog.Succeeded || task.Result == nil || task.Result.MoverID != id || task.Result.VMPlatformID != "vm-"+jobs.Tag(task.ID) {
		t.Fatalf("task %s: %+v, %+v", task.State, task.Error, task.Result)
	}
	m, err := b.catalog.Mover(t.Context(), id)
	if err != nil || m.Name != "m1" || m.DeployedOn != b.conn.ID {
		t.Errorf("mover %+v, %v", m, err)
	}
	if b.owed() != 0 || b.platform.there() != 1 {
		t.Errorf("%d clean-ups are owed, and %d VMs are there; want none and one", b.owed(), b.platform.there())
	}
	req := b.platform.vms[jobs.Tag(task.ID)]
	if req.Datastore != "middle" || req.Network != "network:one" {
		t.Errorf("made on %s, %s; want the roomiest datastore that will do, and the only network", req.Datastore, req.Network)
	}
	_, document, _ := strings.Cut(string(req.Seed), "cairn:")
	document, _, _ = strings.Cut("cairn:"+document, "\x00")
	got, err := guest.ParseDocument([]byte(document))
	if err != nil || got.Manager != "192.0.2.1:8441" || got.Fingerprint != b.deployer.Fingerprint || got.Name != "m1" || got.Token == "" {
		t.Errorf("the seed says %+v, %v", got, err)
	}
	if diff := cmp.Diff(got.Sessions, spec.Sessions); diff != "" {
		t.Errorf("the seed's sessions: %s", diff)
	}
	if _, err := b.deployer.RequestDeploy(t.Context(), b.spec()); fault.KindOf(err) != fault.Exists {
		t.Errorf("the same name again: %v", err)
	}
}

// TestFailedDeploymentLeavesNothing: neither VM nor token nor mover.
func TestFailedDeploymentLeavesNothing(t *testing.T) {
	for name, tt := range map[string]struct {
		arrange func(b *bench)
		words   string
	}{
		"the platform fails":   {func(b *bench) { b.platform.fail = errors.New("no room") }, "no room"},
		"the mover never came": {func(b *bench) { b.deployer.Patience = time.Millisecond }, "was not connected within 1ms"},
		"the mover is removed at once": {func(b *bench) {
			b.platform.booted = func(tag string, seed []byte) {
				id := b.enrol(seed, "vm-"+tag)
				b.fleet.listed = func() { b.ok(b.catalog.RemoveMover(context.Background(), id)) }
			}
		}, "change mover"},
		"somebody else has the token": {func(b *bench) {
			b.platform.booted = func(_ string, seed []byte) { b.enrol(seed, "another machine") }
		}, `enrolled from machine "another machine"`},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			tt.arrange(b)
			task := b.run(b.spec())
			if task.State != catalog.Failed || task.Error == nil || !strings.Contains(task.Error.What, tt.words) {
				t.Fatalf("task %s: %+v; want %q", task.State, task.Error, tt.words)
			}
			if name != "the platform fails" && name != "the mover is removed at once" && (task.Error.Meaning == "" || task.Error.Advice == "") {
				t.Errorf("no explanation: %+v", task.Error)
			}
			if b.owed() != 0 || b.platform.there() != 0 {
				t.Errorf("%d clean-ups are owed, and %d VMs are there", b.owed(), b.platform.there())
			}
			movers, err := b.catalog.Movers(t.Context())
			if err != nil || len(movers) != 0 {
				t.Errorf("movers %+v, %v", movers, err)
			}
			b.platform.fail, b.platform.booted, b.deployer.Patience = nil, func(tag string, seed []byte) { b.enrol(seed, "vm-"+tag) }, time.Minute
			if task := b.run(b.spec()); task.State != catalog.Succeeded {
				t.Errorf("the next deployment of that name: %s, %+v", task.State, task.Error)
			}
		})
	}
}

// busy is a fleet whose movers have transfers.
type busy struct {
	Fleet
	transfers int
}

func (b busy) Drain(ctx context.Context, who fleet.Who, id string, drain bool) (fleet.Info, error) {
	m, err := b.Fleet.Drain(ctx, who, id, drain)
	m.Transfers = b.transfers
	return m, err
}

// TestRemove: a mover at work stays, with its VM; what fails can be repeated, and then both are gone.
func TestRemove(t *testing.T) {
	b := newBench(t)
	b.platform.booted = func(tag string, seed []byte) { b.enrol(seed, "vm-"+tag) }
	task := b.run(b.spec())
	who := fleet.Who{User: "admin"}
	m, err := b.fleet.Get(t.Context(), "m1")
	b.ok(err)
	b.deployer.Fleet = busy{b.fleet, 1}
	if err := b.deployer.Remove(t.Context(), who, m); fault.KindOf(err) != fault.Conflict || len(b.platform.gone) != 0 {
		t.Errorf("a mover at work: %v, removed %v", err, b.platform.gone)
	}
	b.deployer.Fleet, b.platform.fail = b.fleet, fault.New(fault.Conflict, "", "", "1 disks are plugged into it")
	if err := b.deployer.Remove(t.Context(), who, m); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a VM that cannot be removed: %v", err)
	}
	if m, err = b.fleet.Get(t.Context(), "m1"); err != nil || !m.Drained || m.RevokedAt != nil {
		t.Errorf("the mover is then %+v, %v; want it drained", m, err)
	}
	b.platform.fail = nil
	b.ok(b.deployer.Remove(t.Context(), who, m))
	if diff := cmp.Diff([]string{"vm-" + jobs.Tag(task.ID)}, b.platform.gone); diff != "" {
		t.Errorf("removed VMs (-want +got):\n%s", diff)
	}
	if _, err := b.fleet.Get(t.Context(), "m1"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the mover is still known: %v", err)
	}
}

func TestRequestsThatCannotBe(t *testing.T) {
	b := newBench(t)
	for name, tt := range map[string]struct {
		change func(*Spec)
		want   fault.Kind
	}{
		"unknown connection": {func(s *Spec) { s.ConnectionID = "conn_x" }, fault.NotFound},
		"no such image":      {func(s *Spec) { s.Image = "/nowhere.qcow2" }, fault.Invalid},
		"a directory":        {func(s *Spec) { s.Image = b.deployer.Images }, fault.Invalid},
		"no address":         {func(s *Spec) { s.Address = "192.0.2.300/24" }, fault.Invalid},
		"no gateway":         {func(s *Spec) { s.Gateway = "x" }, fault.Invalid},
		"no name server":     {func(s *Spec) { s.DNS = []string{"ns.example"} }, fault.Invalid},
		"no session":         {func(s *Spec) { s.Sessions = []string{"iscsi://u:S3cret@h"} }, fault.Invalid},
		"no manager":         {func(s *Spec) { s.Manager = "a b" }, fault.Invalid},
		"full datastore": {func(s *Spec) {
			s.Datastore = "small"
			b.platform.full = []string{"small"}
		}, fault.Conflict},
	} {
		spec := b.spec()
		tt.change(&spec)
		if _, err := b.deployer.RequestDeploy(t.Context(), spec); fault.KindOf(err) != tt.want || strings.Contains(err.Error(), "S3cret") {
			t.Errorf("%s: %v, want %v", name, err, tt.want)
		}
	}
	b.deployer.Port = func() int { return 0 }
	if _, err := b.deployer.RequestDeploy(t.Context(), b.spec()); fault.KindOf(err) != fault.Unsupported {
		t.Errorf("nobody listens for movers: %v", err)
	}
	if diff := cmp.Diff(0, b.platform.there()); diff != "" {
		t.Error(diff)
	}
}
