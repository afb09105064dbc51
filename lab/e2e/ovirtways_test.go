package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// The VMs of the site that the ways of backup are tried on.
const (
	ovirtMover    = "11111111-0000-4000-8000-000000000001"
	ovirtTracked  = "11111111-0000-4000-8000-000000000002"
	ovirtSnapshot = "11111111-0000-4000-8000-000000000003"
	ovirtHotadd   = "11111111-0000-4000-8000-000000000004"
)

// waysSite has a VM for each way, whose guests never stop writing, and a mover's VM.
func waysSite() ovirtsim.Site {
	const rate = 20
	return ovirtsim.Site{DataCenters: []ovirtsim.DataCenter{{
		Name: "Default", Networks: []string{"ovirtmgmt"}, Storage: []ovirtsim.StorageDomain{{Name: "data1"}, {Name: "san1", Storage: "iscsi"}},
		Clusters: []ovirtsim.Cluster{{Name: "Default", Hosts: []string{"host1", "host2"}, VMs: []ovirtsim.VM{
			{ID: ovirtTracked, Name: "tracked", Up: true, Agent: true, Rate: rate, Networks: []string{"ovirtmgmt"}, Disks: []ovirtsim.Disk{{}, {Bytes: 8 << 20, Storage: "san1"}}},
			{ID: ovirtSnapshot, Name: "untracked", Up: true, Rate: rate, Networks: []string{"ovirtmgmt"}, Disks: []ovirtsim.Disk{{NoTracking: true}, {Bytes: 8 << 20, Format: "raw"}}},
			{ID: ovirtHotadd, Name: "plugged", Up: true, Agent: true, Rate: rate, Networks: []string{"ovirtmgmt"}, Disks: []ovirtsim.Disk{{NoTracking: true}, {Bytes: 8 << 20, NoTracking: true, Storage: "san1"}}},
			{ID: ovirtMover, Name: "mover1", Comment: ovirtsim.MoverComment, Up: true, Idle: true, Networks: []string{"ovirtmgmt"}, Disks: []ovirtsim.Disk{{}}},
		}}},
	}}}
}

// way is how a VM's disks come to a mover.
type way struct {
	name, vm, id     string
	mover, transport string
	asked            map[string]any
	incremental      bool
}

func ovirtWays() []way {
	return []way{
		{"backup", "tracked", ovirtTracked, "m1", "imageio", map[string]any{"mover": "m1", "transport": "network"}, true},
		{"snapshot", "untracked", ovirtSnapshot, "built-in", "imageio", map[string]any{"mover": "built-in"}, false},
		{"hotadd", "plugged", ovirtHotadd, "m1", "hotadd", map[string]any{"transport": "hotadd"}, false},
	}
}

// TestOVirtWays backs VMs up whose guests never stop writing, in full and then again and again: by the engine's backup with its
// checkpoints, by image transfers of a snapshot, and by plugging a snapshot's disks into the VM of a mover. What the
// repository holds, and what is restored of it, is what the engine had frozen, bit for bit.
func TestOVirtWays(t *testing.T) {
	s := newSite(t, ovirtsim.Config{Site: waysSite()})
	guest, err := s.engine.Guest(t.Context(), ovirtMover)
	if err != nil {
		t.Fatal(err)
	}
	s.enrolIn(guest.Sys, "m1")
	if list := s.cairn("vm", "list"); !strings.Contains(list, "untracked") || strings.Contains(list, "mover1") {
		t.Errorf("cairn vm list prints\n%s", list)
	}
	t.Run("ways", func(t *testing.T) {
		for _, w := range ovirtWays() {
			t.Run(w.name, func(t *testing.T) {
				t.Parallel()
				s.on(t).walk(w)
			})
		}
	})
	s.clean("", "in the end")
	s.verifyAll()
}

// walk tries one way.
func (s *site) walk(w way) {
	vm := s.named(w.vm)
	order := s.disks(w.id)
	var points []string
	var frozen []map[string][32]byte
	var last map[string][]byte
	for round := range 1 + soak(5, 20) {
		run, err := s.startBackup(vm.ID, s.repo.ID, w.asked)
		if err != nil {
			s.t.Fatal(err)
		}
		ended := s.ended(run.ID, client.StateSucceeded, client.StateWarning)
		s.through(ended, w.mover, w.transport)
		point, now := s.point(ended), s.watch.of(w.id)
		for _, d := range point.Disks {
			s.judge(w, round, d, changed(last[d.ID], now[d.ID]))
		}
		points, frozen, last = append(points, point.ID), append(frozen, s.frozenHashes(w.id)), now
		s.clean(w.vm, fmt.Sprintf("after backup %d", round))
		if n := s.checkpointsOf(w.id); n > 1 || w.incremental && n == 0 {
			s.t.Errorf("the engine has %d checkpoints after backup %d", n, round)
		}
		if err := s.engine.Write(s.t.Context(), w.id, 2); err != nil {
			s.t.Fatal(err)
		}
	}
	stored := s.stored(points)
	for i, p := range points {
		for disk, want := range frozen[i] {
			if got, there := stored[p][disk]; !there || got != want {
				s.t.Errorf("backup %d holds something else of disk %s than was frozen", i, disk)
			}
		}
	}
	s.restoreNew(w, points[0], order, frozen[0])
	s.restoreNew(w, points[len(points)-1], order, frozen[len(frozen)-1])
	s.restoreInPlace(w, vm, points[1], frozen[1])
	s.restoreOneDisk(w, vm)
}

