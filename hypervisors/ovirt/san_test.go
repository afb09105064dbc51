package ovirt

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
)

// TestDisksOnLUNs freezes a VM with disks on files and on a block domain by two snapshots: the second one's export names the LUNs and
// the volumes, the frozen one first and the one below it then, and never the active one.
func TestDisksOnLUNs(t *testing.T) {
	s := newSim(t, false)
	find := func(f hypervisors.Frozen, datastore string) hypervisors.FrozenDiskInfo {
		t.Helper()
		all := f.Info().Disks
		i := slices.IndexFunc(all, func(d hypervisors.FrozenDiskInfo) bool { return d.Disk.Datastore == datastore })
		if i < 0 {
			t.Fatalf("no disk on %s among %+v", datastore, all)
		}
		return all[i]
	}
	// A snapshot of the customer's is below ours.
	if err := s.foreignSnapshot(archiveID); err != nil {
		t.Fatal(err)
	}
	f := s.freeze(hypervisors.FreezeRequest{VM: archiveID, Tag: "lanfree", Owe: s.book.owe})
	if x := find(f, "data1"); x.Export.SAN != nil || x.Export.Transport != hypervisors.TransportImageio {
		t.Errorf("the disk on files: %+v", x.Export.SAN)
	}
	x := find(f, "san1")
	if x.Export.SAN == nil || len(x.Export.SAN.LUNs) != 1 || x.Export.SAN.LUNs[0].WWN == "" || x.Export.Transport != hypervisors.TransportImageio {
		t.Fatalf("the disk on LUNs: %+v", x.Export)
	}
	domain, volumes := s.volumes(x.Disk.ID)
	if len(volumes) != 3 {
		t.Fatalf("volumes %v", volumes)
	}
	layer := func(at int, below, name string) hypervisors.SANLayer {
		return hypervisors.SANLayer{
			VolumeName: volumes[at], Name: name, Format: hypervisors.QCOW2, Tags: []string{"IU_" + x.Disk.ID, "PU_" + below},
			NotTags: []string{"OVIRT_VOL_INITIALIZING"}, FrozenBy: "PU_" + volumes[at],
		}
	}
	want := []hypervisors.SANLayer{layer(1, volumes[0], ""), layer(0, "00000000-0000-0000-0000-000000000000", volumes[0])}
	if diff := cmp.Diff(want, x.Export.SAN.Layers); diff != "" || x.Export.SAN.Group != domain {
		t.Errorf("group %q, want %q; layers (-want +got):\n%s", x.Export.SAN.Group, domain, diff)
	}
	kept := f.Info().Kept()
	for i := range kept.Disks {
		kept.Disks[i].Export.SAN = nil
	}
	again, err := s.d.Refreeze(t.Context(), hypervisors.Standing{Tag: "lanfree", Info: kept, Owed: s.book.items})
	if err != nil {
		t.Fatal(err)
	}
	if y := find(again, "san1"); cmp.Diff(x.Export.SAN, y.Export.SAN) != "" || y.Export.Imageio == nil {
		t.Errorf("taken up: %+v", y.Export.SAN)
	}
	s.release(again)
}

// foreignSnapshot makes a snapshot that is not ours.
func (s *sim) foreignSnapshot(vm string) error {
	ctx := s.Context()
	x, err := s.d.VM(ctx, vm)
	if err != nil {
		return err
	}
	doc, err := snapshotDocument("before the update", idsOf(x.Disks))
	if err != nil {
		return err
	}
	if _, err := s.d.conn.Post(ctx, "make snapshot of VM", vm, "/vms/"+vm+"/snapshots", doc, "foreign"); err != nil {
		return err
	}
	return s.d.pace.poll(ctx, s.d.pace.create, "a snapshot is made", func() (bool, error) {
		x, err := s.d.findSnapshot(ctx, vm, "before the update")
		return x != nil && val(x.SnapshotStatus()) == sdk.SNAPSHOTSTATUS_OK, err
	})
}

// volumes returns the domain of a disk and its volumes, the lowest first.
func (s *sim) volumes(disk string) (domain string, out []string) {
	s.Helper()
	ctx := s.Context()
	d, err := engine.One(ctx, s.d.conn, engine.Request{Path: "/disks/" + disk}, "disk", sdk.XMLDiskReadOne)
	if err != nil {
		s.Fatal(err)
	}
	domain = val(items(d.StorageDomains())[0].Id())
	all, err := engine.All[*sdk.DiskSnapshot](ctx, s.d.conn, engine.Request{
		Path: "/storagedomains/" + domain + "/disksnapshots", Query: engine.Query("include_active", "true"),
	}, "disk_snapshots", sdk.XMLDiskSnapshotReadMany)
	if err != nil {
		s.Fatal(err)
	}
	for _, v := range all {
		if idOf(v.Disk()) == disk {
			out = append(out, val(v.Id()))
		}
	}
	if n := len(out); n == 0 || out[n-1] != val(d.ImageId()) {
		s.Fatal(errors.New("the last volume is not the active one"))
	}
	return domain, out
}
