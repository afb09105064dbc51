// Package nbdtest starts real NBD servers for tests: nbdkit, qemu-nbd and qemu-storage-daemon, with certificates and
// a proxy that cuts connections. Only tests import it.
//
// Its invariant: what a test started is gone when the test is over. Servers get a socket that listens already, so
// nothing has to wait for them to be ready.
package nbdtest

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/internal/locked"
)

// Require skips the test when a program is missing; with CAIRN_LAB=1 it fails instead.
func Require(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("CAIRN_LAB") == "1" {
			t.Fatalf("%s is not installed", p)
		}
		t.Skipf("%s is not installed", p)
	}
}

// Run runs a program and returns its standard output; failing fails the test.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	Require(t, name)
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, errs.String())
	}
	return out.String()
}

// Process is a server that runs until the test ends or Kill is called.
type Process struct {
	Network, Address string
	cmd              *exec.Cmd
	kill             sync.Once
	output           locked.Buffer
}

// Kill stops the server at once and waits until it is gone.
func (p *Process) Kill() {
	p.kill.Do(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
}

// Wait waits until the server has ended by itself.
func (p *Process) Wait() { p.kill.Do(func() { _ = p.cmd.Wait() }) }

// Output returns what the server wrote to its standard error so far.
func (p *Process) Output() string { return p.output.String() }

// NBDKit starts nbdkit on a Unix socket.
func NBDKit(t testing.TB, args ...string) *Process {
	t.Helper()
	return start(t, "unix", "nbdkit", append([]string{"-f", "--exit-with-parent"}, args...)...)
}

// NBDKitTCP starts nbdkit on a TCP port of the loopback.
func NBDKitTCP(t testing.TB, args ...string) *Process {
	t.Helper()
	return start(t, "tcp", "nbdkit", append([]string{"-f", "--exit-with-parent"}, args...)...)
}

// QemuNBD starts qemu-nbd for any number of clients, one after another or at once.
func QemuNBD(t testing.TB, args ...string) *Process {
	t.Helper()
	return start(t, "unix", "qemu-nbd", append([]string{"--persistent", "--shared=0"}, args...)...)
}

// QemuNBDTCP does the same on a TCP port of the loopback.
func QemuNBDTCP(t testing.TB, args ...string) *Process {
	t.Helper()
	return start(t, "tcp", "qemu-nbd", append([]string{"--persistent", "--shared=0"}, args...)...)
}

// StorageDaemon starts qemu-storage-daemon; its NBD server is there already, args add nodes and exports.
func StorageDaemon(t testing.TB, args ...string) *Process {
	t.Helper()
	return start(t, "unix", "qemu-storage-daemon", append([]string{"--nbd-server", "addr.type=fd,addr.str=3"}, args...)...)
}

// start runs a server with a listening socket as file descriptor 3, announced as systemd does it.
func start(t testing.TB, network, name string, args ...string) *Process {
	t.Helper()
	Require(t, name)
	address := "127.0.0.1:0"
	if network == "unix" {
		address = Socket(t)
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	var f *os.File
	switch l := l.(type) {
	case *net.UnixListener:
		l.SetUnlinkOnClose(false)
		f, err = l.File()
	case *net.TCPListener:
		f, err = l.File()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	p := &Process{Network: network, Address: l.Addr().String()}
	script := `export LISTEN_PID=$$ LISTEN_FDS=1; exec "$0" "$@"`
	if name == "qemu-storage-daemon" {
		script = `exec "$0" "$@"`
	}
	p.cmd = exec.Command("sh", append([]string{"-c", script, name}, args...)...)
	p.cmd.ExtraFiles = []*os.File{f}
	p.cmd.Stderr = &p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() && p.Output() != "" {
			t.Logf("%s: %s", name, p.Output())
		}
	})
	return p
}

// Socket returns a path for a Unix socket; t.TempDir's own is often too long for one.
func Socket(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// URI returns the address in the form libnbd's programs and qemu-img understand.
func URI(network, address, export string) string {
	if network == "unix" {
		return "nbd+unix:///" + export + "?socket=" + address
	}
	return "nbd://" + address + "/" + export
}
