package ovirtsim_test

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// scene is an engine in which a behaviour is to happen.
type scene struct {
	*ovirtsim.Engine
	s     *sdk.SystemService
	web   *sdk.VmService
	disks []string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	e := start(t, ovirtsim.Config{Site: site46()})
	x := &scene{Engine: e, s: admin(t, e)}
	x.web = service(t, x.s, "web")
	x.disks = disksOf(t, x.web)
	return x
}

// checkpointed makes a backup, which leaves a checkpoint.
func (x *scene) checkpointed(t *testing.T) (checkpoint string) {
	t.Helper()
	b := x.ready(t, "")
	checkpoint = ok(b.Get().Send())(t).MustBackup().MustToCheckpointId()
	ok(b.Finalize().Send())(t)
	settle(x.Engine)
	return checkpoint
}

func (x *scene) ready(t *testing.T, from string) *sdk.VmBackupService {
	t.Helper()
	b := ok(startBackup(t, x.web, from, x.disks...))(t)
	settle(x.Engine)
	if p := phase(t, b); p != sdk.BACKUPPHASE_READY {
		t.Fatalf("the backup is %s", p)
	}
	return b
}

// snapshotted makes a snapshot and returns its service.
func (x *scene) snapshotted(t *testing.T) *sdk.SnapshotService {
	t.Helper()
	made := snapshot(t, x.web, "one")
	settle(x.Engine)
	return x.web.SnapshotsService().SnapshotService(made.MustId())
}

func (x *scene) transfer(t *testing.T, upload bool) *sdk.ImageTransferService {
	t.Helper()
	b := sdk.NewImageTransferBuilder().Format(sdk.DISKFORMAT_RAW)
	if upload {
		id := makeDisk(t, x.Engine, x.s, newDisk("target", 4<<20, sdk.DISKFORMAT_COW, "data1"))
		b.Disk(sdk.NewDiskBuilder().Id(id).MustBuild())
	} else {
		frozen := ok(x.snapshotted(t).DisksService().List().Send())(t).MustDisks().Slice()[0]
		b.Direction(sdk.IMAGETRANSFERDIRECTION_DOWNLOAD).Snapshot(sdk.NewDiskSnapshotBuilder().Id(frozen.MustImageId()).MustBuild())
	}
	got := ok(x.s.ImageTransfersService().Add().ImageTransfer(b.MustBuild()).Send())(t).MustImageTransfer()
	return x.s.ImageTransfersService().ImageTransferService(got.MustId())
}

func (x *scene) transferPhase(t *testing.T, s *sdk.ImageTransferService) sdk.ImageTransferPhase {
	t.Helper()
	return ok(s.Get().Send())(t).MustImageTransfer().MustPhase()
}

