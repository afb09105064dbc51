//go:build linux

package santransport_test

import (
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/lab/sanlab"
)

// TestGuestNVMe reads namespaces that one kernel serves over NVMe/TCP and attaches itself, by two ports. What the group lies on is
// found by names of each kind, and what a path that goes away leaves is read on the other one.
func TestGuestNVMe(t *testing.T) {
	const nqn = "nqn.2026-01.test.cairn:array"
	served := []sanlab.Namespace{
		{Device: "/dev/vda", UUID: "8f3c1e52-77f1-4b57-9d3a-0c6a55b0e101", NGUID: "6e2d9a40-1c77-4f0e-8a55-3b90aa51c201"},
		{Device: "/dev/vdb", UUID: "8f3c1e52-77f1-4b57-9d3a-0c6a55b0e102", NGUID: "6e2d9a40-1c77-4f0e-8a55-3b90aa51c202"},
	}
	a := &attached{t: t, files: lunFiles(t)}
	a.Guest = sanlab.StartGuest(t, sanlab.Machine{Programs: []string{reader}, Disks: a.files})
	a.Network()
	a.platform("vd")
	a.names = []string{"uuid." + served[0].UUID, "eui." + strings.ReplaceAll(served[1].NGUID, "-", "")}
	chain, raw := a.disks()
	a.Run("lvm", "vgchange", "-q", "-an", "pool")
	before := a.sums()

	a.ServeNVMe(nqn, 2, served...)
	var controllers []string
	for i := range 2 {
		controllers = append(controllers, a.ConnectNVMe("127.0.0.1", sanlab.NVMePort+i, nqn))
	}
	a.Shell("while [ $(ls -d /sys/block/nvme?n? 2>/dev/null | wc -l) -lt 2 ]; do sleep 0.05; done")
	t.Logf("WWNs as the kernel names them: %s", strings.Fields(a.Shell("cat /sys/block/nvme?n?/wwid")))
	a.full(chain, raw)
	a.partial(chain)

	leave := "echo 1 >/sys/class/nvme/%s/delete_controller"
	if got := a.reading(raw, "/tmp/got-path", strings.ReplaceAll(leave, "%s", controllers[0])); got.Error != "" {
		t.Errorf("with one path of two: %+v", got)
	}
	a.Shell("cmp /tmp/got-path /tmp/want-raw")
	if left := a.Shell("ls /sys/class/nvme"); strings.Contains(left, controllers[0]) {
		t.Errorf("there still is the path %s: %s", controllers[0], left)
	}
	got := a.reading(raw, "/tmp/got-gone", strings.ReplaceAll(leave, "%s", controllers[1]))
	if got.Kind != "transient" || !strings.Contains(got.Meaning, "cannot read the LUN on any path") {
		t.Errorf("after the last path: %+v", got)
	}
	if got := a.reading(raw, "/tmp/refused", ""); got.Kind != "not-found" {
		t.Errorf("without a path: %+v", got)
	}
	if a.sums() != before {
		t.Error("the LUNs have changed")
	}
}