// blockBytes is the unit in which the engine records changes.
const blockBytes = 64 << 10

// changed counts the bytes of the blocks that differ.
func changed(a, b []byte) (n int64) {
	for i := 0; i < len(a); i += blockBytes {
		if end := min(i+blockBytes, len(a)); string(a[i:end]) != string(b[i:end]) {
			n += int64(end - i)
		}
	}
	return n
}

// judge looks at how a disk was read.
func (s *site) judge(w way, round int, d client.RestorePointDisk, changed int64) {
	s.t.Helper()
	switch {
	case round == 0:
		if d.Mode != "full" || d.ReadBytes < 512<<10 {
			s.t.Errorf("the first backup read %d bytes of disk %s, as %s", d.ReadBytes, d.ID, d.Mode)
		}
	case w.incremental:
		if d.Mode != "incremental" || d.ReadBytes == 0 || d.ReadBytes > changed {
			s.t.Errorf("backup %d read %d bytes of disk %s as %s (%s); %d bytes have changed", round, d.ReadBytes, d.ID, d.Mode, d.FullReason, changed)
		}
	case d.Mode != "full" || d.FullReason == "":
		s.t.Errorf("backup %d read disk %s as %s (%q), want as a whole with the reason", round, d.ID, d.Mode, d.FullReason)
	}
}

// back carries a restore out by the way that its backup took.
func (s *site) back(w way, body map[string]any) client.Run {
	s.t.Helper()
	for k, v := range w.asked {
		body[k] = v
	}
	run := s.restore(body)
	s.through(run, w.mover, w.transport)
	return run
}

// restoreNew makes a VM of a restore point and lets its guest check what it holds.
func (s *site) restoreNew(w way, point string, order []string, want map[string][32]byte) {
	s.t.Helper()
	name := w.vm + "-copy"
	run := s.back(w, map[string]any{"restore_point": point, "mode": "new", "name": name})
	id := s.named(name).PlatformID
	s.sameDisks("the copy of "+w.vm, id, order, want)
	s.clean(w.vm, "after restore "+run.ID)
	s.boots(id)
	s.power(id, "stop", "down")
	s.removeVM(id)
}

// restoreInPlace gives a VM its disks back as they were, and backs it up again.
func (s *site) restoreInPlace(w way, vm client.VM, point string, want map[string][32]byte) {
	s.t.Helper()
	order := s.disks(w.id)
	s.power(w.id, "stop", "down")
	s.back(w, map[string]any{"restore_point": point, "mode": "in-place"})
	s.sameDisks(w.vm+" in place", w.id, order, want)
	s.clean(w.vm, "after the restore in place")
	s.boots(w.id)
	next := s.backup(vm.ID, s.repo.ID, w.asked)
	for _, d := range next.Disks {
		if d.Mode != "full" || d.FullReason == "" {
			s.t.Errorf("the backup after the restore in place read disk %s as %s (%q)", d.ID, d.Mode, d.FullReason)
		}
	}
	s.clean(w.vm, "after the backup that follows")
}

// restoreOneDisk puts one disk back and leaves the other as it is.
func (s *site) restoreOneDisk(w way, vm client.VM) {
	s.t.Helper()
	before := s.disks(w.id)
	point := s.backup(vm.ID, s.repo.ID, w.asked)
	want := s.frozenHashes(w.id)[before[1]]
	if err := s.engine.Write(s.t.Context(), w.id, 3); err != nil {
		s.t.Fatal(err)
	}
	s.power(w.id, "stop", "down")
	stays := s.content(before[0])
	body := map[string]any{"restore_point": point.ID, "mode": "in-place", "only_disks": []string{before[1]}}
	plan := s.plan(body)
	if len(plan.Disks) != 1 || plan.Disks[0].ID != before[1] || len(plan.LeftOut) != 1 || plan.LeftOut[0].ID != before[0] {
		s.t.Errorf("the plan is %+v", plan)
	}
	_, err := s.startRestore(map[string]any{"restore_point": point.ID, "mode": "in-place", "only_disks": []string{w.id}})
	refused(s.t, "a disk that the restore point does not have", err, 422, "invalid")
	s.back(w, body)
	after := s.disks(w.id)
	if len(after) != 2 {
		s.t.Fatalf("the VM has the disks %v", after)
	}
	for _, disk := range after {
		switch {
		case disk == before[0]:
			if s.content(disk) != stays {
				s.t.Error("the disk that was left out was changed")
			}
		case disk == before[1] || s.content(disk) != want:
			s.t.Errorf("disk %s is not what was frozen", disk)
		}
	}
	s.clean(w.vm, "after the restore of one disk")

	name := w.vm + "-disk"
	s.back(w, map[string]any{"restore_point": point.ID, "mode": "new", "name": name, "only_disks": []string{before[1]}})
	made := s.named(name).PlatformID
	if disks := s.disks(made); len(disks) != 1 || s.content(disks[0]) != want {
		s.t.Errorf("the VM of one disk has %v, want what was frozen of one", disks)
	}
	s.clean(w.vm, "after the restore of one disk as a VM")
	s.removeVM(made)
}
