package sanlab

import (
	"fmt"
	"strings"
)

// Network brings up the guest's network, on which the host's loopback is 10.0.2.2.
func (g *Guest) Network() {
	g.t.Helper()
	g.Shell("ifconfig lo 127.0.0.1 up; ifconfig eth0 10.0.2.15 netmask 255.255.255.0 up")
}

// Login attaches a target's LUN with the kernel's initiator and returns its device's name, "sda".
func (g *Guest) Login(s *Target, iqn string) string {
	g.t.Helper()
	before := g.disks()
	g.Run("iscsistart", "-i", "iqn.2026-01.test.cairn:guest", "-t", iqn, "-g", "1", "-a", "10.0.2.2", "-p", fmt.Sprint(s.Port))
	now := strings.Fields(g.Shell(fmt.Sprintf("while [ $(ls -d /sys/block/sd* 2>/dev/null | wc -l) -le %d ]; do sleep 0.05; done; ls /sys/block | grep ^sd", len(before))))
	for _, name := range now {
		if !strings.Contains(" "+strings.Join(before, " ")+" ", " "+name+" ") {
			return name
		}
	}
	g.t.Fatalf("no new disk among %v", now)
	return ""
}

func (g *Guest) disks() []string {
	g.t.Helper()
	return strings.Fields(g.Shell("ls /sys/block | grep ^sd || true"))
}