// happenings make each behaviour happen, once, and look at what comes of it.
var happenings = map[ovirtsim.Behaviour]func(t *testing.T, x *scene){
	ovirtsim.Unavailable: func(t *testing.T, x *scene) {
		if _, err := x.s.VmsService().List().Send(); err == nil || !strings.Contains(err.Error(), "Service Unavailable") {
			t.Errorf("got %v", err)
		}
	},
	ovirtsim.InternalError: func(t *testing.T, x *scene) {
		if _, err := x.s.VmsService().List().Send(); err == nil || !strings.Contains(err.Error(), "500") {
			t.Errorf("got %v", err)
		}
	},
	ovirtsim.SessionExpires: func(t *testing.T, x *scene) {
		if _, err := x.s.VmsService().List().Send(); err == nil || x.Sessions() != 0 {
			t.Errorf("got %v, %d sessions", err, x.Sessions())
		}
	},
	ovirtsim.ReplyLost: func(t *testing.T, x *scene) {
		if _, err := x.s.TagsService().Add().Tag(sdk.NewTagBuilder().Name("lost").MustBuild()).Send(); err == nil {
			t.Error("there was a reply")
		}
		_, err := x.s.TagsService().Add().Tag(sdk.NewTagBuilder().Name("lost").MustBuild()).Send()
		conflicts(t, err, "exists")
	},
	ovirtsim.EngineRestarts: func(t *testing.T, x *scene) {
		if _, err := x.s.TagsService().Add().Tag(sdk.NewTagBuilder().Name("undone").MustBuild()).Send(); err == nil || x.Sessions() != 0 {
			t.Errorf("got %v, %d sessions", err, x.Sessions())
		}
		ok(admin(t, x.Engine).TagsService().Add().Tag(sdk.NewTagBuilder().Name("undone").MustBuild()).Send())(t)
	},
	ovirtsim.SnapshotFails: func(t *testing.T, x *scene) {
		made := snapshot(t, x.web, "one")
		settle(x.Engine)
		got := ok(x.web.SnapshotsService().SnapshotService(made.MustId()).Get().Send())(t).MustSnapshot()
		if got.MustSnapshotType() != sdk.SNAPSHOTTYPE_ACTIVE || got.MustSnapshotStatus() != sdk.SNAPSHOTSTATUS_OK || got.MustDescription() == "one" {
			t.Errorf("it is %s, %s", got.MustSnapshotType(), got.MustSnapshotStatus())
		}
		events := ok(x.s.EventsService().List().Search("correlation_id=corr-one").Send())(t).MustEvents().Slice()
		if len(events) != 1 || events[0].MustCode() != 69 {
			t.Errorf("%d events", len(events))
		}
		if j := ok(x.s.JobsService().List().Query("search", "correlation_id=corr-one").Send())(t).MustJobs().Slice(); len(j) != 1 || j[0].MustStatus() != sdk.JOBSTATUS_FAILED {
			t.Errorf("%d jobs", len(j))
		}
		x.snapshotted(t)
	},
	ovirtsim.SnapshotHangs: func(t *testing.T, x *scene) {
		made := x.web.SnapshotsService().SnapshotService(snapshot(t, x.web, "one").MustId())
		x.Advance(20 * time.Minute)
		if got := ok(made.Get().Send())(t).MustSnapshot().MustSnapshotStatus(); got != sdk.SNAPSHOTSTATUS_LOCKED {
			t.Errorf("after 20 minutes it is %s", got)
		}
		x.Heal()
		settle(x.Engine)
		if got := ok(made.Get().Send()); got(t).MustSnapshot().MustSnapshotStatus() != sdk.SNAPSHOTSTATUS_OK {
			t.Error("it goes on hanging")
		}
	},
	ovirtsim.FreezeFails: func(t *testing.T, x *scene) {
		db := service(t, x.s, "db")
		made := snapshot(t, db, "one")
		settle(x.Engine)
		if got := ok(db.SnapshotsService().SnapshotService(made.MustId()).Get().Send())(t).MustSnapshot(); got.MustSnapshotType() != sdk.SNAPSHOTTYPE_REGULAR {
			t.Errorf("it is %s", got.MustSnapshotType())
		}
		if !audited(t, x.s, "Failed to freeze guest filesystems on VM db") {
			t.Error("no event of it")
		}
		ok(db.FreezeFilesystems().Send())(t)
	},
	ovirtsim.SnapshotRemoveFails: func(t *testing.T, x *scene) {
		made := x.snapshotted(t)
		ok(made.Remove().Query("correlation_id", "corr-remove").Send())(t)
		settle(x.Engine)
		if got := ok(made.Get().Send())(t).MustSnapshot(); got.MustSnapshotStatus() != sdk.SNAPSHOTSTATUS_OK || got.MustSnapshotType() != sdk.SNAPSHOTTYPE_REGULAR {
			t.Errorf("it is %s", got.MustSnapshotStatus())
		}
		if v := ok(x.s.EventsService().List().Search("correlation_id=corr-remove").Send())(t).MustEvents().Slice(); len(v) != 1 || v[0].MustCode() != 357 {
			t.Errorf("%d events", len(v))
		}
		ok(made.Remove().Send())(t)
		settle(x.Engine)
		_, err := made.Get().Send()
		absent(t, err)
	},
	ovirtsim.SnapshotRemoveBusy: func(t *testing.T, x *scene) {
		made := x.snapshotted(t)
		_, err := made.Remove().Send()
		conflicts(t, err, "being removed")
		ok(made.Remove().Send())(t)
		_, err = made.Remove().Send()
		conflicts(t, err, "being removed")
		if n := x.Count(ovirtsim.SnapshotRemoveBusy); n != 2 {
			t.Errorf("%d refusals, want one of its own besides", n)
		}
	},
	ovirtsim.JobsLate: func(t *testing.T, x *scene) {
		snapshot(t, x.web, "one")
		jobs := func() int {
			return len(ok(x.s.JobsService().List().Query("search", "correlation_id=corr-one").Send())(t).MustJobs().Slice())
		}
		if jobs() != 0 {
			t.Error("the job is there at once")
		}
		settle(x.Engine)
		if jobs() != 1 {
			t.Error("the job never comes")
		}
	},
	ovirtsim.JobsPurged: func(t *testing.T, x *scene) {
		x.snapshotted(t)
		if n := len(ok(x.s.JobsService().List().Query("search", "correlation_id=corr-one").Send())(t).MustJobs().Slice()); n != 0 {
			t.Errorf("%d jobs", n)
		}
	},
	ovirtsim.CheckpointLost: func(t *testing.T, x *scene) {
		b := x.ready(t, x.checkpointed(t))
		got := modes(t, b)
		if got[0] == got[1] {
			t.Errorf("modes %v, want one full and one incremental", got)
		}
	},
	ovirtsim.CheckpointInvalid: func(t *testing.T, x *scene) {
		from := x.checkpointed(t)
		_, err := startBackup(t, x.web, from, x.disks...)
		conflicts(t, err, "invalid")
		if c := ok(x.web.CheckpointsService().CheckpointService(from).Get().Send())(t).MustCheckpoint(); c.MustState() != sdk.CHECKPOINTSTATE_INVALID {
			t.Errorf("its state is %s", c.MustState())
		}
	},
	ovirtsim.BackupFails: func(t *testing.T, x *scene) {
		b := ok(startBackup(t, x.web, "", x.disks...))(t)
		settle(x.Engine)
		if p := phase(t, b); p != sdk.BACKUPPHASE_FAILED {
			t.Errorf("it is %s", p)
		}
		if n := len(ok(x.web.CheckpointsService().List().Send())(t).MustCheckpoints().Slice()); n != 0 {
			t.Errorf("%d checkpoints of it", n)
		}
		x.checkpointed(t)
	},
	ovirtsim.BackupPurged: func(t *testing.T, x *scene) {
		b := x.ready(t, "")
		ok(b.Finalize().Send())(t)
		settle(x.Engine)
		_, err := b.Get().Send()
		absent(t, err)
	},
	ovirtsim.TransferPaused: func(t *testing.T, x *scene) {
		tr := x.transfer(t, true)
		settle(x.Engine)
		if p := x.transferPhase(t, tr); p != sdk.IMAGETRANSFERPHASE_PAUSED_SYSTEM {
			t.Errorf("it is %s", p)
		}
		ok(tr.Resume().Send())(t)
		settle(x.Engine)
		if p := x.transferPhase(t, tr); p != sdk.IMAGETRANSFERPHASE_TRANSFERRING {
			t.Errorf("resumed it is %s", p)
		}
		d := ok(tr.Get().Send())(t).MustImageTransfer().MustDisk().MustId()
		ok(tr.Cancel().Send())(t)
		settle(x.Engine)
		if p := x.transferPhase(t, tr); p != sdk.IMAGETRANSFERPHASE_FINISHED_CLEANUP {
			t.Errorf("cancelled it is %s", p)
		}
		_, err := x.s.DisksService().DiskService(d).Get().Send() // the engine keeps no disk that was written by half
		absent(t, err)
	},
	ovirtsim.TransferCancelled: func(t *testing.T, x *scene) {
		tr := x.transfer(t, false)
		settle(x.Engine)
		if p := x.transferPhase(t, tr); p != sdk.IMAGETRANSFERPHASE_FINISHED_FAILURE {
			t.Errorf("it is %s", p)
		}
	},
	ovirtsim.TransferEnds: func(t *testing.T, x *scene) {
		tr := x.transfer(t, false)
		settle(x.Engine)
		if _, err := tr.Finalize().Send(); err == nil {
			t.Error("it can be finalized")
		}
		settle(x.Engine)
		if p := x.transferPhase(t, tr); p != sdk.IMAGETRANSFERPHASE_FINISHED_SUCCESS {
			t.Errorf("it is %s", p)
		}
	},
	ovirtsim.TransferPurged: func(t *testing.T, x *scene) {
		tr := x.transfer(t, false)
		settle(x.Engine)
		ok(tr.Finalize().Send())(t)
		settle(x.Engine)
		_, err := tr.Get().Send()
		absent(t, err)
	},
}

