package hypervisortest

import (
	"encoding/json"
	"reflect"
	"slices"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// testRefreeze takes up freezes as another process would, with nothing but what was recorded of them.
func testRefreeze(e *env) {
	e.need(e.caps.Backup, "backup")
	vms := []string{e.Running}
	if e.caps.StoppedBackup {
		vms = append(vms, e.Stopped)
	}
	for _, vm := range vms {
		e.refreeze(vm)
	}
}

func (e *env) refreeze(vm string) {
	e.Helper()
	e.Write(e.T)
	e.owed = &ledger{}
	req := e.request(vm)
	f := e.freeze(req)
	standing := hypervisors.Standing{Tag: req.Tag, Owed: e.owed.items}
	stored, err := json.Marshal(f.Info().Kept())
	e.ok(err, "store what is kept of a freeze")
	e.ok(json.Unmarshal(stored, &standing.Info), "read what was kept of a freeze")
	want := map[string][]byte{}
	for _, d := range f.Info().Disks {
		want[d.Disk.ID] = e.Content(e.T, vm, d.Disk.ID)
	}
	other := standing
	other.Tag = e.tag()
	_, err = e.Driver.Refreeze(e.Context(), other)
	e.kind(err, fault.Conflict, "take up a freeze that is another's")
	owed := len(e.owed.items)
	g, err := e.Driver.Refreeze(e.Context(), standing)
	e.ok(err, "take up a freeze")
	if len(e.owed.items) != owed {
		e.Error("taking a freeze up made something")
	}
	if got, was := diskIDs(g.Info().Disks), diskIDs(f.Info().Disks); len(got) != len(was) || !g.Info().Time.Equal(f.Info().Time) {
		e.Errorf("taken up with disks %v of %v, %v of %v", got, was, g.Info().Time, f.Info().Time)
	}
	e.Write(e.T)
	for i, d := range g.Info().Disks {
		if was := f.Info().Disks[i].Export.SAN; !reflect.DeepEqual(d.Export.SAN, was) {
			e.Errorf("disk %s lies at %+v, and lay at %+v", d.Disk.ID, d.Export.SAN, was)
		}
		e.same(e.read(d.Export), want[d.Disk.ID], "disk "+d.Disk.ID+" of a freeze that was taken up")
		if slices.Contains(e.caps.Transports, hypervisors.TransportHotadd) {
			a := e.attach(req.Tag, d.Export)
			e.same(e.read(a.Export()), want[d.Disk.ID], "disk "+d.Disk.ID+" of a freeze that was taken up, in the mover")
			e.detach(a)
		}
	}
	e.release(g)
	e.clean("after the release of a freeze that was taken up")
	_, err = e.Driver.Refreeze(e.Context(), standing)
	e.kind(err, fault.Conflict, "take up a freeze that has ended")
}
