package kvm

import (
	"bytes"
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// sshConfig is how the ssh client reaches the host: as libvirt's own qemu+ssh does.
type sshConfig struct {
	user, host, port, keyFile string
	noVerify                  bool
}

func (s sshConfig) args(more ...string) []string {
	args := []string{"-T", "-e", "none", "-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=4"}
	if s.noVerify {
		args = append(args, "-o", "StrictHostKeyChecking=no")
	}
	if s.keyFile != "" {
		args = append(args, "-i", s.keyFile, "-o", "IdentitiesOnly=yes")
	}
	if s.port != "" {
		args = append(args, "-p", s.port)
	}
	if s.user != "" {
		args = append(args, "-l", s.user)
	}
	return append(args, more...)
}

// forward is an ssh process that makes a socket of the host reachable as a socket here.
type forward struct {
	local string
	cmd   *exec.Cmd
	once  sync.Once
	done  chan none
}

// forwardSocket starts an ssh process and waits until it is connected. The caller ends it.
func (d *Driver) forwardSocket(ctx context.Context, tag, remote string) (*forward, error) {
	dir, err := d.tempDir()
	if err != nil {
		return nil, err
	}
	local := filepath.Join(dir, marker+tag+".sock")
	// ssh says on its standard error when the forward listens; -v is the only way to hear it.
	args := d.ssh.args("-v", "-N", "-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindMask=0177",
		"-o", "StreamLocalBindUnlink=yes", "-L", local+":"+remote, "--", d.ssh.host)
	cmd := exec.Command("ssh", args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	out := &watchWriter{want: "Entering interactive session", seen: make(chan none)}
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		return nil, fault.Context("start ssh to", d.ssh.host, err)
	}
	f := &forward{local: local, cmd: cmd, done: make(chan none)}
	go func() { _ = cmd.Wait(); close(f.done) }()
	select {
	case <-out.seen:
		return f, nil
	case <-f.done:
		return nil, fault.New(fault.Transient, "forward socket from", d.ssh.host, "ssh ended: %s", out.last()).
			Explain("The connection that carries the disks' data could not be set up.", "Check that sshd on the host allows forwarding of sockets (AllowStreamLocalForwarding).")
	case <-ctx.Done():
		f.end()
		return nil, fault.Wrap(fault.KindOf(ctx.Err()), "forward socket from", d.ssh.host, ctx.Err())
	case <-time.After(30 * time.Second):
		f.end()
		return nil, fault.New(fault.Transient, "forward socket from", d.ssh.host, "ssh did not connect within 30 s: %s", out.last())
	}
}

// end stops the process and waits for it.
func (f *forward) end() {
	f.once.Do(func() {
		_ = f.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-f.done:
		case <-time.After(5 * time.Second):
			_ = f.cmd.Process.Kill()
			<-f.done
		}
	})
}

// sshRun runs a short command on the host.
func (d *Driver) sshRun(ctx context.Context, command ...string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	quoted := make([]string, len(command))
	for i, c := range command {
		quoted[i] = "'" + strings.ReplaceAll(c, "'", `'\''`) + "'"
	}
	out, err := exec.CommandContext(ctx, "ssh", d.ssh.args("--", d.ssh.host, strings.Join(quoted, " "))...).CombinedOutput()
	if err != nil {
		return fault.New(fault.Transient, "run "+command[0]+" on", d.ssh.host, "%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// watchWriter keeps the last output of a process and tells when a text has appeared.
type watchWriter struct {
	mu   sync.Mutex
	buf  []byte
	want string
	once sync.Once
	seen chan none
}

func (w *watchWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, p...)
	if len(w.buf) > 64<<10 {
		w.buf = w.buf[len(w.buf)-32<<10:]
	}
	if bytes.Contains(w.buf, []byte(w.want)) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

// last returns the last line that is not ssh's own debugging.
func (w *watchWriter) last() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	line := ""
	for l := range strings.Lines(string(w.buf)) {
		if l = strings.TrimSpace(l); l != "" && !strings.HasPrefix(l, "debug1:") {
			line = l
		}
	}
	return line
}
