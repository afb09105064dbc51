package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-backup/cairn/images/bom"
	"github.com/cairn-backup/cairn/images/disk"
	"github.com/cairn-backup/cairn/images/small"
)

// moverState is guest.StateUUID: the partition that a mover knows as its own.
var moverState = disk.GUID([]byte("cairn-mover-stat"))

// moverTags are those of the Makefile too.
const moverTags = "grpcnotrace"

const (
	bootMiB  = disk.MinBootMiB
	stateMiB = 32
)

// small makes the small mover.
func (b *builder) small(ctx context.Context) (image, error) {
	img := image{name: "cairn-mover", product: "Cairn DataMover", cpus: 2, memory: 1024}
	program, err := b.program(ctx, "cairn-mover", moverTags)
	if err != nil {
		return img, err
	}
	kernel, err := b.cache.FetchKernel(ctx, b.kernel, filepath.Join(b.work, "kernel"))
	if err != nil {
		return img, err
	}
	roots, err := b.unpack(ctx, filepath.Join(b.work, "roots"), "ca-certificates")
	if err != nil {
		return img, err
	}
	loaders, parts, err := b.loaders(ctx)
	if err != nil {
		return img, err
	}
	in := small.Inputs{Program: program, Kernel: kernel, Version: b.version, Time: b.time,
		Roots: filepath.Join(b.work, "roots/usr/share/ca-certificates/mozilla")}
	initrd, list := filepath.Join(b.work, "initrd"), filepath.Join(b.work, "files")
	files, err := in.WriteInitrd(initrd)
	if err != nil {
		return img, err
	}
	if err := os.WriteFile(list, []byte(strings.Join(files, "\n")+"\n"), 0o644); err != nil {
		return img, err
	}
	boot, state := filepath.Join(b.work, "small.esp"), filepath.Join(b.work, "small.state")
	err = disk.WriteBoot(ctx, boot, disk.Boot{
		Kernel: kernel.Image, Initrd: initrd, Cmdline: small.Cmdline, Loaders: loaders, MiB: bootMiB, Time: b.time,
	})
	if err != nil {
		return img, err
	}
	if err := disk.WriteExt4(ctx, state, "cairn-state", moverState, stateMiB, "", b.time); err != nil {
		return img, err
	}
	img.mbr = loaders.MBR
	img.parts = []disk.Partition{
		{Name: "boot", Kind: disk.EFISystem, ID: id("boot", img.name), Content: boot, BIOS: true},
		{Name: "state", Kind: disk.LinuxData, ID: moverState, Content: state},
	}
	img.extra = map[string]string{".vmlinuz": kernel.Image, ".initrd": initrd, ".files": list}
	modules, err := bom.GoProgram(program)
	k := kernel.Package
	img.bom = append(append(append(parts, roots...), modules...), bom.Debian(k.Name, k.Version, k.Arch, k.SHA256),
		bom.Component{Type: "application", Name: "cairn-mover", Version: b.version})
	return img, err
}
