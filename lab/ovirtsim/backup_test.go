package ovirtsim_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// startBackup asks for a backup of disks since a checkpoint.
func startBackup(t *testing.T, v *sdk.VmService, from string, disks ...string) (*sdk.VmBackupService, error) {
	t.Helper()
	b := sdk.NewBackupBuilder().Description("cairn-test")
	for _, id := range disks {
		b.DisksOfAny(sdk.NewDiskBuilder().Id(id).MustBuild())
	}
	if from != "" {
		b.FromCheckpointId(from)
	}
	got, err := v.BackupsService().Add().Backup(b.MustBuild()).Send()
	if err != nil {
		return nil, err
	}
	if p := got.MustBackup().MustPhase(); p != sdk.BACKUPPHASE_INITIALIZING {
		t.Errorf("the phase is %s at once", p)
	}
	return v.BackupsService().BackupService(got.MustBackup().MustId()), nil
}

func phase(t *testing.T, b *sdk.VmBackupService) sdk.BackupPhase {
	t.Helper()
	return ok(b.Get().Send())(t).MustBackup().MustPhase()
}

// modes are the backup modes of a backup's disks.
func modes(t *testing.T, b *sdk.VmBackupService) (out []sdk.DiskBackupMode) {
	t.Helper()
	for _, d := range ok(b.DisksService().List().Send())(t).MustDisks().Slice() {
		out = append(out, d.MustBackupMode())
	}
	return out
}

// download starts a transfer of a disk of a backup and returns it with its URL.
func download(t *testing.T, e *ovirtsim.Engine, s *sdk.SystemService, with *sdk.ImageTransferBuilder) (*sdk.ImageTransferService, string) {
	t.Helper()
	got := ok(s.ImageTransfersService().Add().ImageTransfer(with.Direction(sdk.IMAGETRANSFERDIRECTION_DOWNLOAD).Format(sdk.DISKFORMAT_RAW).MustBuild()).Send())(t)
	x := s.ImageTransfersService().ImageTransferService(got.MustImageTransfer().MustId())
	settle(e)
	now := ok(x.Get().Send())(t).MustImageTransfer()
	if now.MustPhase() != sdk.IMAGETRANSFERPHASE_TRANSFERRING {
		t.Fatalf("the transfer's phase is %s", now.MustPhase())
	}
	return x, now.MustTransferUrl()
}

// fetch reads an image, or what is said of it.
func fetch(t *testing.T, e *ovirtsim.Engine, url string) []byte {
	t.Helper()
	resp, err := httpClient(e.InternalCA()).Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		t.Fatalf("%s: %d %v %s", url, resp.StatusCode, err, body)
	}
	return body
}

type extent struct {
	Start, Length int64
	Dirty, Zero   bool
}

// apply puts what changed in an image onto the one before.
func apply(t *testing.T, e *ovirtsim.Engine, url string, onto []byte) (changed int64) {
	t.Helper()
	var list []extent
	if err := json.Unmarshal(fetch(t, e, url+"/extents?context=dirty"), &list); err != nil {
		t.Fatal(err)
	}
	now := fetch(t, e, url)
	for _, x := range list {
		if x.Dirty {
			changed += x.Length
			copy(onto[x.Start:x.Start+x.Length], now[x.Start:])
		}
	}
	if !bytes.Equal(onto, now) {
		t.Error("the incremental is not the full")
	}
	return changed
}

