//go:build linux

package main

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/cairn-backup/cairn/lab/kvmlab/pattern"
)

const agentPath = "/usr/sbin/qemu-ga"

// mountSystem mounts what every program expects and makes the console our output.
func mountSystem() error {
	for _, m := range []struct{ fs, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if con, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		os.Stdout, os.Stderr = con, con
	}
	return nil
}

// config comes from the kernel command line.
type config struct {
	rate  float64    // rounds a second; 0: only when told to
	area  int64      // bytes of each disk that are written
	disks int        // disks to wait for
	group pattern.ID // for blank disks
	mover bool       // play a mover: touch no disk unless told to
}

func readConfig(file string) config {
	cfg := config{rate: 2, area: 16 << 20, disks: 1}
	line, _ := os.ReadFile(file)
	for _, word := range strings.Fields(string(line)) {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "cairn.rate":
			cfg.rate, _ = strconv.ParseFloat(value, 64)
		case "cairn.area":
			cfg.area, _ = strconv.ParseInt(value, 10, 64)
		case "cairn.disks":
			cfg.disks, _ = strconv.Atoi(value)
		case "cairn.mover":
			cfg.mover = value == "1"
		case "cairn.group":
			id, _ := hex.DecodeString(value)
			copy(cfg.group[:], id)
		}
	}
	return cfg
}

// loadModules loads the modules that the file "order" names.
func loadModules(dir string) {
	order, _ := os.ReadFile(filepath.Join(dir, "order"))
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open(filepath.Join(dir, name))
		if err == nil {
			params := []byte{0}
			_, _, no := syscall.Syscall(sysFinitModule, f.Fd(), uintptr(unsafe.Pointer(&params[0])), 0)
			if no != 0 && no != syscall.EEXIST {
				err = no
			}
			_ = f.Close()
		}
		if err != nil {
			say("module %s: %v", name, err)
		}
	}
}

// port finds the device of a named virtio port.
func port(name string) (string, error) {
	dirs, _ := filepath.Glob("/sys/class/virtio-ports/*")
	for _, d := range dirs {
		got, _ := os.ReadFile(filepath.Join(d, "name"))
		if string(bytes.TrimSpace(got)) == name {
			return filepath.Join("/dev", filepath.Base(d)), nil
		}
	}
	return "", fmt.Errorf("no virtio port %s", name)
}

// runAgent runs the real guest agent, which freezes file systems when the host asks.
func runAgent() {
	dev, err := port("org.qemu.guest_agent.0")
	if err != nil {
		say("agent: %v", err)
		return
	}
	for _, d := range []string{"/run", "/var/run", "/var/log", "/tmp"} {
		_ = os.MkdirAll(d, 0o755)
	}
	cmd := exec.Command(agentPath, "-m", "virtio-serial", "-p", dev, "-F/etc/fsfreeze-hook", "-t", "/run", "-l", "/var/log/ga.log")
	cmd.Env = []string{"PATH=/bin:/usr/sbin"}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		say("agent: %v", err)
		return
	}
	say("agent started")
	say("agent ended: %v", cmd.Wait())
}

// watchPowerButton switches the VM off when the host presses the button.
func watchPowerButton() {
	const eventBytes, keyPower = 24, 116
	files, _ := filepath.Glob("/dev/input/event*")
	for _, name := range files {
		go func() {
			f, err := os.Open(name)
			if err != nil {
				return
			}
			ev := make([]byte, eventBytes)
			for {
				if _, err := f.Read(ev); err != nil {
					return
				}
				if ev[16] == 1 && ev[18] == keyPower && ev[20] == 1 {
					say("power button")
					syscall.Sync()
					_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
				}
			}
		}()
	}
}
