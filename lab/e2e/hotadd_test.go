package e2e

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/locked"
	"github.com/cairn-backup/cairn/lab/kvmlab"
	"github.com/cairn-backup/cairn/lab/netfault"
)

// deployRequest asks for a mover VM that reaches the appliance through a proxy, as QEMU's user network shows this machine.
func (s *scene) deployRequest(name, image string, proxy *netfault.Proxy) map[string]any {
	s.t.Helper()
	_, port, err := net.SplitHostPort(proxy.Address())
	if err != nil {
		s.t.Fatal(err)
	}
	return map[string]any{
		"name": name, "connection": s.connection.ID, "datastore": s.lab.Pool(), "network": "user", "image": image,
		"manager": net.JoinHostPort("10.0.2.2", port), "cpus": 1, "memory_bytes": 512 << 20,
	}
}

// deployed has a mover VM of a real image, whose manager was killed as soon as the mover had enrolled. more goes into
// the request.
func (s *scene) deployed(name, image string, more map[string]any) *mover {
	s.t.Helper()
	proxy, err := netfault.New(s.moversAddr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(proxy.Close)
	m := &mover{t: s.t, proxy: proxy, name: name, log: &locked.Buffer{}}
	request := s.deployRequest(name, image, proxy)
	maps.Copy(request, more)
	var run client.Run
	s.killAt("deploy.enrolled", func() {
		proxy.Retarget(s.moversAddr)
		s.must("POST", "/movers", request, &run)
	})
	s.ended(run.ID, client.StateWarning)
	s.restarted(m)
	return m
}

// bytesRead is what cairnd has read so far by whatever way: files, sockets, pipes.
func (a *appliance) bytesRead() int64 {
	a.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", a.cmd.Process.Pid))
	if err != nil {
		a.t.Fatal(err)
	}
	n, err := strconv.ParseInt(regexp.MustCompile(`rchar: (\d+)`).FindStringSubmatch(string(b))[1], 10, 64)
	if err != nil {
		a.t.Fatal(err)
	}
	return n
}

// through checks that a run's disks went by a mover and transport, and that it says why.
func (s *scene) through(run client.Run, mover, transport string) {
	s.t.Helper()
	if len(run.Tasks[0].Transfers) == 0 {
		s.t.Error("the run has no transfers")
	}
	for _, x := range run.Tasks[0].Transfers {
		if x.Mover != mover || x.Transport != transport || x.ChosenBecause == "" || len(x.Rejected) == 0 {
			s.t.Errorf("disk %s went by %s through %q because %q, not by %+v; want %s through %s, with reasons",
				x.Disk, x.Transport, x.Mover, x.ChosenBecause, x.Rejected, transport, mover)
		}
	}
}

// TestMoverVM: a mover VM of the built image is deployed and enrols by itself. A running VM's disk is plugged into it and
// backed up, in full and by its changes, and restored so, bit for bit.
func TestMoverVM(t *testing.T) {
	s := newScene(t, kvmlab.Options{Private: true}, kvmlab.Spec{Name: "hot", Rate: -1, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 24, Fill: 8 << 20}, {MiB: 8}}})
	m := s.deployed("m1", kvmlab.MoverImage(t, "mover"), nil)
	info := s.movers()["m1"]
	if info.DeployedOn != s.connection.ID || !strings.Contains(s.virsh("dumpxml", "cairn-m1"), info.MachineUUID) {
		t.Errorf("the mover is %+v, want it in the VM cairn-m1 of connection %s", info, s.connection.ID)
	}
	s.write(10)
	dir := t.TempDir()
	var full int64
	for round, mode := range []string{"full", "incremental"} {
		ended, lan := s.backUpFrozen(m, dir, round, nil)
		s.through(ended, "m1", "hotadd")
		point := s.point(ended)
		t.Logf("%s: read %d bytes, stored %d; LAN: %v", mode, point.ReadBytes, point.StoredBytes, lan)
		if got := ended.Tasks[0].Transfers[0].Mode; got != mode || point.ReadBytes == 0 || round == 1 && point.ReadBytes > full/2 {
			t.Errorf("round %d was %s and read %d bytes; want %s", round, got, point.ReadBytes, mode)
		}
		full = max(full, point.ReadBytes)
		name := fmt.Sprintf("%s-h%d", s.guest.Name, round)
		restored := s.restore(map[string]any{"restore_point": point.ID, "mode": "new", "name": name})
		s.through(restored, "m1", "hotadd")
		for target, raw := range s.restoredDisks(name) {
			sameContent(t, fmt.Sprintf("%s %s", mode, target), raw, frozenFile(dir, round, target))
		}
		s.remove(name)
		s.write(2)
	}
	s.rereadStaysOffTheLAN(m)
	s.otherWays()
	s.attachFails(m)

	s.must("DELETE", "/movers/"+info.ID, nil, nil)
	if _, err := s.lab.Virsh(t.Context(), "dominfo", "cairn-m1"); err == nil {
		t.Error("the mover's VM is still there")
	}
	if _, there := s.movers()["m1"]; there {
		t.Error("the mover is still known")
	}
	s.noLeftovers()
	s.verifyAll()
}

