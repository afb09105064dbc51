package hypervisortest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// moverRequest asks for a mover VM of the fixture's image.
func (e *env) moverRequest(book *ledger) hypervisors.MoverRequest {
	req := e.MoverImage
	req.Tag, req.Name, req.Owe = e.tag(), "suite-"+random(), book.owe
	image := make([]byte, req.ImageBytes)
	if req.Image != nil {
		if _, err := req.Image.(*bytes.Reader).ReadAt(image, 0); err != nil {
			e.Fatal(err)
		}
		req.Image = bytes.NewReader(image)
	}
	return req
}

// movers returns those of this test, by name.
func (e *env) movers(req hypervisors.MoverRequest) []hypervisors.VM {
	e.Helper()
	all, err := e.Driver.Movers(e.cleanup())
	e.ok(err, "list movers")
	return slices.DeleteFunc(all, func(vm hypervisors.VM) bool { return !strings.HasSuffix(vm.Name, req.Name) })
}

func testDeploy(e *env) {
	e.need(e.caps.DeployMover, "deployment of movers")
	req := e.moverRequest(e.owed)
	before, err := e.Driver.VMs(e.Context())
	e.ok(err, "list VMs")
	e.ok(e.Driver.CheckMover(e.Context(), req), "check deployment")
	e.clean("after CheckMover")
	vm, err := e.Driver.DeployMover(e.Context(), req)
	e.ok(err, "deploy mover")
	defer func() { e.ok(e.Driver.RemoveMover(e.cleanup(), vm.ID), "remove mover") }()
	if vm.ID == "" || vm.Power != hypervisors.PowerOn || len(vm.NICs) != 1 || vm.NICs[0].Network != req.Network {
		e.Errorf("deployed %+v, want it on and with a NIC on %s", vm, req.Network)
	}
	if got := e.movers(req); len(got) != 1 || got[0].ID != vm.ID || got[0].Power != hypervisors.PowerOn {
		e.Errorf("movers of this name: %+v", got)
	}
	e.clean("after the deployment")
	after, err := e.Driver.VMs(e.Context())
	e.ok(err, "list VMs")
	if len(after) != len(before) {
		e.Errorf("the inventory has %d VMs, had %d: it shows a mover", len(after), len(before))
	}
	_, err = e.Driver.VM(e.Context(), vm.ID)
	e.kind(err, fault.NotFound, "look up a mover as a VM")
	_, err = e.Driver.Freeze(e.Context(), e.request(vm.ID))
	e.kind(err, fault.NotFound, "freeze a mover")
	again := e.moverRequest(e.owed)
	again.Name = req.Name
	e.kind(e.Driver.CheckMover(e.Context(), again), fault.Exists, "a second mover of the name")

	e.ok(e.Driver.RemoveMover(e.Context(), vm.ID), "remove mover")
	if got := e.movers(req); len(got) != 0 {
		e.Errorf("movers after the removal: %+v", got)
	}
	e.clean("after the removal")
	e.ok(e.Driver.RemoveMover(e.Context(), vm.ID), "remove a mover that is gone")
	if err := e.Driver.RemoveMover(e.Context(), e.Running); fault.KindOf(err) != fault.Invalid {
		e.Errorf("remove a user's VM as if it were a mover: %v", err)
	}
	if got := e.vm(e.Running).Power; got != hypervisors.PowerOn {
		e.Errorf("the user's VM is %q", got)
	}
}

func testDeployRefused(e *env) {
	e.need(e.caps.DeployMover, "deployment of movers")
	for name, tt := range map[string]struct {
		change func(*hypervisors.MoverRequest)
		want   fault.Kind
		late   bool // seen only when the image is read
	}{
		"no name":           {func(r *hypervisors.MoverRequest) { r.Name = "" }, fault.Invalid, false},
		"a bad name":        {func(r *hypervisors.MoverRequest) { r.Name = "../x" }, fault.Invalid, false},
		"a bad tag":         {func(r *hypervisors.MoverRequest) { r.Tag = "a b" }, fault.Invalid, false},
		"no seed":           {func(r *hypervisors.MoverRequest) { r.Seed = nil }, fault.Invalid, false},
		"no image":          {func(r *hypervisors.MoverRequest) { r.ImageBytes = 0 }, fault.Invalid, false},
		"no memory":         {func(r *hypervisors.MoverRequest) { r.MemoryBytes = 1 << 20 }, fault.Invalid, false},
		"unknown datastore": {func(r *hypervisors.MoverRequest) { r.Datastore = "nowhere" }, fault.NotFound, false},
		"unknown network":   {func(r *hypervisors.MoverRequest) { r.Network = "network:nowhere" }, fault.NotFound, false},
		"another image": {func(r *hypervisors.MoverRequest) {
			r.Image = bytes.NewReader(make([]byte, r.ImageBytes))
		}, fault.Invalid, true},
		"an image that ends early": {func(r *hypervisors.MoverRequest) { r.ImageBytes++ }, fault.Invalid, true},
	} {
		req := e.moverRequest(e.owed)
		tt.change(&req)
		if !tt.late {
			e.kind(e.Driver.CheckMover(e.Context(), req), tt.want, "check: "+name)
		}
		_, err := e.Driver.DeployMover(e.Context(), req)
		e.kind(err, tt.want, "deploy: "+name)
		e.clean("after a refusal: " + name)
	}
}

// testDeployOwe fails and cancels a deployment at each thing that is owed.
func testDeployOwe(e *env) {
	e.need(e.caps.DeployMover, "deployment of movers")
	refused := errors.New("the catalog is full")
	for n := 1; ; n++ {
		book := &ledger{fail: n, err: refused}
		req := e.moverRequest(book)
		vm, err := e.Driver.DeployMover(e.Context(), req)
		if err == nil {
			e.ok(e.Driver.RemoveMover(e.Context(), vm.ID), "remove mover")
			if n == 1 {
				e.Error("nothing was owed for a mover")
			}
			break
		}
		if !errors.Is(err, refused) {
			e.Fatalf("the record of thing %d failed: %v", n, err)
		}
		e.clean("after a deployment whose record failed")

		ctx, cancel := context.WithCancel(e.Context())
		book = &ledger{hook: func(i int) {
			if i == n {
				cancel()
			}
		}}
		req = e.moverRequest(book)
		_, err = e.Driver.DeployMover(ctx, req)
		e.kind(err, fault.Canceled, "canceled deployment")
		e.cleanAll(book)
		e.clean("after the clean-up of a canceled deployment")
		if got := e.movers(req); len(got) != 0 {
			e.Errorf("movers after a canceled deployment: %+v", got)
		}
	}
}

// testDeployCleanUp forgets a deployment that was not recorded as complete.
func testDeployCleanUp(e *env) {
	e.need(e.caps.DeployMover, "deployment of movers")
	book := &ledger{}
	req := e.moverRequest(book)
	_, err := e.Driver.DeployMover(e.Context(), req)
	e.ok(err, "deploy mover")
	e.cleanAll(book)
	if got := e.movers(req); len(got) != 0 {
		e.Errorf("movers after the clean-up: %+v", got)
	}
	e.clean("after the clean-up")
}
