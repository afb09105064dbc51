package ovirtsim_test

import (
	"bytes"
	"testing"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// snapshot asks for one without memory, of all disks.
func snapshot(t *testing.T, v *sdk.VmService, description string) *sdk.Snapshot {
	t.Helper()
	s := sdk.NewSnapshotBuilder().Description(description).PersistMemorystate(false).MustBuild()
	return ok(v.SnapshotsService().Add().Snapshot(s).Query("correlation_id", "corr-"+description).Send())(t).MustSnapshot()
}

func TestSnapshotTakesTheActiveOnesID(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	v := service(t, s, "web")
	list := func() (out []*sdk.Snapshot) { return ok(v.SnapshotsService().List().Send())(t).MustSnapshots().Slice() }
	before := list()
	if len(before) != 1 || before[0].MustSnapshotType() != sdk.SNAPSHOTTYPE_ACTIVE {
		t.Fatalf("%d snapshots at first", len(before))
	}
	disks := disksOf(t, v)
	if err := e.Write(t.Context(), vmNamed(t, s, "web").MustId(), 3); err != nil {
		t.Fatal(err)
	}
	volume, err := e.ActiveVolume(t.Context(), disks[0])
	if err != nil {
		t.Fatal(err)
	}
	was, err := e.ReadVolume(t.Context(), volume)
	if err != nil {
		t.Fatal(err)
	}

	made := snapshot(t, v, "one")
	if made.MustId() != before[0].MustId() || made.MustSnapshotStatus() != sdk.SNAPSHOTSTATUS_LOCKED {
		t.Errorf("the new one is %s, %s; the active one was %s", made.MustId(), made.MustSnapshotStatus(), before[0].MustId())
	}
	if d := ok(s.DisksService().DiskService(disks[0]).Get().Send())(t).MustDisk(); d.MustStatus() != sdk.DISKSTATUS_LOCKED {
		t.Errorf("the disk is %s meanwhile", d.MustStatus())
	}
	_, err = v.SnapshotsService().Add().Snapshot(sdk.NewSnapshotBuilder().Description("two").PersistMemorystate(false).MustBuild()).Send()
	conflicts(t, err, "locked")
	settle(e)
	one := v.SnapshotsService().SnapshotService(made.MustId())
	got := ok(one.Get().Query("all_content", "true").Send())(t).MustSnapshot()
	if got.MustSnapshotStatus() != sdk.SNAPSHOTSTATUS_OK || got.MustSnapshotType() != sdk.SNAPSHOTTYPE_REGULAR || got.MustDescription() != "one" {
		t.Errorf("afterwards it is %s, %s, %s", got.MustSnapshotStatus(), got.MustSnapshotType(), got.MustDescription())
	}
	if ovf := got.MustInitialization().MustConfiguration().MustData(); !bytes.Contains([]byte(ovf), []byte(disks[0]+"/"+volume)) {
		t.Errorf("the document does not name %s/%s", disks[0], volume)
	}
	if after := list(); len(after) != 2 || after[1].MustSnapshotType() != sdk.SNAPSHOTTYPE_ACTIVE || after[1].MustId() == made.MustId() {
		t.Errorf("%d snapshots afterwards", len(after))
	}

	if err := e.Write(t.Context(), vmNamed(t, s, "web").MustId(), 3); err != nil {
		t.Fatal(err)
	}
	frozen := ok(one.DisksService().List().Send())(t).MustDisks().Slice()
	if len(frozen) != 2 || frozen[0].MustImageId() != volume || frozen[0].MustSnapshot().MustId() != made.MustId() {
		t.Fatalf("%d disks in the snapshot", len(frozen))
	}
	is, err := e.ReadVolume(t.Context(), volume)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(was, is) {
		t.Error("the snapshot is not what the disk was")
	}
	ok(one.Remove().Query("correlation_id", "corr-removal").Send())(t)
	settle(e)
	_, err = one.Get().Send()
	absent(t, err)
	if now, err := e.ActiveVolume(t.Context(), disks[0]); err != nil || now != volume {
		t.Errorf("after the merge the volume is %s, %v; want %s", now, err, volume)
	}
	jobs := ok(s.JobsService().List().Query("search", "correlation_id=corr-removal").Send())(t).MustJobs().Slice()
	if len(jobs) != 1 || jobs[0].MustStatus() != sdk.JOBSTATUS_FINISHED {
		t.Errorf("%d jobs of the removal", len(jobs))
	}
}
