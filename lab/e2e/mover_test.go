package e2e

import (
	"debug/elf"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/internal/locked"
	"github.com/cairn-backup/cairn/lab/kvmlab"
	"github.com/cairn-backup/cairn/lab/netfault"
)

// mover is a cairn-mover process that reaches its manager through a proxy.
type mover struct {
	t     *testing.T
	proxy *netfault.Proxy
	state string
	name  string
	sys   string // what it has for /sys; "" is this machine's
	cmd   *exec.Cmd
	log   *locked.Buffer
	gone  chan struct{}
}

func (a *appliance) movers() map[string]client.Mover {
	a.t.Helper()
	var list client.MoverList
	a.must("GET", "/movers", nil, &list)
	out := map[string]client.Mover{}
	for _, m := range list.Items {
		out[m.Name] = m
	}
	return out
}

// enrol starts a mover with a token of its own and waits until it is online.
func (s *scene) enrol(name string) *mover { return s.enrolIn("", name) }

// enrolIn starts a mover on a machine that sys is the sysfs of.
func (s *scene) enrolIn(sys, name string) *mover {
	s.t.Helper()
	proxy, err := netfault.New(s.moversAddr)
	if err != nil {
		s.t.Fatal(err)
	}
	m := &mover{t: s.t, proxy: proxy, state: filepath.Join(s.t.TempDir(), "state"), name: name, sys: sys, log: &locked.Buffer{}}
	s.t.Cleanup(func() {
		m.kill()
		proxy.Close()
		if s.t.Failed() {
			s.t.Logf("cairn-mover's log:\n%s", tail(m.log.String(), 30000))
		}
	})
	var token client.MoverToken
	s.must("POST", "/mover-tokens", map[string]any{"name": name}, &token)
	m.start("--fingerprint", token.Fingerprint, "--token", token.Token)
	s.online(m)
	return m
}

func (m *mover) start(flags ...string) {
	m.t.Helper()
	args := append([]string{"run", "--manager", m.proxy.Address(), "--state", m.state, "--log-level", "debug"}, flags...)
	m.cmd = exec.Command(moverBinary, args...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if m.sys != "" {
		m.cmd = exec.Command("/bin/sh", append([]string{"-c", `mount --bind "$0" /sys && exec "$@"`, m.sys, moverBinary}, args...)...)
		m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	}
	m.cmd.Stdout, m.cmd.Stderr = m.log, m.log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.gone = make(chan struct{})
	go func(cmd *exec.Cmd, gone chan struct{}) {
		_ = cmd.Wait()
		close(gone)
	}(m.cmd, m.gone)
}

func (m *mover) kill() {
	if m.cmd == nil {
		return
	}
	_ = m.cmd.Process.Kill()
	<-m.gone
	m.cmd = nil
}

// online waits until the manager has a mover's stream. Of a mover that does not come it says what it does instead.
func (s *scene) online(m *mover) {
	s.t.Helper()
	ended := m.gone
	s.wait("mover "+m.name, func() bool {
		select {
		case <-ended:
			s.t.Fatalf("mover %s ended by itself: %v", m.name, m.cmd.ProcessState)
		default:
		}
		return s.movers()[m.name].State == client.MoverOnline
	}, func() {
		_ = m.cmd.Process.Signal(syscall.SIGQUIT)
		<-ended
	})
}

// restarted tells the mover's network where the appliance is now, and waits for the mover.
func (s *scene) restarted(m *mover) {
	s.t.Helper()
	m.proxy.Retarget(s.moversAddr)
	s.online(m)
}

// TestMoverIsStatic: the program runs in an image that has nothing else.
func TestMoverIsStatic(t *testing.T) {
	needLab(t)
	f, err := elf.Open(moverBinary)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("cairn-mover has a segment %v", p.Type)
		}
	}
}

// traffic is what went over a mover's link.
type traffic struct{ up, down int64 }

func (b traffic) String() string {
	return fmt.Sprintf("%d bytes to the manager, %d from it", b.up, b.down)
}

// backUpFrozen backs the scene's VM up while a copy of its frozen disks is taken to compare with, on a manager that has
// just been started and that m is connected to.
func (s *scene) backUpFrozen(m *mover, dir string, round int, how map[string]any) (client.Run, traffic) {
	s.t.Helper()
	return s.backUpPaused(m, "backup.transferred", s.vmID, how, func() {
		for _, e := range s.exports() {
			s.nbdcopy(e, frozenFile(dir, round, e.disk))
		}
	})
}