// elsewhere are the behaviours that other tests make happen: where there is more to look at, or root is needed.
var elsewhere = map[ovirtsim.Behaviour]string{
	ovirtsim.AttachLocked: "TestAttachmentsThatAreRefused", ovirtsim.DetachSlow: "TestAttachmentsThatAreRefused", ovirtsim.BackupBusy: "TestBackups",
	ovirtsim.DeviceMissing: "TestDevicesThatGoWrong", ovirtsim.DeviceShortSerial: "TestDevicesThatGoWrong",
	ovirtsim.DeviceTwice: "TestDevicesThatGoWrong", ovirtsim.DeviceWrongSize: "TestDevicesThatGoWrong",
}

func TestEveryBehaviourHappens(t *testing.T) {
	lab(t)
	on := map[ovirtsim.Behaviour]string{
		ovirtsim.Unavailable: "GET /vms", ovirtsim.InternalError: "GET /v*", ovirtsim.SessionExpires: "GET /*", ovirtsim.ReplyLost: "POST /tags", ovirtsim.EngineRestarts: "POST /tags",
		ovirtsim.CheckpointLost: "web_Disk1",
	}
	for _, b := range ovirtsim.Behaviours() {
		t.Run(string(b), func(t *testing.T) {
			if happenings[b] == nil {
				if elsewhere[b] == "" {
					t.Error("no test makes it happen")
				}
				return
			}
			x := newScene(t)
			f := x.Inject(b, ovirtsim.Fault{On: on[b], Times: 1})
			happenings[b](t, x)
			if f.Fired() != 1 {
				t.Errorf("it has happened %d times, want 1", f.Fired())
			}
		})
	}
}