// rereadStaysOffTheLAN reads the whole disk once more: the repository has all of it, so that nothing but metadata has to
// come from the mover, and nothing at all by the export's socket to cairnd.
func (s *scene) rereadStaysOffTheLAN(m *mover) {
	s.t.Helper()
	up, down := m.proxy.Bytes()
	before := s.bytesRead()
	run, err := s.startBackup(s.vmID, s.repo.ID, map[string]any{"full": true})
	if err != nil {
		s.t.Fatal(err)
	}
	ended := s.ended(run.ID, client.StateSucceeded, client.StateWarning)
	after := s.bytesRead()
	s.through(ended, "m1", "hotadd")
	upNow, downNow := m.proxy.Bytes()
	lan, read := upNow-up+downNow-down, s.point(ended).ReadBytes
	s.t.Logf("read once more: %d bytes; LAN: %d bytes both ways; cairnd read %d bytes of files and sockets", read, lan, after-before)
	if read < 6<<20 {
		s.t.Errorf("%d bytes were read, want those of the whole disk", read)
	}
	if lan > read/10 {
		s.t.Errorf("%d bytes went over the LAN for %d read", lan, read)
	}
	if after-before > read/2 {
		s.t.Errorf("cairnd has read %d bytes while the mover read %d: the data came by cairnd", after-before, read)
	}
}