// contentNow is what a disk's guest would read.
func contentNow(t *testing.T, e *ovirtsim.Engine, disk string) []byte {
	t.Helper()
	volume, err := e.ActiveVolume(t.Context(), disk)
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.ReadVolume(t.Context(), volume)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// site46 is the small site, but one whose backups are no hybrids.
func site46() ovirtsim.Site {
	s := ovirtsim.SmallSite()
	s.DataCenters[0].Level = "4.6"
	return s
}

func TestBackups(t *testing.T) {
	lab(t)
	for name, site := range map[string]ovirtsim.Site{"live": site46(), "hybrid": ovirtsim.SmallSite()} {
		t.Run(name, func(t *testing.T) {
			e := start(t, ovirtsim.Config{Site: site})
			s := admin(t, e)
			v, id := service(t, s, "web"), vmNamed(t, s, "web").MustId()
			disks := disksOf(t, v)
			from, images := "", make([][]byte, len(disks))
			for round := range 4 {
				if err := e.Write(t.Context(), id, 2); err != nil {
					t.Fatal(err)
				}
				want := contentNow(t, e, disks[0])
				b := ok(startBackup(t, v, from, disks...))(t)
				settle(e)
				ready := ok(b.Get().Send())(t).MustBackup()
				if ready.MustPhase() != sdk.BACKUPPHASE_READY {
					t.Fatalf("round %d: the phase is %s", round, ready.MustPhase())
				}
				if d := ok(s.DisksService().DiskService(disks[0]).Get().Send())(t).MustDisk().MustStatus(); (d == sdk.DISKSTATUS_OK) != (name == "hybrid") {
					t.Errorf("the disk is %s during the backup", d)
				}
				if n := len(ok(v.SnapshotsService().List().Send())(t).MustSnapshots().Slice()); (n == 2) != (name == "hybrid") {
					t.Errorf("%d snapshots during the backup", n)
				}
				if err := e.Write(t.Context(), id, 2); err != nil { // after the instant
					t.Fatal(err)
				}
				for i, disk := range disks {
					with := sdk.NewImageTransferBuilder().Disk(sdk.NewDiskBuilder().Id(disk).MustBuild()).Backup(sdk.NewBackupBuilder().Id(ready.MustId()).MustBuild())
					x, url := download(t, e, s, with)
					if round == 0 {
						images[i] = fetch(t, e, url)
					} else if n := apply(t, e, url, images[i]); n == 0 || n > 1<<20 {
						t.Errorf("round %d: %d bytes changed", round, n)
					}
					if i == 0 {
						_, err := b.Finalize().Send()
						conflicts(t, err, "Image transfer")
					}
					ok(x.Finalize().Send())(t)
					settle(e)
					if p := ok(x.Get().Send())(t).MustImageTransfer().MustPhase(); p != sdk.IMAGETRANSFERPHASE_FINISHED_SUCCESS {
						t.Errorf("the transfer ended in %s", p)
					}
				}
				if !bytes.Equal(images[0], want) {
					t.Errorf("round %d: the backup is not the disk at its instant", round)
				}
				wantMode := sdk.DISKBACKUPMODE_FULL
				if round > 0 {
					wantMode = sdk.DISKBACKUPMODE_INCREMENTAL
				}
				for _, m := range modes(t, b) {
					if m != wantMode {
						t.Errorf("round %d: mode %s", round, m)
					}
				}
				from = ready.MustToCheckpointId()
				ok(b.Finalize().Send())(t)
				settle(e)
				if p := phase(t, b); p != sdk.BACKUPPHASE_SUCCEEDED {
					t.Errorf("the backup ended in %s", p)
				}
				if d := ok(s.DisksService().DiskService(disks[0]).Get().Send())(t).MustDisk().MustStatus(); d != sdk.DISKSTATUS_OK {
					t.Errorf("the disk is %s after the backup", d)
				}
				if n := len(ok(v.SnapshotsService().List().Send())(t).MustSnapshots().Slice()); n != 1 {
					t.Errorf("%d snapshots after the backup", n)
				}
			}
			checkpoints := ok(v.CheckpointsService().List().Send())(t).MustCheckpoints().Slice()
			if len(checkpoints) != 4 || checkpoints[3].MustId() != from || checkpoints[1].MustParentId() != checkpoints[0].MustId() {
				t.Fatalf("%d checkpoints", len(checkpoints))
			}
			if e.Count(ovirtsim.BackupBusy) != 4 {
				t.Errorf("%d refusals to finalize, want 4", e.Count(ovirtsim.BackupBusy))
			}
			if checkpoints[3].MustDescription() != "cairn-test" {
				t.Errorf("its description is %q", checkpoints[3].MustDescription())
			}
			for _, c := range checkpoints[:3] {
				ok(v.CheckpointsService().CheckpointService(c.MustId()).Remove().Send())(t)
				settle(e)
			}
			if left := ok(v.CheckpointsService().List().Send())(t).MustCheckpoints().Slice(); len(left) != 1 || left[0].MustId() != from {
				t.Errorf("%d checkpoints are left", len(left))
			}
			e.Advance(16 * time.Minute)
			if n := len(ok(v.BackupsService().List().Send())(t).MustBackups().Slice()); n != 0 {
				t.Errorf("%d backups are remembered after 16 minutes", n)
			}
		})
	}
}

func TestBackupsThatAreRefused(t *testing.T) {
	lab(t)
	site := site46()
	site.DataCenters[0].Clusters = append(site.DataCenters[0].Clusters, ovirtsim.Cluster{
		Name: "old", Level: "4.4", Hosts: []string{"h9"}, VMs: []ovirtsim.VM{{Name: "legacy", Up: true, Disks: []ovirtsim.Disk{{}}}},
	})
	e := start(t, ovirtsim.Config{Site: site})
	s := admin(t, e)
	web, archive := service(t, s, "web"), service(t, s, "archive")
	disks := disksOf(t, web)
	for _, c := range []struct {
		name  string
		v     *sdk.VmService
		from  string
		disks []string
		why   string
	}{
		{"an old cluster", service(t, s, "legacy"), "", disksOf(t, service(t, s, "legacy")), "cluster level"},
		{"another VM's disk", web, "", disksOf(t, archive)[:1], "not attached"},
		{"a shareable disk", service(t, s, "cluster-node"), "", disksOf(t, service(t, s, "cluster-node"))[1:2], "shareable"},
		{"no such checkpoint", web, "aaaaaaaa-0000-0000-0000-000000000000", disks, "does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := startBackup(t, c.v, c.from, c.disks...)
			conflicts(t, err, c.why)
		})
	}
	b := ok(startBackup(t, web, "", disks...))(t)
	_, err := startBackup(t, web, "", disks...)
	conflicts(t, err, "already during a backup")
	settle(e)
	_, err = web.SnapshotsService().Add().Snapshot(sdk.NewSnapshotBuilder().Description("x").PersistMemorystate(false).MustBuild()).Send()
	conflicts(t, err, "backup")
	_, err = web.Stop().Send()
	if err == nil {
		t.Error("a VM in a backup can be stopped")
	}
	ok(b.Finalize().Send())(t)
	settle(e)
	_, err = b.Finalize().Send()
	if err == nil {
		t.Error("a backup can be finalized twice")
	}
}

