package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/lab/sanlab"
)

// TestDebianMover starts the Debian mover from each format, on both firmwares, told by each way who its manager is, and
// wants it to enrol by itself. The first machine also has disks of somebody else, of which nothing may be put together.
func TestDebianMover(t *testing.T) {
	soak(t)
	out := built(t, "mover-debian")
	image := filepath.Join(out, "cairn-mover-debian")
	t.Run("bom", func(t *testing.T) {
		checkBOM(t, image+".cdx.json", "pkg:deb/debian/lvm2@", "pkg:deb/debian/linux-image-", "pkg:golang/std@1.26")
		checkPackages(t, image+".packages", "systemd", "lvm2", "open-iscsi", "nvme-cli", "multipath-tools", "qemu-guest-agent")
	})
	t.Run("formats", func(t *testing.T) { checkFormats(t, func(suffix string) string { return image + suffix }) })
	m := startManager(t)
	for _, tt := range []struct {
		name     string
		firmware func(*testing.T) []string
		format   string
		device   string
		config   func(t *testing.T, document string, token client.MoverToken) []string
		foreign  bool
	}{
		{
			"deb-seed", bios, "qcow2", "-device virtio-blk-pci,drive=disk,bootindex=1",
			func(t *testing.T, document string, _ client.MoverToken) []string { return seedCD(t, document) }, true,
		},
		{
			"deb-fwcfg", secureBoot, "vhdx", "-device virtio-scsi-pci -device scsi-hd,drive=disk",
			func(t *testing.T, document string, _ client.MoverToken) []string { return fwCfg(t, document) }, false,
		},
		{
			"deb-words", i440fx, "vmdk", "-device pvscsi -device scsi-hd,drive=disk",
			func(t *testing.T, _ string, token client.MoverToken) []string {
				return directBoot(t, image, words(m, "deb-words", token))
			}, false,
		},
		{
			"deb-uefi", secureBoot, "vmdk", "-device ahci,id=hba -device ide-hd,drive=disk,bus=hba.0",
			func(t *testing.T, document string, _ client.MoverToken) []string { return seedCD(t, document) }, false,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			document, token := m.document(t, tt.name)
			socket := filepath.Join(t.TempDir(), "ga")
			args := append(append(tt.firmware(t), "-m", "1024"), bootDisk(t, image, tt.format, tt.device)...)
			args = append(append(args, tt.config(t, document, token)...), agentArgs(socket)...)
			if tt.foreign {
				args = append(append(args, foreignDisks(t)...), anotherMover(t, image)...)
			}
			v := startVM(t, args...)
			if got := m.awaitMover(t, v, tt.name, client.MoverOnline); got.Hostname != tt.name || got.MachineUUID == "" {
				t.Errorf("the manager knows %+v", got)
			}
			g := dialAgent(t, v, socket)
			g.sh(t, "systemctl is-system-running --wait")
			checkMoverSystem(t, g, tt.name)
			if tt.foreign {
				checkForeign(t, g)
			}
			checkClosed(t, g)
			t.Log(g.sh(t, "systemd-analyze time"))
			v.pressPower(t)
			if strings.Contains(strings.Join(v.log, "\n"), token.Token) {
				t.Error("the console shows the token")
			}
		})
	}
	t.Run("again", func(t *testing.T) { checkAgain(t, out, "mover-debian", "qcow2") })
}

// checkPackages wants packages in the plain list.
func checkPackages(t *testing.T, list string, want ...string) {
	t.Helper()
	text := "\n" + readText(t, list)
	for _, name := range want {
		if !strings.Contains(text, "\n"+name+" ") {
			t.Errorf("the list of packages has no %s", name)
		}
	}
}

// directBoot starts the kernel that is on an image's boot partition with its own words and more of them.
func directBoot(t *testing.T, image, more string) []string {
	t.Helper()
	dir := t.TempDir()
	raw, kernel, initrd := filepath.Join(dir, "raw"), filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
	config := filepath.Join(dir, "syslinux.cfg")
	for _, args := range [][]string{
		{"qemu-img", "convert", "-O", "raw", image + ".qcow2", raw},
		{"mcopy", "-i", raw + "@@1M", "::vmlinuz", kernel},
		{"mcopy", "-i", raw + "@@1M", "::initrd.img", initrd},
		{"mcopy", "-i", raw + "@@1M", "::syslinux.cfg", config},
	} {
		if text, err := exec.CommandContext(t.Context(), args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", args[0], err, text)
		}
	}
	_, line, ok := strings.Cut(readText(t, config), "APPEND ")
	if !ok {
		t.Fatal("syslinux.cfg has no command line")
	}
	return []string{"-kernel", kernel, "-initrd", initrd, "-append", strings.TrimSpace(line) + " " + more}
}

