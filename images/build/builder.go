package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/images/bom"
	"github.com/cairn-backup/cairn/images/debian"
	"github.com/cairn-backup/cairn/images/disk"
)

// builder makes images into one directory.
type builder struct {
	out, kernel, cacheDir, version string
	formats                        []disk.Format
	time                           time.Time
	say                            func(format string, args ...any)

	work  string
	cache debian.Cache
	made  []string // names of the images that are finished
}

// recipes are the images by name.
var recipes = map[string]func(*builder, context.Context) (image, error){
	"mover":        (*builder).small,
	"mover-debian": (*builder).moverDebian,
	"appliance":    (*builder).appliance,
	"container":    (*builder).container,
}

// image is one image before it becomes formats.
type image struct {
	name    string // of the files
	product string
	cpus    int
	memory  int              // MiB
	dataGiB int              // of an empty second disk in the OVA; 0 for none
	parts   []disk.Partition // nil: it is no disk, and all of it is in extra
	mbr     string
	extra   map[string]string // more files to hand out: suffix to file
	bom     []bom.Component
}

func (b *builder) build(ctx context.Context, names []string) (err error) {
	if b.cache, err = debian.OpenCache(b.cacheDir); err != nil {
		return err
	}
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	if b.work, err = os.MkdirTemp("", "cairn-images-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.work)) }()
	for _, n := range names {
		make, ok := recipes[n]
		if !ok {
			return fmt.Errorf("there is no image %q", n)
		}
		begin := time.Now()
		img, err := make(b, ctx)
		if err == nil {
			err = b.finish(ctx, img)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", n, err)
		}
		b.say("%s: made in %v", img.name, time.Since(begin).Round(100*time.Millisecond))
	}
	return b.checksums()
}

// program compiles a command as the Makefile does, static unless env says otherwise. The tag grpcnotrace leaves out gRPC's
// debug pages, whose templates would keep the linker from leaving out what is never called: a quarter of the mover.
func (b *builder) program(ctx context.Context, name, tags string, env ...string) (string, error) {
	out := filepath.Join(b.work, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-tags", tags, "-o", out,
		"-ldflags", "-s -w -X github.com/cairn-backup/cairn/internal/version.Version="+b.version, "./cmd/"+name)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1"), env...)
	if said, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, said)
	}
	return out, nil
}

// loaders fetches the boot loaders' packages.
func (b *builder) loaders(ctx context.Context) (disk.Loaders, []bom.Component, error) {
	dir := filepath.Join(b.work, "loaders")
	parts, err := b.unpack(ctx, dir, "shim-signed", "grub-efi-amd64-signed", "syslinux", "syslinux-common")
	return disk.Loaders{
		Shim:     filepath.Join(dir, "usr/lib/shim/shimx64.efi.signed"),
		Grub:     filepath.Join(dir, "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"),
		Syslinux: filepath.Join(dir, "usr/bin/syslinux"),
		MBR:      filepath.Join(dir, "usr/lib/syslinux/mbr/gptmbr.bin"),
	}, parts, err
}

// unpack fetches packages and unpacks them into one directory.
func (b *builder) unpack(ctx context.Context, dir string, names ...string) (parts []bom.Component, err error) {
	for _, name := range names {
		p, err := b.cache.Fetch(ctx, name)
		if err != nil {
			return nil, err
		}
		if err := p.Extract(ctx, dir); err != nil {
			return nil, err
		}
		parts = append(parts, bom.Debian(p.Name, p.Version, p.Arch, p.SHA256))
	}
	return parts, nil
}

// id derives what must be unique to an image's content and the same in every build of it.
func id(words ...string) (g disk.GUID) {
	h := sha256.Sum256([]byte(strings.Join(words, "\x00")))
	copy(g[:], h[:])
	g[6], g[8] = g[6]&0x0f|0x80, g[8]&0x3f|0x80
	return g
}

// checksums writes SHA256SUMS over everything in the directory.
func (b *builder) checksums() error {
	entries, err := os.ReadDir(b.out)
	if err != nil {
		return err
	}
	var lines []string
	for _, e := range entries {
		if e.IsDir() || e.Name() == "SHA256SUMS" {
			continue
		}
		sum, err := sumFile(filepath.Join(b.out, e.Name()))
		if err != nil {
			return err
		}
		lines = append(lines, fmt.Sprintf("%x  %s\n", sum, e.Name()))
	}
	slices.Sort(lines)
	return os.WriteFile(filepath.Join(b.out, "SHA256SUMS"), []byte(strings.Join(lines, "")), 0o644)
}

func sumFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return h.Sum(nil), err
}
