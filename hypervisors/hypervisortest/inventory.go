package hypervisortest

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func testInventory(e *env) {
	vms, err := e.Driver.VMs(e.Context())
	e.ok(err, "list VMs")
	if !slices.IsSortedFunc(vms, func(a, b hypervisors.VM) int { return strings.Compare(a.Name, b.Name) }) {
		e.Error("the VMs are not sorted by name")
	}
	power := map[string]hypervisors.Power{e.Running: hypervisors.PowerOn}
	if e.Stopped != "" {
		power[e.Stopped] = hypervisors.PowerOff
	}
	for id, want := range power {
		i := slices.IndexFunc(vms, func(vm hypervisors.VM) bool { return vm.ID == id })
		if i < 0 {
			e.Errorf("VM %s is not in the list", id)
			continue
		}
		vm := e.vm(id)
		if diff := cmp.Diff(vms[i], vm, cmpopts.IgnoreFields(hypervisors.Disk{}, "UsedBytes")); diff != "" {
			e.Errorf("VM %s differs from its entry in the list (-list +single):\n%s", id, diff)
		}
		if vm.Power != want {
			e.Errorf("VM %s is %q, want %q", id, vm.Power, want)
		}
		e.Run(vm.Name, func(t *testing.T) { plausible(t, vm) })
	}
	stores, err := e.Driver.Datastores(e.Context())
	e.ok(err, "list datastores")
	for _, s := range stores {
		if s.ID == "" || s.Name == "" || s.FreeBytes < 0 || s.FreeBytes > s.CapacityBytes {
			e.Errorf("datastore %+v", s)
		}
	}
	networks, err := e.Driver.Networks(e.Context())
	e.ok(err, "list networks")
	for _, n := range networks {
		if n.Name == "" {
			e.Errorf("network without a name: %+v", n)
		}
	}
	health, err := e.Driver.Check(e.Context())
	e.ok(err, "check")
	if health.Product == "" || health.VMs < len(power) {
		e.Errorf("health %+v, want a product and at least %d VMs", health, len(power))
	}
}

// plausible checks what must be so for any VM.
func plausible(t *testing.T, vm hypervisors.VM) {
	if vm.Name == "" || vm.CPUs <= 0 || vm.MemoryBytes <= 0 || vm.Firmware == "" {
		t.Errorf("name %q, %d CPUs, %d bytes of memory, firmware %q", vm.Name, vm.CPUs, vm.MemoryBytes, vm.Firmware)
	}
	seen := map[string]bool{}
	disks := 0
	for _, d := range vm.Disks {
		if d.ID == "" || seen[d.ID] || d.Kind == "" {
			t.Errorf("disk %+v: its id must be there and unique, and its kind known", d)
		}
		seen[d.ID] = true
		if d.Unprotectable == "" {
			disks++
			if d.SizeBytes <= 0 {
				t.Errorf("disk %s has %d bytes", d.ID, d.SizeBytes)
			}
		}
	}
	if disks == 0 {
		t.Error("no disk can be backed up")
	}
}

func testUnknownVM(e *env) {
	ctx := e.Context()
	_, err := e.Driver.VM(ctx, e.NoSuchVM)
	e.kind(err, fault.NotFound, "look up an unknown VM")
	if e.caps.Backup {
		_, err = e.Driver.Freeze(ctx, e.request(e.NoSuchVM))
		e.kind(err, fault.NotFound, "freeze an unknown VM")
	}
	if e.caps.Power {
		e.kind(e.Driver.Start(ctx, e.NoSuchVM), fault.NotFound, "start an unknown VM")
		e.kind(e.Driver.Stop(ctx, e.NoSuchVM, true), fault.NotFound, "stop an unknown VM")
	}
	if len(e.owed.items) > 0 {
		e.Errorf("owed for an unknown VM: %+v", e.owed.items)
	}
}