// foreignDisks are disks of machines that are being backed up: a volume group, and a file system in a partition that asks
// to be mounted as /srv by what it says it is.
func foreignDisks(t *testing.T) []string {
	t.Helper()
	group := sanlab.NewLVM(t, 64<<20)
	group.Run("pvcreate", "-q", group.Devices[0])
	group.Run("vgcreate", "-q", "theirs", group.Devices[0])
	group.Run("lvcreate", "-q", "-y", "-an", "-Zn", "-Wn", "-l", "4", "-n", "data", "theirs")
	disk := filepath.Join(t.TempDir(), "srv")
	script := `truncate -s 64M "$1" &&
		echo 'start=1MiB, size=62MiB, type=3B8F8425-20E0-4F3B-907F-1A25A76F98E8' | sfdisk -q --label gpt "$1" &&
		mke2fs -q -t ext4 -L theirs -E offset=1048576 "$1" 62M`
	if text, err := exec.CommandContext(t.Context(), "sh", "-c", script, "disk", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return []string{
		"-drive", "if=none,id=vg,format=raw,snapshot=on,file=" + group.Files[0], "-device", "virtio-blk-pci,drive=vg",
		"-drive", "if=none,id=srv,format=raw,snapshot=on,file=" + disk, "-device", "virtio-blk-pci,drive=srv",
	}
}

// checkMoverSystem looks at a Debian mover from inside.
func checkMoverSystem(t *testing.T, g *guestAgent, name string) {
	t.Helper()
	for _, tt := range []struct{ name, command, want string }{
		{"its configuration's mode", "stat -c %a%U /run/cairn-mover/config.yaml", "600root"},
		{"host name", "hostname", name},
		{"TCP listeners", "ss -lntH", ""},
		{"UDP listeners but DHCP's", "ss -lnuH | grep -vE ':(68|546) '", ""},
		{"volume groups that LVM sees", "vgs --noheadings", ""},
		{"what LVM activates", "lvmconfig activation/auto_activation_volume_list global/event_activation", "auto_activation_volume_list=[]\nevent_activation=0"},
		{"device mapper", "ls /dev/mapper", "control"},
		{"modules of arrays and maps", "lsmod | grep -E '^(dm_multipath|md_mod|raid)'", ""},
		{"mounted file systems", "findmnt -rno TARGET -t ext4,xfs,vfat,iso9660 | sort", "/\n/boot/efi"},
		{"services that put disks together", "systemctl is-active multipathd lvm2-monitor iscsid nvmf-autoconnect autofs | sort -u", "inactive"},
		{"mover", "systemctl is-active cairn-mover; systemctl show -p NRestarts --value cairn-mover", "active\n0"},
		{"who it is", "[ $(stat -c %u /proc/$(systemctl show -p MainPID --value cairn-mover)) -ge 61184 ] && echo a dynamic user", "a dynamic user"},
	} {
		if got := g.sh(t, tt.command); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// checkForeign wants the disks of foreignDisks to be seen, and left alone.
func checkForeign(t *testing.T, g *guestAgent) {
	t.Helper()
	for _, tt := range []struct{ name, command, want string }{
		{"signatures", "blkid -p -o value -s TYPE /dev/vd? | grep -c LVM2_member", "1"},
		{"volumes", "lsblk -rno TYPE | grep -cx lvm", "0"},
		{"its own partitions", "findmnt -nro SOURCE / && findmnt -nro SOURCE /boot/efi", "/dev/vda2\n/dev/vda1"},
		{"another mover's", "lsblk -nro PARTUUID /dev/sd?2 | grep -c \"$(lsblk -nro PARTUUID /dev/vda2)\"", "1"},
		{"mounts", "findmnt -rno TARGET /srv; systemctl is-active srv.automount srv.mount | sort -u", "inactive"},
	} {
		if got := g.sh(t, tt.command); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
