package sanlab

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// Machine is what a guest has beside the common things. The zero value is good.
type Machine struct {
	Programs []string    // packages of this module, built static, which are in /bin under the last element of their path
	Disks    []string    // raw files, which are /dev/vda, /dev/vdb and so on
	Forward  map[int]int // ports of the host's loopback that lead to ports of the guest
}

// Guest is a running VM: Debian's cloud kernel, busybox, lvm2, qemu-img, an iSCSI initiator, initiator and target of NVMe/TCP,
// and what its Machine says. The host's loopback is 10.0.2.2 for it.
type Guest struct {
	t       testing.TB
	console string
	conn    net.Conn
	stopped chan struct{} // closed when QEMU has ended

	mu      sync.Mutex
	next    int
	waiting map[int]chan reply
}

type reply struct {
	ID     int    `json:"id"`
	Out    []byte `json:"out"`
	Errors []byte `json:"errors"`
	Failed string `json:"failed"`
}

// StartGuest boots a guest. The test is skipped unless CAIRN_LAB is set.
func StartGuest(t testing.TB, m Machine) *Guest {
	t.Helper()
	if !kvmlab.Wanted() {
		t.Skip("boots a VM; set CAIRN_LAB=1")
	}
	dir, err := os.MkdirTemp("", "sanlab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	image, files, err := kernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	initrd, err := buildInitrd(t.Context(), dir, files, m.Programs)
	if err != nil {
		t.Fatal(err)
	}
	g := &Guest{t: t, console: filepath.Join(dir, "console"), stopped: make(chan struct{}), waiting: map[int]chan reply{}}
	if err := g.boot(dir, image, initrd, m); err != nil {
		t.Fatal(err)
	}
	return g
}

// boot starts QEMU and connects to the guest's port.
func (g *Guest) boot(dir, kernel, initrd string, m Machine) error {
	socket := filepath.Join(dir, "port")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	cmd := exec.Command("qemu-system-x86_64", append(m.arguments(), "-machine", "q35,accel=tcg", "-cpu", "max", "-m", "768", "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check",
		"-serial", "file:"+g.console, "-device", "virtserialport,chardev=c0,name=cairn.lab.0", "-chardev", "socket,id=c0,path="+socket)...)
	var problems strings.Builder
	cmd.Stderr = &problems
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_ = cmd.Wait()
		close(g.stopped)
		_ = l.Close()
		g.fail()
	}()
	g.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-g.stopped
		if g.conn != nil {
			_ = g.conn.Close()
		}
		if g.t.Failed() {
			console, _ := os.ReadFile(g.console)
			g.t.Logf("console:\n%s%s", console, problems.String())
		}
	})
	if g.conn, err = l.Accept(); err != nil {
		<-g.stopped
		return fmt.Errorf("QEMU ended: %s", problems.String())
	}
	go g.receive()
	return nil
}

// arguments are QEMU's for the network, the disks and the controller of the guest's port. Disks are written through to their files.
func (m Machine) arguments() []string {
	network := "user,id=n0"
	for from, to := range m.Forward {
		network += fmt.Sprintf(",hostfwd=tcp:127.0.0.1:%d-:%d", from, to)
	}
	out := []string{"-netdev", network, "-device", "virtio-net-pci,netdev=n0,romfile=", "-device", "virtio-serial-pci"}
	for _, file := range m.Disks {
		out = append(out, "-drive", "if=virtio,format=raw,cache=writethrough,file="+file)
	}
	return out
}

// receive hands replies to those who wait for them.
func (g *Guest) receive() {
	in := bufio.NewReaderSize(g.conn, 1<<20)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var r reply
		if json.Unmarshal(line, &r) != nil {
			continue
		}
		g.mu.Lock()
		ch := g.waiting[r.ID]
		delete(g.waiting, r.ID)
		g.mu.Unlock()
		if ch != nil {
			ch <- r
		}
	}
}

// fail ends all waiting when the guest is gone.
func (g *Guest) fail() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id, ch := range g.waiting {
		delete(g.waiting, id)
		ch <- reply{Failed: "the guest has ended"}
	}
}

// limit is how long a command may take; the first one waits for the guest to boot.
const limit = 10 * time.Minute

// Pending is a command under way.
type Pending struct {
	g    *Guest
	argv []string
	ch   chan reply
}

// Start sends a command without waiting for its end.
func (g *Guest) Start(stdin []byte, argv ...string) *Pending {
	g.t.Helper()
	g.mu.Lock()
	g.next++
	p := &Pending{g, argv, make(chan reply, 1)}
	g.waiting[g.next] = p.ch
	line, err := json.Marshal(struct {
		ID    int      `json:"id"`
		Argv  []string `json:"argv"`
		Stdin []byte   `json:"stdin,omitempty"`
	}{g.next, argv, stdin})
	g.mu.Unlock()
	if err == nil {
		_, err = g.conn.Write(append(line, '\n'))
	}
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

// Wait returns what the command printed, and an error if it failed.
func (p *Pending) Wait() (string, error) {
	p.g.t.Helper()
	select {
	case r := <-p.ch:
		if r.Failed != "" {
			return string(r.Out), fmt.Errorf("%s: %s: %s%s", strings.Join(p.argv, " "), r.Failed, r.Out, r.Errors)
		}
		return string(r.Out), nil
	case <-p.g.stopped:
		return "", errors.New("the guest has ended")
	case <-time.After(limit):
		p.g.t.Fatalf("%s: no answer within %v", strings.Join(p.argv, " "), limit)
		return "", nil
	}
}

// Try runs a command.
func (g *Guest) Try(argv ...string) (string, error) {
	g.t.Helper()
	return g.Start(nil, argv...).Wait()
}

// Run runs a command that must work.
func (g *Guest) Run(argv ...string) string {
	g.t.Helper()
	out, err := g.Try(argv...)
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// Shell runs a script that must work.
func (g *Guest) Shell(script string) string {
	g.t.Helper()
	return g.Run("sh", "-ec", script)
}
