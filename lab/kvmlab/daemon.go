package kvmlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// SystemURI is the connection to the machine's own libvirtd.
const SystemURI = "qemu:///system"

// runtimeDir holds pids and locks that all processes of the lab share.
const runtimeDir = "/run/cairn-lab"

// Daemon is a libvirtd with its virtlogd: the machine's own, or a private one with its own sockets, state and
// configuration, which a test may kill without hurting others.
type Daemon struct {
	URI string
	dir string // "" for the machine's own
}

// EnsureLibvirtd makes qemu:///system answer and starts virtlogd and libvirtd when none runs, without systemd if
// need be. Processes that call it at the same time start one of each. What it started keeps running for others,
// until StopLibvirtd.
func EnsureLibvirtd(ctx context.Context) (*Daemon, error) {
	d := &Daemon{URI: SystemURI}
	if d.answers(ctx) {
		return d, nil
	}
	unlock, err := lockFile(ctx, filepath.Join(runtimeDir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if d.answers(ctx) {
		return d, nil
	}
	if err := d.start(ctx); err != nil {
		return nil, err
	}
	return d, nil
}

// answers asks whether libvirtd can be spoken to.
func (d *Daemon) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	if _, err := os.Stat(d.host("/run/libvirt/libvirt-sock")); err != nil {
		return false
	}
	_, err := virsh(ctx, d.URI, "version")
	return err == nil
}

// start starts what does not run and waits until it answers.
func (d *Daemon) start(ctx context.Context) error {
	if _, err := os.Stat("/run/systemd/system"); err == nil && d.dir == "" {
		if _, err := run(ctx, "systemctl", "start", "libvirtd"); err != nil {
			return err
		}
	} else {
		_ = shareKVM() // without it VMs start slowly
		for _, name := range []string{"virtlogd", "libvirtd"} {
			if d.pid(name) != 0 {
				continue
			}
			if err := d.spawn(name); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	err := poll(ctx, 50*time.Millisecond, "libvirtd", func() (bool, error) { return d.answers(ctx), nil })
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(d.state(), "libvirtd.log"))
		return fmt.Errorf("%w\n%s", err, log)
	}
	return nil
}

// state is where our pid files and logs of this daemon are.
func (d *Daemon) state() string {
	if d.dir == "" {
		return runtimeDir
	}
	return d.dir
}

// pidFile is the daemon's own pid file.
func (d *Daemon) pidFile(name string) string {
	if d.dir == "" {
		return "/run/" + name + ".pid"
	}
	return filepath.Join(d.dir, name+".pid")
}

// pid returns the process id of a running virtlogd or libvirtd, or 0.
func (d *Daemon) pid(name string) int {
	return livePID(d.pidFile(name), name)
}

func livePID(file, name string) int {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil || !strings.Contains(string(stat), " ("+name+") ") || strings.Contains(string(stat), ") Z ") {
		return 0 // a zombie is dead, though in a container nobody may ever fetch it
	}
	return pid
}

// spawn starts a daemon below a reaper in a session of its own, so that it outlives this process.
func (d *Daemon) spawn(name string) error {
	log, err := os.OpenFile(filepath.Join(d.state(), name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	argv := append([]string{"/usr/sbin/" + name, "-p", d.pidFile(name)}, d.listening(name)...)
	if d.dir != "" {
		argv = append(d.enter(), argv...)
	}
	argv = reaped(filepath.Join(d.state(), name+".started"), argv)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", log, log
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	go func() { _ = cmd.Wait() }() // no zombie while we live; it ends with the daemon and its VMs, or with us
	return nil
}

// Signal sends a signal to libvirtd and, when it is one that ends it, waits until it is gone. VMs go on running.
func (d *Daemon) Signal(ctx context.Context, sig syscall.Signal) error {
	return d.signal(ctx, "libvirtd", sig)
}

func (d *Daemon) signal(ctx context.Context, name string, sig syscall.Signal) error {
	pid := d.pid(name)
	if pid == 0 {
		return nil
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	if sig != syscall.SIGTERM && sig != syscall.SIGKILL {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	return poll(ctx, 20*time.Millisecond, name+" to end", func() (bool, error) { return d.pid(name) != pid, nil })
}

// Start starts what was stopped by Signal and waits until it answers.
func (d *Daemon) Start(ctx context.Context) error { return d.start(ctx) }

// Restart stops libvirtd by SIGTERM and starts it again. On the machine's own libvirtd every other test feels it.
func (d *Daemon) Restart(ctx context.Context) error {
	if err := d.Signal(ctx, syscall.SIGTERM); err != nil {
		return err
	}
	return d.start(ctx)
}

// StopLibvirtd stops the machine's virtlogd and libvirtd if this package started them, no VM runs and no lab is
// open; it reports whether they are stopped.
func StopLibvirtd(ctx context.Context) (bool, error) {
	unlock, err := lockFile(ctx, filepath.Join(runtimeDir, "lock"))
	if err != nil {
		return false, err
	}
	defer unlock()
	users, err := tryLock(filepath.Join(runtimeDir, "users"), syscall.LOCK_EX)
	if err != nil {
		return false, nil
	}
	defer users()
	d := &Daemon{URI: SystemURI}
	if livePID(filepath.Join(runtimeDir, "libvirtd.started"), "libvirtd") == 0 {
		return false, nil
	}
	if names, err := virsh(ctx, d.URI, "list", "--name"); err == nil && names != "" {
		return false, nil
	}
	for _, name := range []string{"libvirtd", "virtlogd"} {
		if livePID(filepath.Join(runtimeDir, name+".started"), name) == 0 {
			continue
		}
		if err := d.signal(ctx, name, syscall.SIGTERM); err != nil {
			return false, err
		}
		_ = os.Remove(filepath.Join(runtimeDir, name+".started"))
	}
	return true, nil
}
