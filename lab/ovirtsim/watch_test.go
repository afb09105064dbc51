package ovirtsim_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// TestWatch compares what a test is told of freezes with what can be read of them while the guest goes on, and looks at what it is told
// of requests.
func TestWatch(t *testing.T) {
	lab(t)
	var mu sync.Mutex
	var frozen []map[string][]byte
	var done []string
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite(), Watch: ovirtsim.Watch{
		Frozen: func(_ string, disks map[string][]byte) {
			mu.Lock()
			defer mu.Unlock()
			frozen = append(frozen, disks)
		},
		Done: func(request string, _ int) {
			mu.Lock()
			defer mu.Unlock()
			done = append(done, request)
		},
	}})
	s := admin(t, e)
	web, id := service(t, s, "web"), vmNamed(t, s, "web").MustId()
	disk := disksOf(t, web)[0]
	if err := e.Write(t.Context(), id, 2); err != nil {
		t.Fatal(err)
	}

	made := snapshot(t, web, "one")
	settle(e)
	if err := e.Write(t.Context(), id, 2); err != nil {
		t.Fatal(err)
	}
	for _, d := range ok(web.SnapshotsService().SnapshotService(made.MustId()).DisksService().List().Send())(t).MustDisks().Slice() {
		want, err := e.ReadVolume(t.Context(), d.MustImageId())
		if err != nil || len(frozen) != 1 || !bytes.Equal(frozen[0][d.MustId()], want) {
			t.Errorf("disk %s of the snapshot is not what was told, %v", d.MustId(), err)
		}
	}

	b, err := startBackup(t, web, "", disk)
	if err != nil {
		t.Fatal(err)
	}
	settle(e)
	if err := e.Write(t.Context(), id, 2); err != nil {
		t.Fatal(err)
	}
	_, url := download(t, e, s, sdk.NewImageTransferBuilder().Disk(sdk.NewDiskBuilder().Id(disk).MustBuild()).Backup(sdk.NewBackupBuilder().Id(ok(b.Get().Send())(t).MustBackup().MustId()).MustBuild()))
	if !bytes.Equal(fetch(t, e, url), frozen[len(frozen)-1][disk]) || bytes.Equal(frozen[0][disk], frozen[len(frozen)-1][disk]) {
		t.Errorf("the disk of the backup is not what was told")
	}
	if !slices.Contains(done, "POST /vms/"+id+"/snapshots") || slices.ContainsFunc(done, func(r string) bool { return strings.HasPrefix(r, "GET") }) {
		t.Errorf("the requests told of are %q", done)
	}
}

// TestOpenDisk: a disk that no guest writes to holds what is written.
func TestOpenDisk(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	disk := disksOf(t, service(t, admin(t, e), "mover1"))[0]
	d, err := e.OpenDisk(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.WriteAt([]byte("hello"), 1<<20)
	if err := errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	volume, err := e.ActiveVolume(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := e.ReadVolume(t.Context(), volume); err != nil || string(p[1<<20:1<<20+6]) != "hello\x00" {
		t.Errorf("it holds something else, %v", err)
	}
}

// TestCrashHosts: a checkpoint from before is of no use, and a backup that asks for it does not pretend otherwise.
func TestCrashHosts(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	web, id := service(t, s, "web"), vmNamed(t, s, "web").MustId()
	disk := disksOf(t, web)[0]
	b := ok(startBackup(t, web, "", disk))(t)
	settle(e)
	from := ok(b.Get().Send())(t).MustBackup().MustToCheckpointId()
	if err := e.CrashHosts(t.Context()); err == nil {
		t.Error("the hosts crash during a backup: what becomes of it is not simulated")
	}
	ok(b.Finalize().Send())(t)
	settle(e)
	if err := e.Write(t.Context(), id, 2); err != nil {
		t.Fatal(err)
	}
	if err := e.CrashHosts(t.Context()); err != nil {
		t.Fatal(err)
	}
	settle(e)
	if err := e.Write(t.Context(), id, 2); err != nil {
		t.Errorf("the guest does not go on: %v", err)
	}
	b = ok(startBackup(t, web, from, disk))(t)
	settle(e)
	switch p := phase(t, b); p {
	case sdk.BACKUPPHASE_FAILED:
		if c := ok(web.CheckpointsService().CheckpointService(from).Get().Send())(t).MustCheckpoint(); c.MustState() != sdk.CHECKPOINTSTATE_INVALID {
			t.Errorf("the checkpoint is %s", c.MustState())
		}
	case sdk.BACKUPPHASE_READY:
		if got := modes(t, b); !slices.Equal(got, []sdk.DiskBackupMode{sdk.DISKBACKUPMODE_FULL}) {
			t.Errorf("the disks are read as %v", got)
		}
	default:
		t.Errorf("the backup's phase is %s", p)
	}
}