// testCapabilities checks that what is denied is not done; that what is promised is done, the other tests show.
func testCapabilities(e *env) {
	ctx := e.Context()
	if again := e.Driver.Capabilities(); !cmp.Equal(again, e.caps) {
		e.Errorf("capabilities are not constant: %+v, then %+v", e.caps, again)
	}
	if e.caps.Platform == "" || e.caps.Backup && len(e.caps.Transports) == 0 || e.caps.Restore && len(e.caps.Formats) == 0 {
		e.Errorf("capabilities %+v: no platform, or no transport to back up by, or no format to restore to", e.caps)
	}
	vm := e.vm(e.Running)
	req := e.request(e.Running)
	restore := hypervisors.RestoreRequest{Tag: e.tag(), Mode: hypervisors.RestoreNew, Name: "never", VM: vm, Disks: restoreDisks(vm), Owe: e.owed.owe}
	inPlace := restore
	inPlace.Mode = hypervisors.RestoreInPlace
	alone, into := restore, restore
	alone.Mode, into.Mode, into.Into = hypervisors.RestoreDisks, hypervisors.RestoreInto, e.Running
	for _, tt := range []struct {
		name string
		has  bool
		call func() error
	}{
		{"Backup", e.caps.Backup, func() error { _, err := e.Driver.Freeze(ctx, req); return err }},
		{"ChangeTracking", e.caps.ChangeTracking, func() error { _, err := e.Driver.Checkpoints(ctx, e.Running); return err }},
		{"ChangeTracking", e.caps.ChangeTracking, func() error { return e.Driver.KeepCheckpoint(ctx, e.Running, "") }},
		{"Restore", e.caps.Restore, func() error { return e.Driver.CheckRestore(ctx, restore) }},
		{"Restore", e.caps.Restore, func() error { _, err := e.Driver.BeginRestore(ctx, restore); return err }},
		{"RestoreInPlace", e.caps.RestoreInPlace, func() error { return e.Driver.CheckRestore(ctx, inPlace) }},
		{"RestoreInPlace", e.caps.RestoreInPlace, func() error { _, err := e.Driver.BeginRestore(ctx, inPlace); return err }},
		{"RestoreDisks", e.caps.RestoreDisks, func() error { return e.Driver.CheckRestore(ctx, alone) }},
		{"RestoreDisks", e.caps.RestoreDisks, func() error { _, err := e.Driver.BeginRestore(ctx, alone); return err }},
		{"RestoreInto", e.caps.RestoreInto, func() error { return e.Driver.CheckRestore(ctx, into) }},
		{"RestoreInto", e.caps.RestoreInto, func() error { _, err := e.Driver.BeginRestore(ctx, into); return err }},
		{"TransportHotadd", slices.Contains(e.caps.Transports, hypervisors.TransportHotadd), func() error {
			_, err := e.Driver.Attach(ctx, e.attachRequest(e.tag(), hypervisors.Export{Transport: hypervisors.TransportNBD, Name: "d", SizeBytes: 512}))
			return err
		}},
		{"DeployMover", e.caps.DeployMover, func() error { return e.Driver.CheckMover(ctx, hypervisors.MoverRequest{}) }},
		{"DeployMover", e.caps.DeployMover, func() error { _, err := e.Driver.DeployMover(ctx, hypervisors.MoverRequest{}); return err }},
		{"DeployMover and TransportHotadd", e.caps.DeployMover || slices.Contains(e.caps.Transports, hypervisors.TransportHotadd),
			func() error { _, err := e.Driver.Movers(ctx); return err }},
		{"DeployMover", e.caps.DeployMover, func() error { return e.Driver.RemoveMover(ctx, e.Running) }},
		{"Watch", e.caps.Watch, func() error { return e.Driver.Watch(ctx, func(string) {}) }},
		{"Power", e.caps.Power, func() error { return e.Driver.Start(ctx, e.Running) }},
		{"Power", e.caps.Power, func() error { return e.Driver.Stop(ctx, e.Running, true) }},
	} {
		if tt.has {
			continue
		}
		if err := tt.call(); !errors.Is(err, errors.ErrUnsupported) {
			e.Errorf("%s is denied, but the call answers %v, want errors.ErrUnsupported", tt.name, err)
		}
	}
}

func testPower(e *env) {
	e.need(e.caps.Power && e.Stopped != "", "power switch, or no stopped VM")
	ctx := e.Context()
	for _, want := range []hypervisors.Power{hypervisors.PowerOn, hypervisors.PowerOff} {
		if want == hypervisors.PowerOn {
			e.ok(e.Driver.Start(ctx, e.Stopped), "start")
		} else {
			e.ok(e.Driver.Stop(ctx, e.Stopped, true), "stop")
		}
		if got := e.vm(e.Stopped).Power; got != want {
			e.Errorf("the VM is %q, want %q", got, want)
		}
	}
}
