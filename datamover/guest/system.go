//go:build linux

package guest

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountSystem mounts what every program expects to be there.
func mountSystem() error {
	const plain = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	var errs []error
	for _, m := range []struct {
		fs, dir string
		flags   uintptr
		options string
	}{
		{"proc", "/proc", plain, ""},
		{"sysfs", "/sys", plain, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
		{"tmpfs", "/run", plain, "mode=0755,size=10%"},
		{"tmpfs", "/tmp", plain, "mode=1777,size=25%"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, m.flags, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.dir, err))
		}
	}
	return errors.Join(errs...)
}

// openConsoles returns a writer to all the kernel's consoles. Its errors are nobody's business: a console that does not
// take a line must not stop the mover.
func openConsoles() io.Writer {
	active, _ := os.ReadFile("/sys/class/tty/console/active")
	var all consoles
	for _, name := range append(strings.Fields(string(active)), "console") {
		if name == "console" && len(all) > 0 {
			break
		}
		if f, err := os.OpenFile(filepath.Join("/dev", name), os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
			all = append(all, f)
		}
	}
	return all
}

type consoles []*os.File

func (c consoles) Write(p []byte) (int, error) {
	for _, f := range c {
		_, _ = f.Write(p)
	}
	return len(p), nil
}

// settings are what process 1 asks of the kernel. The kernel is not to start programs of its own accord, since there are
// none, but for the one case in which Hyper-V asks it to switch off: then it starts AskPowerOff.
var settings = map[string]string{
	"kernel/modprobe":              "",
	"kernel/poweroff_cmd":          "/init poweroff",
	"kernel/kptr_restrict":         "2",
	"kernel/dmesg_restrict":        "1",
	"kernel/printk":                "3",
	"kernel/panic":                 "10",
	"kernel/panic_on_oops":         "1",
	"net/ipv4/conf/all/arp_ignore": "1",
}

func applySettings(log *slog.Logger) {
	for key, value := range settings {
		if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value+"\n"), 0o644); err != nil {
			log.Warn("kernel setting", "key", key, "err", err)
		}
	}
}

// reap collects orphans until the channel is closed. There should be none; a process 1 that leaves them would fill the
// process table.
func reap(children <-chan os.Signal) {
	for range children {
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if pid <= 0 || err != nil {
				break
			}
		}
	}
}
