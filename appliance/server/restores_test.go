package server

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// crew is the bench with three VMs: web has two restore points, db one and is gone, new none.
func crew(t *testing.T) (b *bench, first, second, db catalog.RestorePoint) {
	b = newBench(t)
	lost := b.platform.AddVM(memplatform.VMSpec{Name: "db", Disks: []int64{diskBytes}})
	b.platform.AddVM(memplatform.VMSpec{Name: "new", Disks: []int64{diskBytes}})
	if _, err := b.RefreshConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	first = b.backup()
	b.write("disk0", 4096, 0)
	second = b.backup()
	row, err := b.catalog.VMByPlatformID(t.Context(), b.conn, lost.ID)
	if err != nil {
		t.Fatal(err)
	}
	task := b.ended(b.StartBackup(t.Context(), httpapi.Start{User: "ann"}, httpapi.BackupRequest{VMID: row.ID, RepositoryID: b.repo}))
	point, err := b.GetRestorePoint(t.Context(), task.RestorePointID)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.platform.Driver().KeepCheckpoint(t.Context(), lost.ID, ""); err != nil {
		t.Fatal(err)
	}
	b.platform.RemoveVM(lost.ID)
	if _, err := b.RefreshConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	return b, first, second, point.RestorePoint
}

// planned returns what is planned of each VM: the restore point, or the kind of the error.
func planned(p httpapi.RestoresPlan) map[string]string {
	out := map[string]string{}
	for _, vm := range p.VMs {
		out[vm.Name+" as "+vm.As] = vm.Point.ID
		if vm.Err != nil {
			out[vm.Name+" as "+vm.As] = kindOf(vm.Err)
		}
	}
	return out
}

func TestPlanRestores(t *testing.T) {
	b, first, second, db := crew(t)
	tests := map[string]struct {
		r    httpapi.RestoresRequest
		want map[string]string
	}{
		"new": {
			httpapi.RestoresRequest{Filter: "all", NamePrefix: "a-", NameSuffix: "-b"},
			map[string]string{"web as a-web-b": second.ID, "db as a-db-b": db.ID, "new as a-new-b": "not-found"},
		},
		"of the old names": {
			httpapi.RestoresRequest{Filter: "name in (web, db)"},
			map[string]string{"web as web": "exists", "db as db": db.ID},
		},
		"before": {
			httpapi.RestoresRequest{Filter: "name in (web, db)", NameSuffix: "2", Before: first.Time},
			map[string]string{"web as web2": first.ID, "db as db2": "not-found"},
		},
		"another repository": {
			httpapi.RestoresRequest{Filter: "name = web", NameSuffix: "2", RepositoryID: "repo_none"},
			map[string]string{"web as web2": "not-found"},
		},
		"in place": {
			httpapi.RestoresRequest{Filter: "name in (web, db)", Mode: hypervisors.RestoreInPlace},
			map[string]string{"web as web": "conflict", "db as db": "not-found"},
		},
		"networks": {
			httpapi.RestoresRequest{Filter: "name in (web, new)", NameSuffix: "2", Networks: map[string]string{"memory:one": "memory:two"}},
			map[string]string{"web as web2": second.ID, "new as new2": "not-found"},
		},
	}
	for name, tt := range tests {
		if tt.r.Mode == "" {
			tt.r.Mode = hypervisors.RestoreNew
		}
		p, err := b.PlanRestores(t.Context(), tt.r)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got := planned(p)
		for vm, want := range tt.want {
			if got[vm] != want {
				t.Errorf("%s: %s is %q, want %q", name, vm, got[vm], want)
			}
		}
		if len(got) != len(tt.want) {
			t.Errorf("%s: planned %v, want %v", name, got, tt.want)
		}
	}
	for name, tt := range map[string]struct {
		r    httpapi.RestoresRequest
		want fault.Kind
	}{
		"nobody":            {httpapi.RestoresRequest{Filter: "name = nobody"}, fault.NotFound},
		"no filter":         {httpapi.RestoresRequest{Filter: "name ="}, fault.Invalid},
		"a network of none": {httpapi.RestoresRequest{Filter: "all", Networks: map[string]string{"no-such-network": "other"}}, fault.Invalid},
		"a transport":       {httpapi.RestoresRequest{Filter: "all", Transport: "pigeon"}, fault.Invalid},
		"a mover":           {httpapi.RestoresRequest{Filter: "all", Mover: "nobody"}, fault.NotFound},
	} {
		tt.r.Mode = hypervisors.RestoreNew
		_, planned := b.PlanRestores(t.Context(), tt.r)
		_, started := b.StartRestores(t.Context(), startOf("ann"), tt.r)
		if fault.KindOf(planned) != tt.want || fault.KindOf(started) != tt.want {
			t.Errorf("%s: planned %v, started %v, want %v", name, planned, started, tt.want)
		}
	}
	b.clean()
}

