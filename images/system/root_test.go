package system

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRoot runs what the first file system says of the root in machines that have more than one disk with its UUID.
func TestRoot(t *testing.T) {
	const (
		blk    = "sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vda/vda2"
		scsi   = "sys/devices/pci0000:00/0000:00:06.0/virtio3/host2/target2:0:0/2:0:0:1/block/sda/sda2"
		scsi2  = "sys/devices/pci0000:00/0000:00:06.0/virtio3/host2/target2:0:0/2:0:0:2/block/sdb/sdb2"
		iscsi  = "sys/devices/platform/host4/session1/target4:0:0/4:0:0:1/block/sdc/sdc2"
		fabric = "sys/devices/virtual/nvme-fabrics/ctl/nvme1/nvme1n1/nvme1n1p2"
		other  = "sys/devices/pci0000:00/0000:00:1f.2/ata1/host0/target0:0:0/0:0:0:0/block/sdd/sdd2" // with another UUID
	)
	for _, tt := range []struct {
		name  string
		root  string
		disks []string
		want  string // in param.conf, or said
	}{
		{"alone", "PARTUUID=ours", []string{blk}, "ROOT=/dev/vda2\n"},
		{"alone on the bus for all", "PARTUUID=ours", []string{scsi, other}, "ROOT=/dev/sda2\n"},
		{"beside somebody's", "PARTUUID=ours", []string{scsi, blk, scsi2}, "ROOT=/dev/vda2\n"},
		{"beside LUNs", "PARTUUID=ours", []string{iscsi, scsi, fabric}, "ROOT=/dev/sda2\n"},
		{"two on the bus for all", "PARTUUID=ours", []string{scsi, scsi2}, "/dev/sda2 /dev/sdb2 all look like"},
		{"a LUN only", "PARTUUID=ours", []string{iscsi}, "no partition PARTUUID=ours"},
		{"named otherwise", "/dev/sdd2", []string{scsi}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			put := func(name, text string) {
				t.Helper()
				name = filepath.Join(dir, name)
				if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			put("scripts/functions", "wait_for_udev() { :; }\nsleep() { :; }\npanic() { echo \"$*\"; exit 1; }\n")
			put("conf/param.conf", "")
			put("bin/blkid", "#!/bin/sh\ncase \"$6\" in */sdd2) echo theirs ;; *) echo ours ;; esac\n")
			put("sys/class/block/.none", "")
			for _, d := range tt.disks {
				put(d+"/partition", "2\n")
				if err := os.Symlink(filepath.Join(dir, d), filepath.Join(dir, "sys/class/block", filepath.Base(d))); err != nil {
					t.Fatal(err)
				}
			}
			p, err := files.ReadFile("files/common" + initramfsRoot)
			if err != nil {
				t.Fatal(err)
			}
			put("script", strings.NewReplacer(" /sys/class", " "+dir+"/sys/class", " /scripts/", " "+dir+"/scripts/", ">>/conf/", ">>"+dir+"/conf/").Replace(string(p)))
			cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(dir, "script"))
			cmd.Env = []string{"ROOT=" + tt.root, "PATH=" + filepath.Join(dir, "bin") + ":/usr/bin:/bin"}
			out, err := cmd.CombinedOutput()
			if refused := !strings.HasPrefix(tt.want, "ROOT=") && tt.want != ""; (err != nil) != refused {
				t.Errorf("%v: %s", err, out)
			}
			conf, err := os.ReadFile(filepath.Join(dir, "conf/param.conf"))
			if got := string(conf) + string(out); err != nil || got != tt.want && (tt.want == "" || !strings.Contains(got, tt.want)) {
				t.Errorf("got %q, %v, want %q", got, err, tt.want)
			}
		})
	}
}
