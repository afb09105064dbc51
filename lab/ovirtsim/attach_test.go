package ovirtsim_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// rooted skips a test that needs loop devices where there are none, but not where all must be there.
func rooted(t *testing.T) {
	t.Helper()
	lab(t)
	if os.Geteuid() != 0 && os.Getenv("CAIRN_LAB") != "1" {
		t.Skip("needs root, for loop devices")
	}
}

// attachment is a disk, or what a snapshot has of it, for a mover.
func attachment(disk, snapshot string, active bool) *sdk.DiskAttachment {
	d := sdk.NewDiskBuilder().Id(disk)
	if snapshot != "" {
		d.Snapshot(sdk.NewSnapshotBuilder().Id(snapshot).MustBuild())
	}
	return sdk.NewDiskAttachmentBuilder().Active(active).Bootable(false).Interface(sdk.DISKINTERFACE_VIRTIO_SCSI).Disk(d.MustBuild()).MustBuild()
}

// serialOf reads the serial number that a device of a mover shows.
func serialOf(t *testing.T, dir string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "device/vpd_pg80"))
	if err != nil {
		t.Fatal(err)
	}
	return string(b[4:])
}

// plugged are the devices that a mover sees.
func plugged(t *testing.T, e *ovirtsim.Engine, vm string) (dirs []string) {
	t.Helper()
	g, err := e.Guest(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	dirs, err = filepath.Glob(filepath.Join(g.Sys, "block/*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

func TestHotAdd(t *testing.T) {
	rooted(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	web, mover := service(t, s, "web"), service(t, s, "mover1")
	moverID := vmNamed(t, s, "mover1").MustId()
	disk := disksOf(t, web)[0]
	made := snapshot(t, web, "one")
	_, err := mover.DiskAttachmentsService().Add().Attachment(attachment(disk, made.MustId(), true)).Send()
	conflicts(t, err, "locked")
	settle(e)
	frozen := ok(web.SnapshotsService().SnapshotService(made.MustId()).DisksService().List().Send())(t).MustDisks().Slice()
	var volume string
	for _, d := range frozen {
		if d.MustId() == disk {
			volume = d.MustImageId()
		}
	}
	want, err := e.ReadVolume(t.Context(), volume)
	if err != nil {
		t.Fatal(err)
	}
	ok(mover.DiskAttachmentsService().Add().Attachment(attachment(disk, made.MustId(), true)).Send())(t)
	settle(e)
	dirs := plugged(t, e, moverID)
	if len(dirs) != 1 || serialOf(t, dirs[0]) != disk {
		t.Fatalf("the mover sees %v", dirs)
	}
	if diff := cmp.Diff(e.Leftovers(), []string{"VM mover1: disk web_Disk1 is attached to it", `VM web: snapshot "one", ok`}); diff != "" {
		t.Errorf("leftovers (-got +want):\n%s", diff)
	}
	device := filepath.Join("/dev", filepath.Base(dirs[0]))
	if err := e.Write(t.Context(), vmNamed(t, s, "web").MustId(), 3); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(device); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the mover reads %d bytes, %v, equal: %v", len(got), err, bytes.Equal(got, want))
	}
	// What the mover writes, as a file system that is mounted there would, never reaches the source.
	f, err := os.OpenFile(device, os.O_WRONLY|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(bytes.Repeat([]byte("x"), 4096), 0)
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if now, err := e.ReadVolume(t.Context(), volume); err != nil || !bytes.Equal(now, want) {
		t.Errorf("the snapshot has changed, %v", err)
	}
	_, err = mover.DiskAttachmentsService().Add().Attachment(attachment(disk, made.MustId(), true)).Send()
	conflicts(t, err, "already attached")
	_, err = web.SnapshotsService().SnapshotService(made.MustId()).Remove().Send()
	conflicts(t, err, "attached to other VMs")
	at := mover.DiskAttachmentsService().AttachmentService(disk)
	ok(at.Remove().DetachOnly(true).Send())(t)
	ok(at.Get().Send())(t) // it takes a while
	settle(e)
	_, err = at.Get().Send()
	absent(t, err)
	if dirs := plugged(t, e, moverID); len(dirs) != 0 {
		t.Errorf("the mover still sees %v", dirs)
	}
	ok(web.SnapshotsService().SnapshotService(made.MustId()).Remove().Send())(t)
	if got := e.Leftovers(); len(got) == 0 {
		t.Error("no leftovers while the snapshot is being removed")
	}
	settle(e)
	if got := e.Leftovers(); len(got) != 0 {
		t.Errorf("leftovers: %v", got)
	}
}

func TestDevicesThatGoWrong(t *testing.T) {
	rooted(t)
	for _, c := range []struct {
		b     ovirtsim.Behaviour
		wrong func(t *testing.T, dirs []string, disk string) bool
	}{
		{ovirtsim.DeviceMissing, func(_ *testing.T, dirs []string, _ string) bool { return len(dirs) == 0 }},
		{ovirtsim.DeviceShortSerial, func(t *testing.T, dirs []string, disk string) bool {
			return len(dirs) == 1 && serialOf(t, dirs[0]) == disk[:20]
		}},
		{ovirtsim.DeviceTwice, func(t *testing.T, dirs []string, disk string) bool {
			return len(dirs) == 2 && serialOf(t, dirs[0]) == disk && serialOf(t, dirs[1]) == disk
		}},
		{ovirtsim.DeviceWrongSize, func(_ *testing.T, dirs []string, _ string) bool {
			b, err := os.ReadFile(filepath.Join(dirs[0], "size"))
			return err == nil && strings.TrimSpace(string(b)) == "8193"
		}},
	} {
		t.Run(string(c.b), func(t *testing.T) {
			e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
			s := admin(t, e)
			disk := makeDisk(t, e, s, newDisk("plain", 4<<20, sdk.DISKFORMAT_COW, "data1"))
			f := e.Inject(c.b, ovirtsim.Fault{On: "plain"})
			mover := service(t, s, "mover1")
			ok(mover.DiskAttachmentsService().Add().Attachment(attachment(disk, "", true)).Send())(t)
			settle(e)
			if !c.wrong(t, plugged(t, e, vmNamed(t, s, "mover1").MustId()), disk) || f.Fired() != 1 {
				t.Errorf("it has not happened; fired %d times", f.Fired())
			}
			ok(mover.DiskAttachmentsService().AttachmentService(disk).Remove().DetachOnly(true).Send())(t)
			settle(e)
		})
	}
}

func TestAttachmentsThatAreRefused(t *testing.T) {
	lab(t)
	site := ovirtsim.SmallSite()
	site.DataCenters = append(site.DataCenters, ovirtsim.DataCenter{
		Name: "other", Storage: []ovirtsim.StorageDomain{{Name: "far"}},
		Clusters: []ovirtsim.Cluster{{Name: "far", Hosts: []string{"far1"}, VMs: []ovirtsim.VM{{Name: "stranger", Up: true, Disks: []ovirtsim.Disk{{}}}}}},
	})
	e := start(t, ovirtsim.Config{Site: site})
	s := admin(t, e)
	mover := service(t, s, "mover1")
	made := snapshot(t, service(t, s, "stranger"), "far")
	settle(e)
	foreign := disksOf(t, service(t, s, "stranger"))[0]
	add := func(a *sdk.DiskAttachment) error {
		_, err := mover.DiskAttachmentsService().Add().Attachment(a).Send()
		return err
	}
	conflicts(t, add(attachment(foreign, made.MustId(), true)), "data center")
	conflicts(t, add(attachment(disksOf(t, service(t, s, "web"))[0], "", true)), "already attached to VM web")
	conflicts(t, add(attachment(foreign, "aaaaaaaa-0000-0000-0000-000000000000", true)), "data center")
	if err := add(sdk.NewDiskAttachmentBuilder().Active(true).Disk(sdk.NewDiskBuilder().Id(foreign).MustBuild()).MustBuild()); err == nil || !strings.Contains(err.Error(), "bootable, interface") {
		t.Errorf("without interface: %v", err)
	}
	f := e.Inject(ovirtsim.AttachLocked, ovirtsim.Fault{Times: 1})
	plain := makeDisk(t, e, s, newDisk("plain", 4<<20, sdk.DISKFORMAT_COW, "data1"))
	conflicts(t, add(attachment(plain, "", false)), "locked")
	if err := add(attachment(plain, "", false)); err != nil || f.Fired() != 1 {
		t.Errorf("once more: %v, fired %d times", err, f.Fired())
	}
	slow := e.Inject(ovirtsim.DetachSlow, ovirtsim.Fault{On: plain})
	at := mover.DiskAttachmentsService().AttachmentService(plain)
	ok(at.Remove().Send())(t)
	e.Advance(20e6)
	ok(at.Get().Send())(t)
	settle(e)
	_, err := at.Get().Send()
	absent(t, err)
	if slow.Fired() != 1 {
		t.Errorf("fired %d times", slow.Fired())
	}
	ok(s.DisksService().DiskService(plain).Get().Send())(t) // detach_only is what happens by default
	if err := add(attachment(plain, "", false)); err != nil {
		t.Fatal(err)
	}
	ok(at.Remove().DetachOnly(false).Send())(t)
	settle(e)
	_, err = s.DisksService().DiskService(plain).Get().Send()
	absent(t, err)
}