// backUpPaused backs a VM up on a manager that has just been started and that m is connected to, does something while the
// backup stands at a point, and returns what went over m's link.
func (s *scene) backUpPaused(m *mover, point, vm string, how map[string]any, do func()) (client.Run, traffic) {
	s.t.Helper()
	p := s.pauseAt(point)
	s.restarted(m)
	up, down := m.proxy.Bytes()
	run, err := s.startBackup(vm, s.repo.ID, how)
	if err != nil {
		s.t.Fatal(err)
	}
	p.reached()
	do()
	p.release()
	ended := s.ended(run.ID, client.StateSucceeded, client.StateWarning)
	upNow, downNow := m.proxy.Bytes()
	return ended, traffic{upNow - up, downNow - down}
}

// TestBackupThroughAMover: a mover in a process of its own backs a running VM up, in full and incrementally, and
// restores it, bit for bit.
func TestBackupThroughAMover(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, smallVM)
	m := s.enrol("m1")
	by := map[string]any{"mover": "m1"}
	s.write(20)
	dir := t.TempDir()
	for round := range 2 {
		ended, lan := s.backUpFrozen(m, dir, round, by)
		point := s.point(ended)
		for _, x := range ended.Tasks[0].Transfers {
			if x.Mover != "m1" {
				t.Errorf("disk %s went through %q", x.Disk, x.Mover)
			}
		}
		t.Logf("round %d: read %d bytes, stored %d; LAN: %v", round, point.ReadBytes, point.StoredBytes, lan)
		var events client.RunEventList
		s.must("GET", "/runs/"+ended.ID+"/events?limit=1000", nil, &events)
		if !strings.Contains(fmt.Sprint(events.Items), "through mover m1: it runs on the machine that offers the disk") ||
			!strings.Contains(fmt.Sprint(events.Items), "built-in: another mover was asked for") {
			t.Errorf("the choice is not in the run's events: %v", events.Items)
		}
		name := fmt.Sprintf("%s-m%d", s.guest.Name, round)
		restored := s.restore(map[string]any{"restore_point": point.ID, "mode": "new", "name": name, "mover": "m1"})
		if x := restored.Tasks[0].Transfers; len(x) == 0 || x[0].Mover != "m1" {
			t.Errorf("the restore's transfers: %+v", x)
		}
		for target, raw := range s.restoredDisks(name) {
			sameContent(t, fmt.Sprintf("round %d %s", round, target), raw, frozenFile(dir, round, target))
		}
		s.remove(name)
		s.write(10)
	}
	s.noLeftovers()
	s.verifyAll()
}

// TestKilledMover: a mover that is killed during a transfer fails nothing: another one goes on.
func TestKilledMover(t *testing.T) {
	s := newScene(t, kvmlab.Options{}, smallVM)
	m := s.enrol("m1")
	m.proxy.Set(netfault.Fault{Rate: 64 << 10}) // so that the transfer takes its time
	s.write(20)
	run, err := s.startBackup(s.vmID, s.repo.ID, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.wait("the transfer on m1", func() bool {
		return s.movers()["m1"].Transfers > 0 && strings.Contains(m.log.String(), "transfer begun")
	})
	m.kill()
	if m.proxy.Fired() == 0 {
		t.Error("the link was not narrow")
	}
	m.proxy.Heal()
	m.start("--fingerprint", s.fingerprint()) // another process, which knows nothing of it
	ended := s.ended(run.ID, client.StateSucceeded, client.StateWarning)
	var events client.RunEventList
	s.must("GET", "/runs/"+run.ID+"/events?limit=1000", nil, &events)
	if !strings.Contains(fmt.Sprint(events.Items), "the mover was lost, and the transfer goes on") {
		t.Errorf("the loss is not in the run's events: %v", events.Items)
	}
	s.point(ended)
	s.verifyAll()
	s.noLeftovers()
}

func (s *scene) fingerprint() string {
	s.t.Helper()
	f := regexp.MustCompile(`CA fingerprint:\s+([0-9a-f]{64})`).FindStringSubmatch(s.log.String())
	if f == nil {
		s.t.Fatal("cairnd printed no fingerprint")
	}
	return f[1]
}
