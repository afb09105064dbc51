// Package system makes images of whole Debian systems with systemd: the mover that can be audited package by package,
// and the appliance.
//
// The system is what mmdebstrap makes of Debian's packages, unchanged, plus the files below files/ and our programs.
// Its invariants: no password, no SSH, no login prompt; nothing of ours listens on a network but the appliance's API;
// in the mover nothing puts volumes, arrays or file systems of attached disks together by itself.
package system

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

//go:embed all:files
var files embed.FS

// Recipe says what a system consists of.
type Recipe struct {
	Packages []string          // beside the common ones
	Overlay  string            // folder below files/
	Programs map[string]string // program's file -> name below /usr/bin
	Files    map[string]string // other file -> path in the tree
	Units    []string          // unit files
	Enable   []string          // units that start at boot
	Mask     []string          // units that never start
	Hostname string
}

// Mover is the auditable mover, Appliance the manager.
var (
	Mover = Recipe{
		Packages: []string{"lvm2", "open-iscsi", "nvme-cli", "multipath-tools", "qemu-guest-agent", "nfs-common", "xfsprogs"},
		Overlay:  "mover",
		Enable:   []string{"cairn-mover-config.service", "cairn-storage.service", "cairn-sessions.service", "cairn-mover.service"},
		Mask: []string{
			"lvm2-monitor.service", "lvm2-lvmpolld.socket", "lvm2-lvmpolld.service", "blk-availability.service", "dm-event.socket", "dm-event.service",
			"multipathd.socket", "multipathd.service", "open-iscsi.service", "iscsid.socket", "nvmf-autoconnect.service",
			"rpcbind.socket", "rpcbind.service", "nfs-client.target", "rpc-statd.service", "rpc-statd-notify.service",
		},
		Hostname: "cairn-mover",
	}
	Appliance = Recipe{
		Packages: []string{"libvirt0", "openssh-client", "qemu-guest-agent", "nfs-common", "xfsprogs"},
		Overlay:  "appliance",
		Enable:   []string{"cairn-config.service", "cairn-data.service", "cairn-storage.service", "cairnd.service"},
		Mask:     []string{"rpcbind.socket", "rpcbind.service", "nfs-client.target", "rpc-statd.service", "rpc-statd-notify.service", "ssh-agent.service"},
		Hostname: "cairn",
	}
)

// commonPackages are in both. The kernel is Debian's own for all machines.
var commonPackages = []string{
	"linux-image-amd64", "systemd", "systemd-sysv", "systemd-resolved", "systemd-timesyncd", "udev", "dbus", "kmod", "iproute2",
	"initramfs-tools", "zstd", "ca-certificates", "e2fsprogs", "dosfstools",
}

// neverStart is masked in both: login prompts have no one to let in, and disks are looked at by nobody.
var neverStart = []string{
	"getty.target", "getty@.service", "serial-getty@.service", "console-getty.service", "autovt@.service", "getty-static.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "systemd-pcrphase.service",
}

// Place is where a system's partitions will be known.
type Place struct{ Root, Boot string } // partition UUIDs

// Build makes a system's tree in a directory that is not there yet. cache holds downloads.
func (r Recipe) Build(ctx context.Context, dir, cache string, at Place, epoch time.Time) error {
	tar := dir + ".tar"
	defer os.Remove(tar)
	if err := r.bootstrap(ctx, tar, cache, epoch); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	if err := run(ctx, epoch, "tar", "-C", dir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", tar); err != nil {
		return err
	}
	for _, overlay := range []string{"common", r.Overlay} {
		if err := copyOverlay(dir, overlay, at); err != nil {
			return err
		}
	}
	if err := r.install(dir); err != nil {
		return err
	}
	return settleTimes(dir, epoch)
}

// bootstrap lets mmdebstrap make the tree as an archive, with a kernel and what starts it.
func (r Recipe) bootstrap(ctx context.Context, tar, cache string, epoch time.Time) error {
	early := map[string]string{}
	for _, name := range []string{initramfsHook, initramfsRoot} {
		p, err := files.ReadFile("files/common" + name)
		if err != nil {
			return err
		}
		early[name] = tar + "." + filepath.Base(filepath.Dir(name))
		if err := os.WriteFile(early[name], p, 0o755); err != nil {
			return err
		}
		defer os.Remove(early[name])
	}
	return bootstrap(ctx, tar, cache, epoch, "minbase", slices.Concat(commonPackages, r.Packages),
		// The first file system carries the drivers of disks that a platform may give us, and not those of all the world.
		`--essential-hook=mkdir -p "$1"/etc/initramfs-tools/conf.d`,
		`--essential-hook=printf 'MODULES=list\nCOMPRESS=zstd\nFSTYPE=ext4\nRESUME=none\n' >"$1"/etc/initramfs-tools/conf.d/cairn`,
		`--essential-hook=printf '%s\n' `+strings.Join(bootModules, " ")+` >"$1"/etc/initramfs-tools/modules`,
		"--essential-hook=install -D -m 0755 "+early[initramfsHook]+` "$1"`+initramfsHook,
		"--essential-hook=install -D -m 0755 "+early[initramfsRoot]+` "$1"`+initramfsRoot,
		`--customize-hook=rm -f "$1"/etc/resolv.conf "$1"/var/lib/dbus/machine-id "$1"/etc/iscsi/initiatorname.iscsi "$1"/etc/nvme/hostnqn "$1"/etc/nvme/hostid`)
}

// Bare makes the archive of a system without kernel, systemd and package manager: Debian's essential packages and these.
func Bare(ctx context.Context, tar, cache string, epoch time.Time, packages ...string) error {
	return bootstrap(ctx, tar, cache, epoch, "essential", packages, `--customize-hook=rm -f "$1"/etc/resolv.conf "$1"/etc/hostname`)
}

