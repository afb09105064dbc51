package ovirtsim_test

import (
	"testing"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

func TestASnapshotHasMemoryUnlessToldOtherwise(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	web := service(t, s, "web")
	made := ok(web.SnapshotsService().Add().Snapshot(sdk.NewSnapshotBuilder().Description("one").MustBuild()).Send())(t).MustSnapshot()
	if !made.MustPersistMemorystate() {
		t.Error("it has none")
	}
	if st := vmNamed(t, s, "web").MustStatus(); st != sdk.VMSTATUS_SAVING_STATE {
		t.Errorf("the VM is %s meanwhile", st)
	}
	e.Advance(10 * time.Millisecond)
	if st := vmNamed(t, s, "web").MustStatus(); st != sdk.VMSTATUS_SAVING_STATE {
		t.Errorf("soon after it is %s", st)
	}
	settle(e)
	if st := vmNamed(t, s, "web").MustStatus(); st != sdk.VMSTATUS_UP {
		t.Errorf("in the end it is %s", st)
	}
}

func TestSnapshotsOfSomeDisks(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	web := service(t, s, "web")
	disks := disksOf(t, web)
	frozen := func(b *sdk.SnapshotBuilder) []*sdk.Disk {
		t.Helper()
		made := ok(web.SnapshotsService().Add().Snapshot(b.PersistMemorystate(false).MustBuild()).Send())(t).MustSnapshot()
		settle(e)
		got, there := ok(web.SnapshotsService().SnapshotService(made.MustId()).DisksService().List().Send())(t).Disks()
		if !there {
			return nil
		}
		return got.Slice()
	}
	one := sdk.NewDiskAttachmentBuilder().Disk(sdk.NewDiskBuilder().Id(disks[1]).MustBuild()).MustBuild()
	if got := frozen(sdk.NewSnapshotBuilder().Description("one").DiskAttachmentsOfAny(one)); len(got) != 1 || got[0].MustId() != disks[1] {
		t.Errorf("%d disks, want the one that was named", len(got))
	}
	if got := frozen(sdk.NewSnapshotBuilder().Description("none").DiskAttachments(new(sdk.DiskAttachmentSlice))); len(got) != 0 {
		t.Errorf("%d disks, want none: the list is empty", len(got))
	}
	if got := frozen(sdk.NewSnapshotBuilder().Description("all")); len(got) != 2 {
		t.Errorf("%d disks, want all", len(got))
	}
	node := service(t, s, "cluster-node")
	shared := sdk.NewDiskAttachmentBuilder().Disk(sdk.NewDiskBuilder().Id(disksOf(t, node)[1]).MustBuild()).MustBuild()
	_, err := node.SnapshotsService().Add().Snapshot(sdk.NewSnapshotBuilder().Description("x").DiskAttachmentsOfAny(shared).MustBuild()).Send()
	conflicts(t, err, "cannot be snapshotted")

	// The volumes of a chain, from the oldest to the active one.
	var store string
	for _, d := range ok(s.StorageDomainsService().List().Send())(t).MustStorageDomains().Slice() {
		if d.MustName() == "data1" {
			store = d.MustId()
		}
	}
	chain := map[string]string{}
	for _, d := range ok(s.StorageDomainsService().StorageDomainService(store).DiskSnapshotsService().List().Query("include_active", "true").Send())(t).MustSnapshots().Slice() {
		if d.MustDisk().MustId() == disks[1] {
			parent := ""
			if p, there := d.Parent(); there {
				parent = p.MustId()
			}
			chain[d.MustId()] = parent
		}
	}
	volume, err := e.ActiveVolume(t.Context(), disks[1])
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for ; volume != ""; n++ {
		parent, there := chain[volume]
		if !there || n > 9 {
			t.Fatalf("the chain %v has no %s", chain, volume)
		}
		volume = parent
	}
	if n != 3 {
		t.Errorf("the chain has %d volumes, want 3", n)
	}
}
