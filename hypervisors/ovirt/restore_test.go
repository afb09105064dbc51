package ovirt

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"

	imageiotransport "github.com/cairn-backup/cairn/datamover/transport/imageio"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

// point is a restore point in memory.
type point struct {
	info  hypervisors.FrozenInfo
	disks map[string][]byte
}

func (s *sim) point() point {
	s.Helper()
	want := s.contents()
	f := s.freeze(s.request("point"))
	p := point{f.Info(), want}
	s.same(f, want)
	s.release(f)
	return p
}

func (s *sim) restoreRequest(tag string, p point) hypervisors.RestoreRequest {
	req := hypervisors.RestoreRequest{Tag: tag, Mode: hypervisors.RestoreNew, Name: "copy-" + tag, VM: p.info.VM, Documents: p.info.Documents, Owe: s.book.owe}
	for _, d := range p.info.Disks {
		req.Disks = append(req.Disks, hypervisors.RestoreDisk{ID: d.Disk.ID, SizeBytes: d.Disk.SizeBytes})
	}
	return req
}

func (s *sim) write(x hypervisors.Export, data []byte) {
	s.Helper()
	d, err := imageiotransport.Options{}.OpenTarget(s.Context(), x)
	if err != nil {
		s.Fatal(err)
	}
	if _, err := d.WriteAt(data, 0); err != nil {
		s.Error(err)
	}
	if err := d.Flush(s.Context()); err != nil {
		s.Error(err)
	}
	if err := d.Close(); err != nil {
		s.Error(err)
	}
}

// restore restores a point and compares the disks.
func (s *sim) restore(req hypervisors.RestoreRequest, p point) hypervisors.VM {
	s.Helper()
	r, err := s.d.BeginRestore(s.Context(), req)
	if err != nil {
		s.Fatal(err)
	}
	for _, target := range r.Disks() {
		s.write(target.Export, p.disks[target.DiskID])
	}
	vm, err := r.Finish(s.Context())
	if err != nil {
		s.Fatal(err, r.Abandon(context.WithoutCancel(s.Context())))
	}
	if err := r.Abandon(s.Context()); err != nil {
		s.Errorf("abandon after the end: %v", err)
	}
	var got, want [][]byte
	for _, d := range vm.Disks {
		got = append(got, contentOf(s.T, s.e, d.ID))
	}
	for _, d := range req.Disks {
		want = append(want, p.disks[d.ID])
	}
	for _, w := range want {
		if !slices.ContainsFunc(got, func(g []byte) bool { return bytes.Equal(g, w) }) {
			s.Errorf("%s: a disk of %d bytes is not as it was", req.Name, len(w))
		}
	}
	if len(got) != len(want) {
		s.Errorf("%s has %d disks, want %d", req.Name, len(got), len(want))
	}
	s.clean("after the restore " + req.Tag)
	return vm
}

func TestRestoreKeepsWhatTheVMWas(t *testing.T) {
	s := newSim(t, true)
	p := s.point()
	vm := s.restore(s.restoreRequest("same", p), p)
	was := p.info.VM
	if vm.CPUs != was.CPUs || vm.MemoryBytes != was.MemoryBytes || vm.Firmware != was.Firmware || vm.Machine != was.Machine || vm.Cluster != was.Cluster ||
		!slices.Equal(vm.Tags, was.Tags) || !slices.Equal(vm.Labels, was.Labels) || vm.Power != hypervisors.PowerOff {
		t.Errorf("restored %+v\nwas %+v", vm, was)
	}
	if len(vm.NICs) != len(was.NICs) || vm.NICs[0].Network != was.NICs[0].Network || vm.NICs[1].Network != was.NICs[1].Network || vm.NICs[0].MAC == was.NICs[0].MAC {
		t.Errorf("NICs %+v, were %+v: the same networks, other addresses", vm.NICs, was.NICs)
	}
	for i, d := range vm.Disks {
		if old := was.Disks[i]; d.Name != old.Name || d.Bus != old.Bus || d.BootOrder != old.BootOrder || d.Format != old.Format || d.Datastore != old.Datastore || d.ID == old.ID {
			t.Errorf("disk %+v, was %+v", d, old)
		}
	}
	for _, note := range vm.Notes {
		if strings.Contains(note, "OVF") {
			t.Errorf("it was made without its OVF: %s", note)
		}
	}
	if now := s.contents(); len(now) != len(p.disks) {
		t.Error("the source has lost disks")
	}
}