// bootstrap lets mmdebstrap make an archive, in which it clamps all times to the build's. cache holds downloads.
func bootstrap(ctx context.Context, tar, cache string, epoch time.Time, variant string, packages []string, hooks ...string) error {
	debs := filepath.Join(cache, "archives")
	if err := os.MkdirAll(debs, 0o755); err != nil {
		return err
	}
	// In mount and process namespaces of their own: what mmdebstrap mounts for the packages' scripts, and the processes they
	// start, are gone when it ends in whatever way, and nothing of it is seen outside.
	args := []string{
		"--mount", "--pid", "--fork", "--kill-child", "--", "env", "TMPDIR=" + filepath.Dir(tar), "mmdebstrap", "--mode=root", "--variant=" + variant, "--quiet",
		"--include=" + strings.Join(packages, ","),
		"--aptopt=APT::Install-Recommends \"false\"",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--skip=essential/unlink,cleanup/reproducible/machine-id",
		`--setup-hook=mkdir -p "$1"/var/cache/apt/archives`,
		"--setup-hook=sync-in " + debs + " /var/cache/apt/archives",
		"--customize-hook=sync-out /var/cache/apt/archives " + debs,
		`--customize-hook=rm -f "$1"/var/log/*.log "$1"/var/log/apt/*`,
	}
	return run(ctx, epoch, "unshare", append(append(args, hooks...), "bookworm", tar)...)
}

// initramfsHook and initramfsRoot must be there before the packages that make the first file system.
const (
	initramfsHook = "/etc/initramfs-tools/hooks/cairn"
	initramfsRoot = "/etc/initramfs-tools/scripts/local-top/cairn"
)

// bootModules are the drivers of the disk that the system is on.
var bootModules = []string{
	"virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "ahci", "ata_piix", "nvme", "vmw_pvscsi", "mptspi", "mptsas", "hv_storvsc", "ext4", "crc32c_generic",
}

// copyOverlay lays one folder of files/ over a tree.
func copyOverlay(dir, overlay string, at Place) error {
	base := "files/" + overlay
	return fs.WalkDir(files, base, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(dir, strings.TrimPrefix(name, base))
		if d.IsDir() {
			return os.MkdirAll(to, 0o755)
		}
		p, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		text := strings.NewReplacer("@ROOT@", at.Root, "@BOOT@", at.Boot).Replace(string(p))
		perm := fs.FileMode(0o644)
		if strings.HasPrefix(text, "#!") {
			perm = 0o755
		}
		if err := os.RemoveAll(to); err != nil {
			return err
		}
		return os.WriteFile(to, []byte(text), perm)
	})
}

// install puts programs and units in, and says which of them start.
func (r Recipe) install(dir string) error {
	var errs []error
	note := func(err error) { errs = append(errs, err) }
	for from, name := range r.Programs {
		note(copyFile(filepath.Join(dir, "usr/bin", name), from, 0o755))
	}
	for from, name := range r.Files {
		to := filepath.Join(dir, name)
		note(os.MkdirAll(filepath.Dir(to), 0o755))
		note(copyFile(to, from, 0o644))
	}
	etc := filepath.Join(dir, "etc/systemd/system")
	for _, u := range r.Units {
		note(copyFile(filepath.Join(dir, "usr/lib/systemd/system", filepath.Base(u)), u, 0o644))
	}
	note(os.MkdirAll(filepath.Join(etc, "multi-user.target.wants"), 0o755))
	for _, u := range append([]string{"systemd-networkd.service", "systemd-resolved.service", "systemd-timesyncd.service", "cairn-console.service", "cairn-boot.service"}, r.Enable...) {
		target := "/usr/lib/systemd/system/" + u
		if _, err := os.Stat(filepath.Join(etc, u)); err == nil {
			target = "/etc/systemd/system/" + u
		}
		note(link(target, filepath.Join(etc, "multi-user.target.wants", u)))
	}
	note(os.MkdirAll(filepath.Join(etc, "network-online.target.wants"), 0o755))
	const online = "systemd-networkd-wait-online.service" // without it a service starts before its machine has an address
	note(link("/usr/lib/systemd/system/"+online, filepath.Join(etc, "network-online.target.wants", online)))
	for _, u := range slices.Concat(neverStart, r.Mask) {
		note(link("/dev/null", filepath.Join(etc, u)))
	}
	note(link("/run/systemd/resolve/resolv.conf", filepath.Join(dir, "etc/resolv.conf")))
	note(os.MkdirAll(filepath.Join(dir, "boot/efi"), 0o755))
	// An empty machine-id makes each machine draw its own at its first boot.
	note(os.WriteFile(filepath.Join(dir, "etc/machine-id"), nil, 0o444))
	note(os.WriteFile(filepath.Join(dir, "etc/hostname"), []byte(r.Hostname+"\n"), 0o644))
	return errors.Join(errs...)
}

func link(target, name string) error {
	if err := os.RemoveAll(name); err != nil {
		return err
	}
	return os.Symlink(target, name)
}

func copyFile(to, from string, perm fs.FileMode) error {
	p, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, p, perm)
}

// Kernel returns the kernel and the first file system of a tree.
func Kernel(dir string) (image, initrd string, err error) {
	for _, f := range []struct {
		pattern string
		to      *string
	}{{"boot/vmlinuz-*", &image}, {"boot/initrd.img-*", &initrd}} {
		found, err := filepath.Glob(filepath.Join(dir, f.pattern))
		if err != nil || len(found) != 1 {
			return "", "", fmt.Errorf("the system has %d files %s", len(found), f.pattern)
		}
		*f.to = found[0]
	}
	return image, initrd, nil
}
