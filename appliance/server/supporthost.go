package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// hostFiles are what the machine says of itself.
var hostFiles = []string{
	"/etc/os-release", "/proc/version", "/proc/cmdline", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory",
	"/proc/self/status", "/proc/self/limits", "/proc/self/mounts", "/proc/self/cgroup",
}

// hostFacts are these files, one after the other; an old kernel lacks some.
func hostFacts() (any, error) {
	var out strings.Builder
	for _, name := range hostFiles {
		p, err := os.ReadFile(name)
		if err != nil {
			p = []byte(err.Error() + "\n")
		}
		fmt.Fprintf(&out, "== %s\n%s\n", name, p)
	}
	return out.String(), nil
}

const unit = "cairnd.service"

// unitState is what systemd says of the service.
func unitState(ctx context.Context) (any, error) {
	return systemd(ctx, "systemctl", "show", unit, "--no-pager", "--property=LoadState,ActiveState,SubState,Result,NRestarts,ExecMainStartTimestamp,ExecMainStatus,ExecMainCode,MemoryCurrent,TasksCurrent,FragmentPath,DropInPaths")
}

// systemd asks one of its programs.
func systemd(ctx context.Context, name string, args ...string) (any, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return nil, errors.New("this machine was not started by systemd")
	}
	p, err := exec.CommandContext(ctx, name, args...).Output() // no shell, and no argument comes from elsewhere
	if err != nil {
		err = fmt.Errorf("%s: %w", name, err)
	}
	return p, err
}

// log is the end of the log: this process' own, or what systemd has kept of the service.
func (b bundled) log(ctx context.Context) (any, error) {
	if b.recent != nil {
		return b.recent.Bytes(), nil
	}
	return systemd(ctx, "journalctl", "--unit="+unit, "--no-pager", "--output=short-iso", "--lines=5000")
}