// TestRestoreWithoutOVF makes VMs of what the API had said, and of nothing but the neutral description.
func TestRestoreWithoutOVF(t *testing.T) {
	s := newSim(t, true)
	p := s.point()
	for tag, docs := range map[string][]hypervisors.Document{
		"api":     {p.info.Documents[0]},
		"damaged": {p.info.Documents[0], {Name: docOVF, Data: []byte("<Envelope>")}},
		"refused": {p.info.Documents[0], {Name: docOVF, Data: []byte("<Envelope><Content><BiosType>99</BiosType></Content></Envelope>")}},
		"neutral": nil,
	} {
		req := s.restoreRequest(tag, p)
		req.Documents = docs
		vm := s.restore(req, p)
		if vm.CPUs != p.info.VM.CPUs || vm.MemoryBytes != p.info.VM.MemoryBytes || vm.Firmware != p.info.VM.Firmware || len(vm.NICs) != 2 {
			t.Errorf("%s: %+v", tag, vm)
		}
		said := slices.ContainsFunc(vm.Notes, func(n string) bool { return strings.Contains(n, "OVF") })
		if said != (tag == "damaged" || tag == "refused") {
			t.Errorf("%s: notes %q", tag, vm.Notes)
		}
	}
	req := s.restoreRequest("alone", p)
	req.Mode, req.Documents = hypervisors.RestoreDisks, []hypervisors.Document{p.info.Documents[0], {Name: docOVF, Data: []byte("<Envelope>")}}
	if plan, err := s.d.planRestore(t.Context(), req); err != nil || len(plan.notes) > 0 {
		t.Errorf("disks alone, of which no VM is made: %+v, %v", plan, err)
	}
}

func TestRestoreMapsNetworks(t *testing.T) {
	s := newSim(t, false)
	p := s.point()
	req := s.restoreRequest("mapped", p)
	req.Networks = map[string]string{"Default/ovirtmgmt/ovirtmgmt": "Default/backend/backend", "Default/backend/backend": ""}
	vm := s.restore(req, p)
	if len(vm.NICs) != 2 || vm.NICs[0].Network != "Default/backend/backend" || vm.NICs[1].Network != "" {
		t.Errorf("NICs %+v", vm.NICs)
	}
	req = s.restoreRequest("nowhere", p)
	req.Networks = map[string]string{"Default/backend/backend": "Default/none/none"}
	if err := s.d.CheckRestore(t.Context(), req); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a network that is not there: %v", err)
	}
	req = s.restoreRequest("addresses", p)
	req.KeepMACs = true
	err := s.d.CheckRestore(t.Context(), req)
	if meaning, _ := fault.Explanation(err); fault.KindOf(err) != fault.Exists || !strings.Contains(meaning, "MAC") {
		t.Errorf("addresses that are in use: %v (%s), want Exists before anything is written", err, meaning)
	}
}

func TestRestorePlaces(t *testing.T) {
	s := newSim(t, false)
	p := s.point()
	req := s.restoreRequest("san", p)
	for i := range req.Disks {
		req.Disks[i].Datastore = "san1"
	}
	if vm := s.restore(req, p); vm.Disks[0].Datastore != "san1" || vm.Disks[0].Format != hypervisors.QCOW2 {
		t.Errorf("disks %+v", vm.Disks)
	}
	for i := range req.Disks {
		req.Disks[i].Format = hypervisors.Raw
	}
	req.Tag, req.Name = "sanraw", "copy-sanraw"
	if err := s.d.CheckRestore(t.Context(), req); fault.KindOf(err) != fault.Invalid {
		t.Errorf("raw disks on block storage: %v, want Invalid", err)
	}
	req = s.restoreRequest("bigger", p)
	req.Disks = req.Disks[:1]
	req.Disks[0].SizeBytes, req.Disks[0].Format = 20<<20+100, hypervisors.Raw
	r, err := s.d.BeginRestore(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Disks()[0].Export.SizeBytes; got != 20<<20+512 {
		t.Errorf("the target has %d bytes, want them rounded up to sectors", got)
	}
	if err := r.Abandon(t.Context()); err != nil {
		t.Error(err)
	}
	req.Disks[0].SizeBytes = 512
	if err := s.d.CheckRestore(t.Context(), req); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a disk that is too small: %v", err)
	}
	for _, name := range []string{"a b", "a/b", "<x>", strings.Repeat("x", 256), "a\"b", "*"} {
		req := s.restoreRequest("named", p)
		req.Name = name
		if err := s.d.CheckRestore(t.Context(), req); fault.KindOf(err) != fault.Invalid {
			t.Errorf("the name %q: %v, want Invalid", name, err)
		}
	}
	s.clean("at the end")
}

