//go:build linux

// The guest program is the only process of a lab VM: it runs as init from an initramfs, writes checkable content to
// the VM's disks at a small rate, and answers the host's commands on a virtio port.
//
// It is not for use anywhere else; started as anything but process 1 it refuses. Its invariant: a disk that carries
// content is checked before anything is written, and one that fails the check is never written to.
package main

import (
	"fmt"
	"os"
	"syscall"
	"time"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is the init of a lab VM; it is of no use here")
		os.Exit(2)
	}
	if err := run(); err != nil {
		say("failed %v", err)
	}
	time.Sleep(time.Second) // let the console drain
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func run() error {
	if err := mountSystem(); err != nil {
		return err
	}
	cfg := readConfig("/proc/cmdline")
	loadModules("/lib/modules")
	go watchPowerButton()
	g := &guest{rate: cfg.rate}
	if cfg.mover {
		var err error
		if g.mover, err = startMover(); err != nil {
			return err
		}
		say("ready mover")
	} else {
		g.open(cfg)
	}
	if _, err := os.Stat(agentPath); err == nil {
		go runAgent()
	}
	go g.serve()
	return g.loop()
}

// say prints a line for the host on the console.
func say(format string, args ...any) {
	up, _ := os.ReadFile("/proc/uptime")
	var seconds float64
	_, _ = fmt.Sscan(string(up), &seconds)
	fmt.Printf("CAIRN-GUEST "+format+" up=%.2f\n", append(args, seconds)...)
}