// TestRestoresPassOverDamage restores from the newest restore point that is not known to be damaged, and says so.
func TestRestoresPassOverDamage(t *testing.T) {
	b, first, second, _ := crew(t)
	request := httpapi.RestoresRequest{Filter: "name = web", Mode: hypervisors.RestoreNew, NameSuffix: "2"}
	if err := b.catalog.SetVerified(t.Context(), second.ID, fault.New(fault.Corrupt, "read", "pack", "it rots")); err != nil {
		t.Fatal(err)
	}
	p, err := b.PlanRestores(t.Context(), request)
	if err != nil || planned(p)["web as web2"] != first.ID || len(p.VMs[0].Warnings) != 1 {
		t.Errorf("planned %+v, %v, want %s with a warning", p, err, first.ID)
	}
	if err := b.catalog.SetVerified(t.Context(), first.ID, fault.New(fault.Corrupt, "read", "pack", "it rots")); err != nil {
		t.Fatal(err)
	}
	p, err = b.PlanRestores(t.Context(), request)
	if err != nil || p.VMs[0].Err == nil || !strings.Contains(p.VMs[0].Err.Error(), "all 2 of its restore points are damaged") {
		t.Errorf("planned %+v, %v", p, err)
	}
}

func TestStartRestores(t *testing.T) {
	b, _, _, db := crew(t)
	web0 := b.content(b.vm.ID, "disk0")
	request := httpapi.RestoresRequest{Filter: "all", Mode: hypervisors.RestoreNew, NameSuffix: "-again"}
	before := b.vms()
	_, err := b.StartRestores(t.Context(), startOf("ann"), request)
	if fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "1 of 3 VMs cannot be restored: new") {
		t.Errorf("with a VM that has no restore point: %v", err)
	}
	if b.vms() != before {
		t.Errorf("a refused request made %d VMs", b.vms()-before)
	}
	request.LeaveOut = true
	start := httpapi.Start{User: "ann", Key: "once upon a time"}
	started, err := b.StartRestores(t.Context(), start, request)
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.StartRestores(t.Context(), start, request)
	if err != nil || again.RunID != started.RunID || !again.Replayed {
		t.Errorf("the repeated request: %+v, %v, want run %s", again, err, started.RunID)
	}
	run, err := b.GetRun(t.Context(), started.RunID)
	if err != nil || len(run.Tasks) != 2 {
		t.Fatalf("run = %+v, %v, want two tasks", run, err)
	}
	made := map[string]catalog.Task{}
	for _, task := range run.Tasks {
		b.await(b.watch.end(task.ID))
		ended, err := b.GetTask(t.Context(), task.ID)
		if err != nil || ended.State != catalog.Succeeded {
			t.Fatalf("task = %+v, %v", ended, err)
		}
		made[ended.Result.VMName] = ended
	}
	if made["db-again"].RestorePointID != db.ID || !bytes.Equal(b.content(made["web-again"].Result.VMPlatformID, "disk0"), web0) {
		t.Errorf("made %+v", made)
	}
	run, err = b.GetRun(t.Context(), started.RunID)
	if err != nil || run.State != catalog.Succeeded {
		t.Errorf("the run is %s, %v", run.State, err)
	}
	b.clean()
}

// TestRestoresOfOneName restores two VMs that have the same name on one connection: the second is refused, not lost.
func TestRestoresOfOneName(t *testing.T) {
	b, _, _, _ := crew(t)
	twin := b.platform.AddVM(memplatform.VMSpec{Name: "web", Disks: []int64{diskBytes}})
	if _, err := b.RefreshConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	row, err := b.catalog.VMByPlatformID(t.Context(), b.conn, twin.ID)
	if err != nil {
		t.Fatal(err)
	}
	b.ended(b.StartBackup(t.Context(), httpapi.Start{User: "ann"}, httpapi.BackupRequest{VMID: row.ID, RepositoryID: b.repo}))
	p, err := b.PlanRestores(t.Context(), httpapi.RestoresRequest{Filter: "name = web", Mode: hypervisors.RestoreNew, NameSuffix: "2"})
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, vm := range p.VMs {
		kinds = append(kinds, kindOf(vm.Err))
	}
	if slices.Sort(kinds); !slices.Equal(kinds, []string{"exists", "nil"}) {
		t.Errorf("errors %v, want one of two refused", kinds)
	}
}

// TestRestoresAskForRoom answers with the error of a platform that does not say what room there is.
func TestRestoresAskForRoom(t *testing.T) {
	b, _, _, _ := crew(t)
	f := b.platform.Inject(memplatform.OpDatastores, &memplatform.Fault{Err: fault.New(fault.Transient, "list", "datastores", "no answer")})
	_, err := b.PlanRestores(t.Context(), httpapi.RestoresRequest{Filter: "name = web", Mode: hypervisors.RestoreNew, NameSuffix: "2", Before: time.Now()})
	if f.Fired() == 0 || fault.KindOf(err) != fault.Transient {
		t.Errorf("fired %d, %v", f.Fired(), err)
	}
}
