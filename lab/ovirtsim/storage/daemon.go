package storage

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/locked"
)

// daemon is a running qemu-storage-daemon.
type daemon struct {
	*monitor
	cmd    *exec.Cmd
	output locked.Buffer
	socket string // of its NBD server
}

// startDaemon starts one that serves NBD on a socket in dir.
func startDaemon(ctx context.Context, dir string) (*daemon, error) {
	d := &daemon{socket: filepath.Join(dir, "nbd.sock")}
	_ = os.Remove(d.socket) // of one that was killed
	qmp := filepath.Join(dir, "qmp.sock")
	_ = os.Remove(qmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: qmp, Net: "unix"})
	if err != nil {
		return nil, fault.Context("listen for the storage daemon", qmp, err)
	}
	defer func() { _ = l.Close() }()
	f, err := l.File()
	if err != nil {
		return nil, fault.Context("listen for the storage daemon", qmp, err)
	}
	defer func() { _ = f.Close() }()
	// The listening socket is there before the daemon, so nothing has to wait for it.
	d.cmd = exec.Command("qemu-storage-daemon",
		"--chardev", "socket,id=qmp,fd=3,server=on,wait=off", "--monitor", "chardev=qmp",
		// A guest keeps a connection for each disk. The default of 100 is for networks.
		"--nbd-server", "addr.type=unix,addr.path="+d.socket+",max-connections=0")
	d.cmd.ExtraFiles = []*os.File{f}
	d.cmd.Stdout, d.cmd.Stderr = &d.output, &d.output
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.cmd.Start(); err != nil {
		return nil, fault.Wrap(fault.Unsupported, "start storage daemon", "", err).Explain(
			"qemu-storage-daemon is not installed or cannot be started.", "Install the packages of scripts/install-deps.sh.")
	}
	// The first client wakes two of its threads. One gets it; the other would wait in accept for a second one and never answer anything.
	if err := errors.Join(syscall.SetNonblock(int(f.Fd()), true), d.connect(ctx, qmp)); err != nil {
		d.kill()
		return nil, fault.New(fault.Internal, "start storage daemon", "", "%w; it said: %s", err, d.output.String())
	}
	return d, nil
}

func (d *daemon) connect(ctx context.Context, qmp string) error {
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", qmp)
	if err != nil {
		return err
	}
	d.monitor, err = newMonitor(ctx, nc)
	return err
}

// kill ends the daemon as a crash of its host would.
func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
	if d.monitor != nil {
		d.monitor.close()
	}
}

// quit ends the daemon in order: bitmaps are written to their files.
func (d *daemon) quit(ctx context.Context) error {
	err := d.do(ctx, "quit", nil, nil)
	if err != nil {
		d.kill()
		return err
	}
	err = d.cmd.Wait()
	d.monitor.close()
	return err
}