func TestOldEnginesRemoveTheOldestCheckpointOnly(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: site46(), Version: "4.4.10"})
	x := &scene{Engine: e, s: admin(t, e)}
	x.web = service(t, x.s, "web")
	x.disks = disksOf(t, x.web)
	first, second := x.checkpointed(t), x.checkpointed(t)
	_, err := x.web.CheckpointsService().CheckpointService(second).Remove().Send()
	conflicts(t, err, "root")
	for _, id := range []string{first, second} {
		ok(x.web.CheckpointsService().CheckpointService(id).Remove().Send())(t)
		settle(e)
	}
}

func TestABackupOfAStoppedVM(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	v := service(t, s, "archive")
	disks := disksOf(t, v)
	b := ok(startBackup(t, v, "", disks...))(t)
	settle(e)
	ready := ok(b.Get().Send())(t).MustBackup()
	if ready.MustPhase() != sdk.BACKUPPHASE_READY {
		t.Fatalf("the phase is %s", ready.MustPhase())
	}
	// The raw disk is in no checkpoint, the other one is.
	cp := ok(v.CheckpointsService().CheckpointService(ready.MustToCheckpointId()).DisksService().List().Send())(t).MustDisks().Slice()
	if len(cp) != 1 || cp[0].MustId() != disks[1] {
		t.Errorf("%d disks in the checkpoint", len(cp))
	}
	x, url := download(t, e, s, sdk.NewImageTransferBuilder().Disk(sdk.NewDiskBuilder().Id(disks[0]).MustBuild()).Backup(sdk.NewBackupBuilder().Id(ready.MustId()).MustBuild()))
	if !bytes.Equal(fetch(t, e, url), contentNow(t, e, disks[0])) {
		t.Error("the backup is not the disk")
	}
	resp, err := httpClient(e.InternalCA()).Get(url + "/extents?context=dirty")
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNotFound {
		t.Errorf("changes of a full backup: %d", resp.StatusCode)
	}
	ok(x.Finalize().Send())(t)
	settle(e)
	ok(b.Finalize().Send())(t)
	settle(e)
	if p := phase(t, b); p != sdk.BACKUPPHASE_SUCCEEDED {
		t.Error(fmt.Sprint("it ended in ", p))
	}
}