// otherWays asks for a way that there is, and for one that there is not, with and without another one allowed.
func (s *scene) otherWays() {
	s.t.Helper()
	run, err := s.startBackup(s.vmID, s.repo.ID, map[string]any{"transport": "network"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.through(s.ended(run.ID, client.StateSucceeded, client.StateWarning), "built-in", "nbd")
	s.virsh("suspend", "cairn-m1")
	defer s.virsh("resume", "cairn-m1")
	if run, err = s.startBackup(s.vmID, s.repo.ID, map[string]any{"transport": "hotadd"}); err != nil {
		s.t.Fatal(err)
	}
	failed := s.ended(run.ID, client.StateFailed)
	if what := failed.Tasks[0].Error; !strings.Contains(what.Detail, "hotadd: the connection has no mover VM that is on") || what.Advice == "" {
		s.t.Errorf("hotadd without a mover VM that is on failed with %+v", what)
	}
	if run, err = s.startBackup(s.vmID, s.repo.ID, map[string]any{"transport": "hotadd", "fallback": true}); err != nil {
		s.t.Fatal(err)
	}
	warned := s.ended(run.ID, client.StateWarning)
	s.through(warned, "built-in", "nbd")
	if w := fmt.Sprint(warned.Tasks[0].Warnings); !strings.Contains(w, "cannot go by hotadd, which was asked for, and goes another way") {
		s.t.Errorf("the fall-back's warnings: %s", w)
	}
}

// attachFails switches the mover's VM off when it was chosen and nothing is plugged in yet: the platform refuses the disk, and
// another way is allowed.
func (s *scene) attachFails(m *mover) {
	s.t.Helper()
	p := s.pauseAt("transfer.chosen")
	s.restarted(m)
	run, err := s.startBackup(s.vmID, s.repo.ID, map[string]any{"fallback": true, "exclude_disks": []string{"vdb"}})
	if err != nil {
		s.t.Fatal(err)
	}
	p.reached()
	s.virsh("destroy", "cairn-m1")
	p.release()
	warned := s.ended(run.ID, client.StateWarning)
	s.through(warned, "built-in", "nbd")
	if w := fmt.Sprint(warned.Tasks[0].Warnings); !strings.Contains(w, "could not go by hotadd, and goes another way") || !strings.Contains(w, "the mover's VM is not running") {
		s.t.Errorf("the fall-back's warnings: %s", w)
	}
}

// TestMoverVMDies switches a mover's VM off while a plugged disk is being read: another mover goes on from what the platform
// still holds frozen, and nothing stays plugged in.
func TestMoverVMDies(t *testing.T) {
	if os.Getenv("CAIRN_SOAK") != "1" {
		t.Skip("a mover is waited for as long as users wait, two minutes; set CAIRN_SOAK=1")
	}
	s := newScene(t, kvmlab.Options{Private: true}, kvmlab.Spec{Name: "dies", Rate: -1, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 24, Fill: 8 << 20}}})
	m := s.deployed("m1", kvmlab.MoverImage(t, "mover"), nil)
	s.write(10)
	p := s.pauseAt("backup.transferred")
	s.restarted(m)
	m.proxy.Set(netfault.Fault{Rate: 64 << 10}) // so that there is a middle
	run, err := s.startBackup(s.vmID, s.repo.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.wait("the transfer on m1", func() bool { return s.movers()["m1"].Transfers > 0 && m.proxy.Fired() > 0 })
	if !strings.Contains(s.virsh("dumpxml", "cairn-m1"), "<serial>"+hypervisors.SerialPrefix) {
		t.Error("the disk is not plugged into the mover's VM")
	}
	s.virsh("destroy", "cairn-m1")
	m.proxy.Heal()
	p.reached()
	dir := t.TempDir()
	for _, e := range s.exports() {
		s.nbdcopy(e, frozenFile(dir, 0, e.disk))
	}
	p.release()
	ended := s.ended(run.ID, client.StateSucceeded, client.StateWarning)
	if x := ended.Tasks[0].Transfers; len(x) != 1 || x[0].Mover != "built-in" || x[0].Transport != "nbd" {
		t.Errorf("the transfers ended as %+v, want the built-in mover's, by nbd", x)
	}
	var events client.RunEventList
	s.must("GET", "/runs/"+run.ID+"/events?limit=1000", nil, &events)
	if !strings.Contains(fmt.Sprint(events.Items), "the mover was lost, and the transfer goes on") {
		t.Errorf("the loss is not in the run's events: %v", events.Items)
	}
	s.virsh("start", "cairn-m1")
	s.online(m)
	if strings.Contains(s.virsh("dumpxml", "cairn-m1"), "<serial>"+hypervisors.SerialPrefix) {
		t.Error("a disk is still plugged into the mover's VM")
	}
	name := s.guest.Name + "-d0"
	restored := s.restore(map[string]any{"restore_point": s.point(ended).ID, "mode": "new", "name": name})
	s.through(restored, "m1", "hotadd")
	for target, raw := range s.restoredDisks(name) {
		sameContent(t, target, raw, frozenFile(dir, 0, target))
	}
	s.remove(name)
	s.must("DELETE", "/movers/"+s.movers()["m1"].ID, nil, nil)
	s.noLeftovers()
	s.verifyAll()
}

// TestKillManagerDuringDeploy: a deployment that dies with the manager leaves neither VM nor volume nor mover.
func TestKillManagerDuringDeploy(t *testing.T) {
	s := newScene(t, kvmlab.Options{Private: true}, kvmlab.Spec{Name: "deploy", Rate: -1, AreaBytes: 2 << 20, Disks: []kvmlab.Disk{{MiB: 8}}})
	image := filepath.Join(t.TempDir(), "empty.qcow2") // nothing boots from it, so that nobody enrols
	command(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "16M")
	proxy, err := netfault.New(s.moversAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer proxy.Close()
	for _, point := range []string{"deploy.token", "deploy.started"} {
		var run client.Run
		s.killAt(point, func() { s.must("POST", "/movers", s.deployRequest("m1", image, proxy), &run) })
		s.ended(run.ID, client.StateFailed)
		s.wait("leftovers to go", func() bool { return len(s.leftovers()) == 0 })
		if _, there := s.movers()["m1"]; there {
			t.Errorf("killed at %s: the mover is known", point)
		}
	}
	var run client.Run
	s.must("POST", "/movers", s.deployRequest("m1", image, proxy), &run)
	s.wait("the mover's VM", func() bool { return s.run(run.ID).Tasks[0].Phase == "waiting for the mover" })
	s.must("POST", "/runs/"+run.ID+"/cancel", nil, nil)
	s.ended(run.ID, client.StateCancelled)
	s.noLeftovers()
}
