package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/images/bom"
	"github.com/cairn-backup/cairn/images/disk"
	"github.com/cairn-backup/cairn/images/system"
)

// systemCmdline leaves alone what is on other disks: no arrays, no file systems mounted by what partitions say they are.
const systemCmdline = "root=PARTUUID=%s ro console=tty0 console=ttyS0,115200 quiet panic=10 no_timer_check raid=noautodetect systemd.gpt_auto=0"

func (b *builder) moverDebian(ctx context.Context) (image, error) {
	img := image{name: "cairn-mover-debian", product: "Cairn DataMover (Debian)", cpus: 2, memory: 1536}
	program, err := b.program(ctx, "cairn-mover", moverTags)
	if err != nil {
		return img, err
	}
	r := system.Mover
	r.Programs = map[string]string{program: "cairn-mover"}
	r.Units = []string{"images/systemd/cairn-mover.service"}
	return b.system(ctx, img, r, 2048)
}

// manager compiles cairnd, which opens libvirt's library when it needs it, and the command line.
func (b *builder) manager(ctx context.Context) (daemon, client string, err error) {
	if daemon, err = b.program(ctx, "cairnd", "libvirt_dlopen", "CGO_ENABLED=1"); err != nil {
		return "", "", err
	}
	client, err = b.program(ctx, "cairn", "")
	return daemon, client, err
}

func (b *builder) appliance(ctx context.Context) (image, error) {
	img := image{name: "cairn-appliance", product: "Cairn appliance", cpus: 4, memory: 4096, dataGiB: 64}
	daemon, client, err := b.manager(ctx)
	if err != nil {
		return img, err
	}
	r := system.Appliance
	// The mover's own program reads what the machine was given, here its name and its network.
	mover, err := b.program(ctx, "cairn-mover", moverTags)
	if err != nil {
		return img, err
	}
	r.Programs = map[string]string{daemon: "cairnd", client: "cairn", mover: "cairn-mover"}
	r.Units = []string{"images/systemd/cairnd.service"}
	image, err := b.moverDisk(ctx)
	if err != nil {
		return img, err
	}
	r.Files = map[string]string{image: "usr/share/cairn/images/cairn-mover.qcow2"} // for `cairn mover deploy`
	return b.system(ctx, img, r, 8192)
}

// moverDisk returns the small mover's qcow2: what was just made, or one made for it.
func (b *builder) moverDisk(ctx context.Context) (string, error) {
	if slices.Contains(b.made, "cairn-mover") && slices.Contains(b.formats, disk.QCOW2) {
		return filepath.Join(b.out, "cairn-mover.qcow2"), nil
	}
	img, err := b.small(ctx)
	if err != nil {
		return "", err
	}
	raw, whole, err := b.raw(img)
	if err != nil {
		return "", err
	}
	out := filepath.Join(b.work, img.name+".qcow2")
	return out, errors.Join(disk.Convert(ctx, raw, out, disk.QCOW2, whole), os.Remove(raw))
}

// system makes an image of a Debian system on a root of rootMiB.
func (b *builder) system(ctx context.Context, img image, r system.Recipe, rootMiB int) (image, error) {
	dir := filepath.Join(b.work, img.name)
	bootID, rootID := id("boot", img.name, b.version), id("root", img.name, b.version)
	at := system.Place{Root: rootID.String(), Boot: bootID.String()}
	if err := r.Build(ctx, dir, b.cache.Dir(), at, b.time); err != nil {
		return img, err
	}
	for from := range r.Programs {
		if err := b.addProgram(&img, from); err != nil {
			return img, err
		}
	}
	packages, err := bom.DebianTree(filepath.Join(dir, "var/lib/dpkg/status"))
	if err != nil {
		return img, err
	}
	img.bom = append(img.bom, packages...)
	loaders, parts, err := b.loaders(ctx)
	if err != nil {
		return img, err
	}
	img.bom, img.mbr = append(img.bom, parts...), loaders.MBR
	kernel, initrd, err := system.Kernel(dir)
	if err != nil {
		return img, err
	}
	boot, root := filepath.Join(b.work, img.name+".esp"), filepath.Join(b.work, img.name+".root")
	err = disk.WriteBoot(ctx, boot, disk.Boot{
		Kernel: kernel, Initrd: initrd, Cmdline: fmt.Sprintf(systemCmdline, at.Root), Loaders: loaders, MiB: bootMiB, Time: b.time,
	})
	if err != nil {
		return img, err
	}
	if err := disk.WriteExt4(ctx, root, "cairn-root", rootID, rootMiB, dir, b.time); err != nil {
		return img, err
	}
	img.parts = []disk.Partition{
		{Name: "boot", Kind: disk.EFISystem, ID: bootID, Content: boot, BIOS: true},
		{Name: "root", Kind: disk.LinuxData, ID: rootID, Content: root},
	}
	if err := b.listPackages(&img, packages); err != nil {
		return img, err
	}
	return img, os.RemoveAll(dir)
}

// addProgram adds what a program was linked from to an image's bill of materials.
func (b *builder) addProgram(img *image, program string) error {
	modules, err := bom.GoProgram(program)
	img.bom = append(append(img.bom, modules...), bom.Component{Type: "application", Name: filepath.Base(program), Version: b.version})
	return err
}

// listPackages hands a plain list of an image's packages out with it.
func (b *builder) listPackages(img *image, packages []bom.Component) error {
	list := filepath.Join(b.work, img.name+".packages")
	var lines strings.Builder
	for _, p := range packages {
		fmt.Fprintf(&lines, "%s %s\n", p.Name, p.Version)
	}
	if img.extra == nil {
		img.extra = map[string]string{}
	}
	img.extra[".packages"] = list
	return os.WriteFile(list, []byte(lines.String()), 0o644)
}