// TestRestoreSurvives injects faults into each step of a restore.
func TestRestoreSurvives(t *testing.T) {
	for _, tt := range []struct {
		b  ovirtsim.Behaviour
		on string
		ok bool // it goes on; otherwise it fails and leaves nothing
	}{
		{ovirtsim.ReplyLost, "POST /disks", true},
		{ovirtsim.ReplyLost, "POST /imagetransfers", true},
		{ovirtsim.ReplyLost, "POST /vms", true},
		{ovirtsim.ReplyLost, "PUT /vms/*", true},
		{ovirtsim.SessionExpires, "POST /vms", true},
		{ovirtsim.Unavailable, "GET /disks/*", true},
		{ovirtsim.Unavailable, "POST /disks", false},
		{ovirtsim.InternalError, "POST /vms", false},
		{ovirtsim.InternalError, "POST /vms/*/diskattachments", false},
		{ovirtsim.InternalError, "POST /vms/*/nics", false},
		{ovirtsim.EngineRestarts, "POST /vms", false},
	} {
		t.Run(string(tt.b)+" "+tt.on, func(t *testing.T) {
			t.Parallel()
			s := newSim(t, false)
			p := s.point()
			f := s.e.Inject(tt.b, ovirtsim.Fault{On: tt.on, Times: 1})
			req := s.restoreRequest("faulty", p)
			if tt.ok {
				s.restore(req, p)
				s.struck(f, tt.b)
				return
			}
			r, err := s.d.BeginRestore(t.Context(), req)
			if err == nil {
				_, err = r.Finish(t.Context())
				if e := r.Abandon(t.Context()); e != nil {
					t.Errorf("abandon: %v", e)
				}
			}
			s.struck(f, tt.b)
			if fault.KindOf(err) != fault.Transient {
				t.Errorf("%v (%v), want Transient", err, fault.KindOf(err))
			}
			s.clean("after the failure")
			if found, err := s.d.restored(t.Context(), "faulty"); err != nil || len(found) > 0 {
				t.Errorf("VMs of the failed restore: %d, %v", len(found), err)
			}
			s.restore(s.restoreRequest("again", p), p)
		})
	}
}

// TestInPlaceCutOff stops a restore in the middle of the switch, as a crash of the manager would, and cleans up what was owed
// in either order: the VM has its own disks again, all of them.
func TestInPlaceCutOff(t *testing.T) {
	for _, reverse := range []bool{false, true} {
		s := newSim(t, false)
		s.e.Heal()
		vm, err := s.d.VM(t.Context(), archiveID)
		if err != nil {
			t.Fatal(err)
		}
		was := map[string][]byte{}
		for _, d := range vm.Disks {
			was[d.ID] = contentOf(t, s.e, d.ID)
		}
		req := hypervisors.RestoreRequest{Tag: "cut", Mode: hypervisors.RestoreInPlace, VM: vm, Owe: s.book.owe}
		for _, d := range vm.Disks {
			req.Disks = append(req.Disks, hypervisors.RestoreDisk{ID: d.ID})
		}
		r, err := s.d.BeginRestore(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		cut := s.e.Inject(ovirtsim.InternalError, ovirtsim.Fault{On: "POST /vms/*/diskattachments", Skip: 1, Times: 1})
		if _, err := r.Finish(t.Context()); fault.KindOf(err) != fault.Transient || cut.Fired() != 1 {
			t.Fatalf("finish: %v, %d faults", err, cut.Fired())
		}
		if now, err := s.d.VM(t.Context(), archiveID); err != nil || len(now.Disks) != 1 || was[now.Disks[0].ID] != nil {
			t.Fatalf("the VM has %+v, %v; want one new disk: the test would prove nothing", now.Disks, err)
		}
		other := openDriver(t, s.e)
		if reverse {
			slices.Reverse(s.book.items)
		}
		for range 2 {
			for _, o := range s.book.items {
				if err := other.CleanUp(t.Context(), o); err != nil {
					t.Errorf("clean up %s %s: %v", o.Kind, o.Name, err)
				}
			}
		}
		now, err := s.d.VM(t.Context(), archiveID)
		if err != nil || len(now.Disks) != len(was) {
			t.Fatalf("the VM has %+v, %v", now.Disks, err)
		}
		for i, d := range now.Disks {
			if want := was[d.ID]; want == nil || !bytes.Equal(contentOf(t, s.e, d.ID), want) {
				t.Errorf("disk %s is not as it was", d.ID)
			}
			if old := vm.Disks[i]; d.Bus != old.Bus || d.BootOrder != old.BootOrder {
				t.Errorf("disk %+v, was %+v", d, old)
			}
		}
		s.clean("after the clean-up")
	}
}

func TestInPlaceRefuses(t *testing.T) {
	s := newSim(t, false)
	vm, err := s.d.VM(t.Context(), archiveID)
	if err != nil {
		t.Fatal(err)
	}
	req := hypervisors.RestoreRequest{Tag: "no", Mode: hypervisors.RestoreInPlace, VM: vm, Disks: []hypervisors.RestoreDisk{{ID: vm.Disks[0].ID}}, Owe: s.book.owe}
	if err := s.d.CheckRestore(t.Context(), req); err != nil {
		t.Errorf("a VM that is off: %v", err)
	}
	if _, err := s.d.makeSnapshot(t.Context(), archiveID, "archive", "theirs", idsOf(vm.Disks)); err != nil {
		t.Fatal(err)
	}
	err = s.d.CheckRestore(t.Context(), req)
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || !strings.Contains(meaning, "snapshots") || advice == "" {
		t.Errorf("a VM with a snapshot: %v, want a Conflict", err)
	}
	if err := s.d.removeSnapshot(t.Context(), archiveID, marker+"theirs"); err != nil {
		t.Error(err)
	}
	req.VM.ID = moverID
	if err := s.d.CheckRestore(t.Context(), req); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a mover: %v, want a Conflict", err)
	}
}
