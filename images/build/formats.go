package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cairn-backup/cairn/images/bom"
	"github.com/cairn-backup/cairn/images/disk"
	"github.com/cairn-backup/cairn/images/ovf"
)

// raw writes an image's disk and returns it with the name that is derived from its content.
func (b *builder) raw(img image) (name string, whole disk.GUID, err error) {
	code, err := os.ReadFile(img.mbr)
	if err != nil {
		return "", whole, err
	}
	words := []string{img.name}
	for _, p := range img.parts {
		sum, err := disk.Sum(p.Content)
		if err != nil {
			return "", whole, err
		}
		words = append(words, string(sum))
	}
	name, whole = filepath.Join(b.work, img.name+".raw"), id(words...)
	return name, whole, disk.WriteImage(name, whole, code, img.parts)
}

// finish turns an image into its formats and lays them beside its other files.
func (b *builder) finish(ctx context.Context, img image) error {
	if img.parts == nil {
		return b.describe(img, id(img.name, b.version)) // it is no disk
	}
	raw, whole, err := b.raw(img)
	if err != nil {
		return err
	}
	for _, f := range b.formats {
		out := filepath.Join(b.work, img.name+"."+string(f))
		if err := disk.Convert(ctx, raw, out, f, whole); err != nil {
			return err
		}
		if f == disk.VMDK {
			if err := b.ova(img, raw, out); err != nil {
				return err
			}
		}
		if err := b.hand(out, img.name+"."+string(f)); err != nil {
			return err
		}
	}
	if err := os.Remove(raw); err != nil {
		return err
	}
	return b.describe(img, whole)
}

// describe hands out what an image comes with, and its bill of materials.
func (b *builder) describe(img image, whole disk.GUID) error {
	for suffix, from := range img.extra {
		if err := b.hand(from, img.name+suffix); err != nil {
			return err
		}
	}
	b.made = append(b.made, img.name)
	return bom.Write(filepath.Join(b.out, img.name+".cdx.json"), img.name, b.version, b.time, whole, img.bom)
}

// ova hands out the archive around a VMDK.
func (b *builder) ova(img image, raw, vmdk string) error {
	info, err := os.Stat(raw)
	if err != nil {
		return err
	}
	out := filepath.Join(b.work, img.name+".ova")
	err = ovf.WriteOVA(out, ovf.Machine{
		Name: img.name, Product: img.product, Version: b.version, CPUs: img.cpus, MemoryMiB: img.memory, Capacity: info.Size(), DataGiB: img.dataGiB,
		Annotation: "Configuration: a NoCloud seed, which is a CD labelled cidata; see docs/images.md.",
	}, vmdk, b.time)
	if err != nil {
		return err
	}
	return b.hand(out, img.name+".ova")
}

// hand puts a file into the directory of results, where it is complete or not there.
func (b *builder) hand(from, name string) error {
	to := filepath.Join(b.out, name)
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	tmp, err := os.CreateTemp(b.out, ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	n, err := io.Copy(tmp, in)
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(tmp.Name(), 0o644); err != nil {
		return err
	}
	b.say("  %-36s %s", name, fmt.Sprintf("%.1f MB", float64(n)/1e6))
	return os.Rename(tmp.Name(), to)
}
