package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestFullAndIncrementalsRestoreToWhatWasFrozen(t *testing.T) {
	b := newBench(t)
	type kept struct {
		point        string
		disk0, disk1 []byte
	}
	var all []kept
	for i := range 6 {
		if i > 0 {
			b.write("disk0", 64<<10, int64(b.random.IntN(diskBytes/(64<<10)))*(64<<10))
		}
		p := b.backup()
		all = append(all, kept{p.ID, b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")})
		want := catalog.Incremental
		if i == 0 {
			want = catalog.Full
		}
		if p.Kind != want || p.Checkpoint == "" || p.VMID != b.vmID || p.SizeBytes != diskBytes*3/2 {
			t.Errorf("restore point %d = %+v", i, p)
		}
		if i > 0 && p.BytesRead != 64<<10 {
			t.Errorf("incremental %d read %d bytes, want those that changed", i, p.BytesRead)
		}
		b.clean()
	}
	for i, k := range all {
		b.restoresTo(k.point, fmt.Sprint("copy", i), k.disk0, k.disk1)
	}
	b.clean()
	point, err := b.GetRestorePoint(t.Context(), all[0].point)
	if err != nil || point.Description == nil || point.Description.ID != b.vm.ID || point.Disks[0].Reason == "" {
		t.Errorf("first restore point = %+v, %v", point, err)
	}
	if task := b.ended(b.StartVerify(t.Context(), httpapi.Start{}, all[5].point)); task.State != catalog.Succeeded || task.Result.BytesVerified == 0 {
		t.Errorf("verify = %s, %+v", task.State, task.Error)
	}
	if task := b.ended(b.StartCollect(t.Context(), httpapi.Start{}, b.repo, httpapi.CollectRequest{DryRun: true})); task.State != catalog.Succeeded {
		t.Errorf("collect = %s, %+v", task.State, task.Error)
	}
}

func TestWhenTheWholeDiskIsRead(t *testing.T) {
	tests := map[string]func(b *bench){
		"checkpoint lost": func(b *bench) {
			if err := b.platform.Crash(b.vm.ID); err != nil {
				b.t.Fatal(err)
			}
		},
		"disk resized": func(b *bench) {
			if err := b.platform.Resize(b.vm.ID, "disk0", 2*diskBytes); err != nil {
				b.t.Fatal(err)
			}
		},
		"last restore point damaged": func(b *bench) {
			p, err := b.catalog.NewestRestorePoint(b.t.Context(), b.vmID, "")
			if err == nil {
				err = b.catalog.SetVerified(b.t.Context(), p.ID, errors.New("rot"))
			}
			if err != nil {
				b.t.Fatal(err)
			}
		},
		"another repository": func(b *bench) {
			r, err := b.AddRepository(b.t.Context(), httpapi.NewRepository{Name: "second", Path: filepath.Join(b.root, "repo2")})
			if err != nil {
				b.t.Fatal(err)
			}
			b.repo = r.ID
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.backup()
			b.write("disk0", 4096, 0)
			change(b)
			p := b.backup()
			if p.Kind != catalog.Full || p.Disks[0].Reason == "" {
				t.Errorf("restore point = %s, reason %q", p.Kind, p.Disks[0].Reason)
			}
			b.restoresTo(p.ID, "copy", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
			if next := b.backup(); next.Kind != catalog.Incremental {
				t.Errorf("the one after it is %s", next.Kind)
			}
		})
	}
}

func TestBackupFailsAtEachStepOfThePlatform(t *testing.T) {
	gone := fault.New(fault.Transient, "reach host", "lab", "no answer").Explain("The host does not answer.", "Look at it.")
	tests := map[string]catalog.State{
		memplatform.OpVM: catalog.Failed, memplatform.OpFreeze: catalog.Failed, memplatform.OpFreezeExport: catalog.Failed,
		memplatform.OpReadDisk: catalog.Failed, memplatform.OpRelease: catalog.Succeeded,
		memplatform.OpKeepCheckpoint: catalog.Warning,
	}
	for op, want := range tests {
		t.Run(op, func(t *testing.T) {
			b := newBench(t)
			first := b.backup()
			frozen0, frozen1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
			b.write("disk0", 4096, 0)
			f := b.platform.Inject(op, &memplatform.Fault{Err: gone})
			task := b.ended(b.startBackup())
			if f.Fired() == 0 {
				t.Fatal("the fault did not fire")
			}
			if task.State != want {
				t.Errorf("task = %s, %+v, want %s", task.State, task.Error, want)
			}
			if want == catalog.Failed && (task.Error == nil || task.Error.Kind == "internal" || task.Error.What == "") {
				t.Errorf("error = %+v", task.Error)
			}
			b.platform.Heal()
			if _, err := b.queue.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.clean()
			b.restoresTo(first.ID, "old", frozen0, frozen1)
			next := b.backup()
			b.restoresTo(next.ID, "new", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
			b.clean()
		})
	}
}

func TestBackupWithoutTheCatalogMakesNothing(t *testing.T) {
	b := newBench(t)
	hold := make(chan struct{})
	f := b.platform.Inject(memplatform.OpFreeze, &memplatform.Fault{Block: hold, Times: 1})
	task := b.task(b.startBackup())
	b.until(f, task.ID)
	if _, err := b.catalog.DB().Exec("DROP TABLE owed_cleanups"); err != nil {
		t.Fatal(err)
	}
	close(hold)
	b.await(b.watch.end(task.ID))
	got, err := b.GetTask(t.Context(), task.ID)
	if err != nil || got.State != catalog.Failed {
		t.Errorf("task = %s, %v", got.State, err)
	}
	if left, err := b.platform.Driver().Leftovers(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("made without being owed: %+v, %v", left, err)
	}
}

func TestRepositoryBreaksDuringABackup(t *testing.T) {
	b := newBench(t)
	first := b.backup()
	frozen0, frozen1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	b.write("disk0", 1<<20, 0)
	repo := filepath.Join(b.root, "repo")
	hold := make(chan struct{})
	f := b.platform.Inject(memplatform.OpReadDisk, &memplatform.Fault{Block: hold, Times: 1})
	task := b.task(b.startBackup())
	b.until(f, task.ID)
	if err := os.Rename(repo, repo+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(repo, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	close(hold)
	b.await(b.watch.end(task.ID))
	if got, err := b.GetTask(t.Context(), task.ID); err != nil || got.State != catalog.Failed || got.Error.What == "" {
		t.Errorf("task = %s, %+v, %v", got.State, got.Error, err)
	}
	b.clean()
	if err := errors.Join(os.Remove(repo), os.Rename(repo+".away", repo)); err != nil {
		t.Fatal(err)
	}
	b.restoresTo(first.ID, "old", frozen0, frozen1)
	next := b.backup()
	b.restoresTo(next.ID, "new", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}

func TestCancelBackupInEachPhase(t *testing.T) {
	for _, op := range []string{memplatform.OpVM, memplatform.OpFreeze, memplatform.OpFreezeExport, memplatform.OpReadDisk} {
		t.Run(op, func(t *testing.T) {
			b := newBench(t)
			hold := make(chan struct{})
			release := context.AfterFunc(t.Context(), func() { close(hold) })
			defer release()
			f := b.platform.Inject(op, &memplatform.Fault{Block: hold, Times: 1})
			task := b.task(b.startBackup())
			b.until(f, task.ID)
			for range 2 { // may be repeated
				if err := b.CancelTask(t.Context(), task.ID); err != nil && kindOf(err) != "conflict" {
					t.Fatal(err)
				}
			}
			if op == memplatform.OpReadDisk {
				close(hold) // the platform's server does not end before its requests do
				release()
			}
			b.await(b.watch.end(task.ID))
			got, err := b.GetTask(t.Context(), task.ID)
			if err != nil || got.State != catalog.Cancelled {
				t.Errorf("task = %s, %+v, %v", got.State, got.Error, err)
			}
			b.clean()
			if err := b.CancelRun(t.Context(), task.RunID); kindOf(err) != "conflict" {
				t.Errorf("cancel what is over: %v, want conflict", err)
			}
			b.backup()
		})
	}
}

func TestOneTaskForAVM(t *testing.T) {
	b := newBench(t)
	hold := make(chan struct{})
	b.platform.Inject(memplatform.OpFreeze, &memplatform.Fault{Block: hold, Times: 1})
	one, err := b.startBackup()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.startBackup(); kindOf(err) != "conflict" {
		t.Errorf("second backup: %v, want conflict", err)
	}
	if _, err := b.DetachRepository(t.Context(), b.repo); kindOf(err) != "conflict" {
		t.Errorf("detach: %v, want conflict", err)
	}
	if err := b.RemoveConnection(t.Context(), b.conn); kindOf(err) != "conflict" {
		t.Errorf("remove connection: %v, want conflict", err)
	}
	close(hold)
	b.ended(one, nil)
	if runs, err := b.ListRuns(t.Context(), catalog.RunFilter{}, catalog.Page{}); err != nil || len(runs.Items) != 1 {
		t.Errorf("runs = %d, %v, want 1", len(runs.Items), err)
	}
}

func TestRepeatedRequest(t *testing.T) {
	b := newBench(t)
	start := func(key, print string) (httpapi.Started, error) {
		return b.StartBackup(t.Context(), httpapi.Start{User: "ann", Key: key, Fingerprint: print},
			httpapi.BackupRequest{VMID: b.vmID, RepositoryID: b.repo})
	}
	one, err := start("key-0001", "a")
	b.ended(one, err)
	again, err := start("key-0001", "b")
	if err != nil || again.RunID != one.RunID || !again.Replayed || again.Fingerprint != "a" {
		t.Errorf("repetition = %+v, %v", again, err)
	}
	b.ended(start("key-0002", "a"))
}

func TestBadRequestsChangeNothing(t *testing.T) {
	b := newBench(t)
	p := b.backup()
	backup := func(r httpapi.BackupRequest) error {
		_, err := b.StartBackup(t.Context(), httpapi.Start{}, r)
		return err
	}
	restore := func(change func(*httpapi.RestoreRequest)) error {
		r := httpapi.RestoreRequest{RestorePointID: p.ID, Mode: hypervisors.RestoreNew, Name: "copy"}
		change(&r)
		_, err := b.StartRestore(t.Context(), httpapi.Start{}, r)
		return err
	}
	repository := func(r httpapi.NewRepository) error {
		_, err := b.AddRepository(t.Context(), r)
		return err
	}
	connection := func(c httpapi.NewConnection) error {
		_, err := b.AddConnection(t.Context(), c)
		return err
	}
	for name, tt := range map[string]struct {
		err  error
		want string
	}{
		"unknown VM":                {backup(httpapi.BackupRequest{VMID: "vm_x", RepositoryID: b.repo}), "not-found"},
		"unknown repository":        {backup(httpapi.BackupRequest{VMID: b.vmID, RepositoryID: "repo_x"}), "not-found"},
		"unknown disk":              {backup(httpapi.BackupRequest{VMID: b.vmID, RepositoryID: b.repo, ExcludeDisks: []string{"x"}}), "invalid"},
		"no disk left":              {backup(httpapi.BackupRequest{VMID: b.vmID, RepositoryID: b.repo, ExcludeDisks: []string{"disk0", "disk1"}}), "invalid"},
		"unknown restore point":     {restore(func(r *httpapi.RestoreRequest) { r.RestorePointID = "rp_x" }), "not-found"},
		"no name":                   {restore(func(r *httpapi.RestoreRequest) { r.Name = "" }), "invalid"},
		"name taken":                {restore(func(r *httpapi.RestoreRequest) { r.Name = "web" }), "exists"},
		"no such disk":              {restore(func(r *httpapi.RestoreRequest) { r.Disks = []hypervisors.RestoreDisk{{ID: "x"}} }), "invalid"},
		"no such datastore":         {restore(func(r *httpapi.RestoreRequest) { r.Datastore = "x" }), "not-found"},
		"unknown mode":              {restore(func(r *httpapi.RestoreRequest) { r.Mode = "x" }), "invalid"},
		"in place while it runs":    {restore(func(r *httpapi.RestoreRequest) { r.Mode = hypervisors.RestoreInPlace }), "conflict"},
		"unknown connection":        {restore(func(r *httpapi.RestoreRequest) { r.ConnectionID = "conn_x" }), "not-found"},
		"repository on another":     {repository(httpapi.NewRepository{Name: "x", Path: filepath.Join(b.root, "repo")}), "exists"},
		"repository's name taken":   {repository(httpapi.NewRepository{Name: "main", Path: filepath.Join(b.root, "x")}), "exists"},
		"nothing to attach":         {repository(httpapi.NewRepository{Name: "x", Path: filepath.Join(b.root, "x"), Attach: true}), "invalid"},
		"attach with a missing key": {repository(httpapi.NewRepository{Name: "x", Path: b.root, Attach: true, KeyFile: filepath.Join(b.root, "no.key")}), "invalid"},
		"repository below a file":   {repository(httpapi.NewRepository{Name: "x", Path: filepath.Join(b.root, "data", "lock", "x")}), "invalid"},
		"repository out of reach":   {repository(httpapi.NewRepository{Name: "x", Path: "/proc/x"}), "invalid"},
		"relative path":             {repository(httpapi.NewRepository{Name: "x", Path: "x"}), "invalid"},
		"connection's name taken":   {connection(httpapi.NewConnection{Name: "lab", Platform: memplatform.PlatformName}), "exists"},
		"unknown platform":          {connection(httpapi.NewConnection{Name: "x", Platform: "x"}), "invalid"},
		"verify of unknown":         {func() error { _, err := b.StartVerify(t.Context(), httpapi.Start{}, "rp_x"); return err }(), "not-found"},
		"events of an unknown run":  {func() error { _, err := b.ListRunEvents(t.Context(), "run_x", 0, 0); return err }(), "not-found"},
		"cancelling an unknown run": {b.CancelRun(t.Context(), "run_x"), "not-found"},
	} {
		if got := kindOf(tt.err); got != tt.want {
			t.Errorf("%s: %v (%s), want %s", name, tt.err, got, tt.want)
		}
	}
	runs, err := b.ListRuns(t.Context(), catalog.RunFilter{}, catalog.Page{})
	repos, err2 := b.ListRepositories(t.Context(), catalog.Page{})
	conns, err3 := b.ListConnections(t.Context(), catalog.Page{})
	if err := errors.Join(err, err2, err3); err != nil || len(runs.Items) != 1 || len(repos.Items) != 1 || len(conns.Items) != 1 {
		t.Errorf("there are %d runs, %d repositories, %d connections, %v", len(runs.Items), len(repos.Items), len(conns.Items), err)
	}
	keys, err := filepath.Glob(filepath.Join(b.root, "data", "keys", "repo_*"))
	if err != nil || len(keys) != 1 {
		t.Errorf("keys = %v, %v", keys, err)
	}
}

func TestVMWithoutDisks(t *testing.T) {
	b := newBench(t)
	b.platform.AddVM(memplatform.VMSpec{Name: "diskless"})
	if _, err := b.RefreshConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	vms, err := b.ListVMs(t.Context(), catalog.VMFilter{}, catalog.Page{})
	if err != nil || len(vms.Items) != 2 || vms.Items[0].Name != "diskless" {
		t.Fatalf("VMs = %+v, %v", vms.Items, err)
	}
	_, err = b.StartBackup(t.Context(), startOf("ann"), httpapi.BackupRequest{VMID: vms.Items[0].ID, RepositoryID: b.repo})
	if meaning, advice := fault.Explanation(err); kindOf(err) != "invalid" || !strings.Contains(meaning, "has none") || strings.Contains(advice, "xclude") {
		t.Errorf("backup: %v (%s), %q, %q", err, kindOf(err), meaning, advice)
	}
}

func TestPruneAndTheNextBackup(t *testing.T) {
	b := newBench(t)
	first := b.backup()
	frozen0, frozen1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	b.write("disk0", 4096, 0)
	second := b.backup()
	if err := b.PruneRestorePoint(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	if err := b.PruneRestorePoint(t.Context(), second.ID); kindOf(err) != "not-found" {
		t.Errorf("prune again: %v, want not-found", err)
	}
	if task := b.ended(b.StartCollect(t.Context(), httpapi.Start{}, b.repo, httpapi.CollectRequest{})); task.State != catalog.Succeeded {
		t.Errorf("collect = %s, %+v", task.State, task.Error)
	}
	b.restoresTo(first.ID, "old", frozen0, frozen1)
	third := b.backup()
	b.restoresTo(third.ID, "new", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
	b.clean()
}

func TestRepositoryComesBackWithItsRestorePoints(t *testing.T) {
	b := newBench(t)
	b.backup()
	b.write("disk0", 4096, 0)
	b.backup()
	rows := func() []catalog.RestorePoint {
		list, err := b.ListRestorePoints(t.Context(), catalog.PointFilter{}, catalog.Page{})
		if err != nil {
			t.Fatal(err)
		}
		return list.Items
	}
	before := rows()
	if _, err := b.DetachRepository(t.Context(), b.repo); err != nil {
		t.Fatal(err)
	}
	if n := len(rows()); n != 0 {
		t.Errorf("%d restore points of a detached repository", n)
	}
	repo, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "again", Path: filepath.Join(b.root, "repo"), Attach: true})
	if err != nil {
		t.Fatal(err)
	}
	b.repo = repo.ID
	if diff := cmp.Diff(before, rows(), cmpopts.IgnoreFields(catalog.RestorePoint{}, "RepositoryID")); diff != "" {
		t.Errorf("rows made from the repository: -before +after %s", diff)
	}
	if p := b.backup(); p.Kind != catalog.Incremental {
		t.Errorf("the next backup is %s", p.Kind)
	}
}

func TestTwoWantTheSameDirectory(t *testing.T) {
	b := newBench(t)
	path := filepath.Join(b.root, "shared")
	errs := make(chan error, 2)
	for _, name := range []string{"one", "two"} {
		go func() {
			_, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: name, Path: path})
			errs <- err
		}()
	}
	kinds := map[string]int{kindOf(<-errs): 1}
	kinds[kindOf(<-errs)]++
	if diff := cmp.Diff(map[string]int{"nil": 1, "exists": 1}, kinds); diff != "" {
		t.Errorf("outcomes: -want +got %s", diff)
	}
	list, err := b.ListRepositories(t.Context(), catalog.Page{})
	if err != nil || len(list.Items) != 2 || list.Items[0].Usage == nil || list.Items[1].Usage == nil {
		t.Errorf("repositories = %+v, %v", list.Items, err)
	}
}
