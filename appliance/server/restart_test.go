package server

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// crash copies what an appliance has on disk at this moment and opens another one on the copy, as a restart after
// kill -9 would. The first one still hangs in the platform, but its hands are tied.
func (b *bench) crash(copied func()) *bench {
	b.t.Helper()
	b.dead.Store(true)
	next := *b
	next.root = b.t.TempDir()
	data := filepath.Join(next.root, "data")
	if err := os.MkdirAll(filepath.Join(data, "keys"), 0o700); err != nil {
		b.t.Fatal(err)
	}
	copyTree(b.t, filepath.Join(b.root, "data", "keys"), filepath.Join(data, "keys"))
	copyTree(b.t, filepath.Join(b.root, "repo"), filepath.Join(next.root, "repo"))
	if _, err := b.catalog.DB().Exec("VACUUM INTO ?", filepath.Join(data, "catalog.db")); err != nil {
		b.t.Fatal(err)
	}
	c, err := catalog.Open(b.t.Context(), catalog.Options{
		Path: filepath.Join(data, "catalog.db"), KeyFile: filepath.Join(data, "keys", "catalog.key"),
	})
	if err != nil {
		b.t.Fatal(err)
	}
	_, err = c.UpdateRepository(b.t.Context(), b.repo, func(r *catalog.Repository) {
		r.Path = filepath.Join(next.root, "repo")
		r.KeyFile = filepath.Join(data, "keys", filepath.Base(r.KeyFile))
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		b.t.Fatal(err)
	}
	copied()
	next.start()
	return &next
}

func TestKilledDuringABackup(t *testing.T) {
	tests := map[string]struct {
		made bool // the restore point was durable
		skip int
	}{
		memplatform.OpVM: {}, memplatform.OpFreeze: {}, memplatform.OpFreezeExport: {}, memplatform.OpReadDisk: {skip: 1},
		memplatform.OpKeepCheckpoint: {made: true}, memplatform.OpRelease: {made: true},
	}
	for op, tt := range tests {
		t.Run(op, func(t *testing.T) {
			b := newBench(t)
			first := b.backup()
			first0, first1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
			b.write("disk0", 64<<10, 1<<20)
			b.write("disk0", 64<<10, 3<<20)
			hold := make(chan struct{})
			release := sync.OnceFunc(func() { close(hold) })
			defer release()
			f := b.platform.Inject(op, &memplatform.Fault{Block: hold, Times: 1, Skip: tt.skip, Err: errKilled})
			task := b.task(b.startBackup())
			b.until(f, task.ID)
			after := b.crash(func() {
				if op == memplatform.OpReadDisk || op == memplatform.OpWriteDisk {
					release() // the platform's servers do not end before their requests do
				}
			})
			got, err := after.GetTask(t.Context(), task.ID)
			if err != nil {
				t.Fatal(err)
			}
			want := catalog.Failed
			if tt.made {
				want = catalog.Warning
			}
			if got.State != want || (want == catalog.Failed && !strings.Contains(got.Error.What, "manager stopped")) {
				t.Errorf("task = %s, %+v, want %s", got.State, got.Error, want)
			}
			after.clean()
			points, err := after.ListRestorePoints(t.Context(), catalog.PointFilter{}, catalog.Page{})
			if err != nil || len(points.Items) != 1+map[bool]int{true: 1}[tt.made] {
				t.Errorf("%d restore points, %v", len(points.Items), err)
			}
			after.restoresTo(first.ID, "old", first0, first1)
			next := after.backup()
			if next.Kind != catalog.Incremental {
				t.Errorf("the next backup is %s: %q", next.Kind, next.Disks[0].Reason)
			}
			after.restoresTo(next.ID, "new", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
			after.clean()
		})
	}
}

func TestKilledBetweenManifestAndCatalog(t *testing.T) {
	b := newBench(t)
	b.backup()
	b.write("disk0", 4096, 0)
	hold := make(chan struct{})
	defer close(hold)
	f := b.platform.Inject(memplatform.OpKeepCheckpoint, &memplatform.Fault{Block: hold, Times: 1})
	task := b.task(b.startBackup())
	b.until(f, task.ID)
	point, err := b.catalog.RestorePointOfTask(t.Context(), task.ID)
	if err == nil {
		err = b.catalog.DeleteRestorePoint(t.Context(), point.ID) // as if it had not been written yet
	}
	if err != nil {
		t.Fatal(err)
	}
	after := b.crash(func() {})
	got, err := after.GetTask(t.Context(), task.ID)
	if err != nil || got.State != catalog.Warning || got.RestorePointID != point.ID {
		t.Errorf("task = %s, %q, %v", got.State, got.RestorePointID, err)
	}
	after.clean()
	if next := after.backup(); next.Kind != catalog.Incremental {
		t.Errorf("the next backup is %s: %q", next.Kind, next.Disks[0].Reason)
	}
}

func TestKilledDuringARestore(t *testing.T) {
	tests := map[string]struct {
		skip int
		vms  int
		want catalog.State
	}{
		memplatform.OpBeginRestore: {0, 1, catalog.Failed},
		memplatform.OpBeginVolume:  {1, 1, catalog.Failed},
		memplatform.OpWriteDisk:    {1, 1, catalog.Failed},
		memplatform.OpFinish:       {0, 1, catalog.Failed},
		memplatform.OpStart:        {0, 2, catalog.Warning},
	}
	for op, tt := range tests {
		t.Run(op, func(t *testing.T) {
			b := newBench(t)
			p := b.backup()
			hold := make(chan struct{})
			release := sync.OnceFunc(func() { close(hold) })
			defer release()
			f := b.platform.Inject(op, &memplatform.Fault{Block: hold, Times: 1, Skip: tt.skip, Err: errKilled})
			started, err := b.StartRestore(t.Context(), startOf("ann"), restoreOf(p.ID, "copy", true))
			task := b.task(started, err)
			b.until(f, task.ID)
			after := b.crash(func() {
				if op == memplatform.OpReadDisk || op == memplatform.OpWriteDisk {
					release() // the platform's servers do not end before their requests do
				}
			})
			got, err := after.GetTask(t.Context(), task.ID)
			if err != nil || got.State != tt.want {
				t.Errorf("task = %s, %+v, %v, want %s", got.State, got.Error, err, tt.want)
			}
			after.clean()
			if n := after.vms(); n != tt.vms {
				t.Errorf("%d VMs, want %d", n, tt.vms)
			}
			after.restoresTo(p.ID, "again", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
		})
	}
}

func TestStopCleansUpAndQueuedTasksGoOn(t *testing.T) {
	b := newBench(t)
	hold := make(chan struct{})
	defer close(hold)
	f := b.platform.Inject(memplatform.OpFreezeExport, &memplatform.Fault{Block: hold, Times: 1})
	task := b.task(b.startBackup())
	b.until(f, task.ID)
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.start()
	got, err := b.GetTask(t.Context(), task.ID)
	if err != nil || got.State != catalog.Failed || !strings.Contains(got.Error.Meaning, "manager was stopped") {
		t.Errorf("task = %s, %+v, %v", got.State, got.Error, err)
	}
	b.clean()
	b.backup()
}

func TestOneProcessADirectory(t *testing.T) {
	b := newBench(t)
	_, err := Open(t.Context(), Options{Dir: filepath.Join(b.root, "data"), Log: b.log})
	if kindOf(err) != "conflict" {
		t.Errorf("second process: %v, want conflict", err)
	}
	b.backup()
}

func TestStartWithoutARepository(t *testing.T) {
	b := newBench(t)
	p := b.backup()
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	repo := filepath.Join(b.root, "repo")
	if err := os.Rename(repo, repo+".away"); err != nil {
		t.Fatal(err)
	}
	b.start()
	info, err := b.GetRepository(t.Context(), b.repo)
	if err != nil || info.Status != catalog.HealthProblem || info.LastError == nil || info.Usage != nil {
		t.Errorf("repository = %+v, %v", info, err)
	}
	if _, err := b.startBackup(); kindOf(err) != "transient" {
		t.Errorf("backup: %v, want transient", err)
	}
	if err := os.Rename(repo+".away", repo); err != nil {
		t.Fatal(err)
	}
	b.restoresTo(p.ID, "copy", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}
