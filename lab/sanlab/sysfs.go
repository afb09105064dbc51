package sanlab

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/datamover/blockdev"
)

// Seen is how a loop device is to look: loop devices have no identity of their own.
type Seen struct {
	Device string // /dev/loopN
	WWN    string
	Serial string
	Size   int64 // 0: what the device has
}

// Disguise makes a tree like sysfs in which loop devices are LUNs. Devices, mounts and swap space are the machine's own.
func Disguise(t testing.TB, devices ...Seen) blockdev.System {
	t.Helper()
	sys := t.TempDir()
	for _, d := range devices {
		name := filepath.Base(d.Device)
		real := filepath.Join("/sys/block", name)
		size := read(t, filepath.Join(real, "size"))
		if d.Size != 0 {
			size = fmt.Sprint(d.Size / 512)
		}
		for file, text := range map[string]string{
			"dev": read(t, filepath.Join(real, "dev")), "size": size, "queue/logical_block_size": "512",
			"device/wwid": d.WWN, "device/vendor": "IET", "device/model": "VIRTUAL-DISK", "device/vpd_pg80": d.Serial,
		} {
			path := filepath.Join(sys, "block", name, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return blockdev.System{Sys: sys}
}

func read(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}