func TestRestartFailsWhatWasBeingStarted(t *testing.T) {
	lab(t)
	x := newScene(t)
	b := ok(startBackup(t, x.web, "", x.disks...))(t)
	x.Restart()
	x.s = admin(t, x.Engine)
	x.web = service(t, x.s, "web")
	settle(x.Engine)
	if p := phase(t, x.web.BackupsService().BackupService(ok(x.web.BackupsService().List().Send())(t).MustBackups().Slice()[0].MustId())); p != sdk.BACKUPPHASE_FAILED {
		t.Errorf("it is %s", p)
	}
	_ = b
	x.ready(t, "")
	x.Restart() // one that is ready goes on
	x.s = admin(t, x.Engine)
	all := ok(service(t, x.s, "web").BackupsService().List().Send())(t).MustBackups().Slice()
	if len(all) != 2 || all[1].MustPhase() != sdk.BACKUPPHASE_READY {
		t.Errorf("%d backups", len(all))
	}
}

// fetchToItsEnd is over when the daemon has done with the download, too, which may be after the last byte has come: it takes the next request
// of a connection then.
func fetchToItsEnd(t *testing.T, e *ovirtsim.Engine, url string) {
	t.Helper()
	c := httpClient(e.InternalCA())
	transport := c.Transport.(*http.Transport)
	transport.DisableKeepAlives = false
	defer transport.CloseIdleConnections()
	reused := false
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }})
	for _, method := range []string{http.MethodGet, http.MethodOptions} {
		r, err := http.NewRequestWithContext(ctx, method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil || resp.StatusCode >= 300 {
			t.Fatalf("%s: %d %v", method, resp.StatusCode, err)
		}
	}
	if !reused {
		t.Fatal("the second request went by a connection of its own")
	}
}

func TestTransfersEndByThemselves(t *testing.T) {
	lab(t)
	x := newScene(t)
	tr := x.transfer(t, false)
	settle(x.Engine)
	url := ok(tr.Get().Send())(t).MustImageTransfer().MustTransferUrl()
	fetchToItsEnd(t, x.Engine, url)
	x.Advance(5 * time.Second)
	if p := x.transferPhase(t, tr); p != sdk.IMAGETRANSFERPHASE_FINISHED_SUCCESS {
		t.Errorf("a download that was complete is %s", p)
	}
	if resp, err := httpClient(x.InternalCA()).Get(url); err != nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("its ticket: %v %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	idle := x.transfer(t, true)
	x.Advance(time.Minute + 10*time.Second)
	if p := x.transferPhase(t, idle); p != sdk.IMAGETRANSFERPHASE_PAUSED_SYSTEM {
		t.Errorf("an upload that nobody uses is %s", p)
	}
	e := start(t, ovirtsim.Config{Site: site46(), Version: "4.4.6"})
	old := &scene{Engine: e, s: admin(t, e)}
	old.web = service(t, old.s, "web")
	gone := old.transfer(t, false)
	settle(e)
	ok(gone.Finalize().Send())(t)
	settle(e)
	_, err := gone.Get().Send()
	absent(t, err)
}
