package kvmlab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"

	"github.com/cairn-backup/cairn/lab/kvmlab/pattern"
)

// makeDisks makes the images of a VM in the pool's directory.
func (l *Lab) makeDisks(ctx context.Context, s Spec) ([]source, error) {
	var out []source
	virtio, cd := 'a', 'a'
	for _, d := range s.Disks {
		src := source{Disk: d, Format: d.format(), Bus: "virtio", Device: "disk"}
		if d.Kind == CDROM {
			src.Target, src.Bus, src.Device = "sd"+string(cd), "sata", "cdrom"
			cd++
		} else {
			src.Target = "vd" + string(virtio)
			virtio++
		}
		src.SerialNo = strings.Trim(string(d.Kind)+"-"+s.Name+"-"+src.Target, "-")
		src.Path = l.path("pool/" + s.Name + "-" + src.Target + "." + src.Format)
		if err := l.makeDisk(ctx, s, src); err != nil {
			return nil, fmt.Errorf("make disk %s: %w", src.Path, err)
		}
		out = append(out, src)
	}
	return out, nil
}

func (l *Lab) makeDisk(ctx context.Context, s Spec, src source) error {
	raw := src.Path
	plain := src.Fill == 0 && src.Kind != FileSystem
	if src.Format != "raw" {
		if plain {
			_, err := run(ctx, "qemu-img", "create", "-q", "-f", src.Format, src.Path, fmt.Sprintf("%dM", src.MiB))
			return err
		}
		raw += ".raw"
		defer os.Remove(raw)
	}
	f, err := os.Create(raw)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(src.MiB << 20); err != nil {
		return err
	}
	if src.Kind == FileSystem {
		if _, err := run(ctx, "/sbin/mke2fs", "-q", "-F", "-t", "ext4", raw); err != nil {
			return err
		}
	} else if err := fill(f, src.MiB<<20, s.AreaBytes, src.Fill); err != nil {
		return err
	}
	if raw == src.Path {
		return nil
	}
	_, err = run(ctx, "qemu-img", "convert", "-f", "raw", "-O", src.Format, raw, src.Path)
	return err
}

// fill writes clusters of random content, the same for every disk of one size, where the guest never writes.
func fill(w io.WriterAt, size, area, bytes int64) error {
	const cluster = 64 << 10
	layout, err := pattern.NewLayout(size, area)
	if err != nil {
		if bytes == 0 {
			return nil // too small for the writer, and nothing to fill
		}
		return err
	}
	rng := rand.NewChaCha8([32]byte{byte(size >> 20), byte(size >> 28)})
	p := make([]byte, cluster)
	stride := max(size/max(bytes, 1)/2, 1) * cluster
	for off := int64(0); bytes > 0; off = next(off, stride, size) {
		for layout.Contains(off) {
			off += cluster
		}
		if off+cluster > size {
			return fmt.Errorf("no room for %d bytes more", bytes)
		}
		_, _ = rng.Read(p)
		if _, err := w.WriteAt(p, off); err != nil {
			return err
		}
		bytes -= cluster
	}
	return nil
}

// next is the place to fill after off.
func next(off, stride, size int64) int64 {
	if off+stride < size {
		return off + stride
	}
	return size
}

// RawCopy writes a disk's content, backing files included, to a raw file. The image may be in use; the caller sees
// to it that nobody writes.
func (l *Lab) RawCopy(ctx context.Context, image, to string) error {
	_, err := run(ctx, "qemu-img", "convert", "-U", "-O", "raw", image, to)
	return err
}

// HashImage returns the SHA-256 of a disk's content as the guest sees it, under the condition of RawCopy.
func (l *Lab) HashImage(ctx context.Context, image string) (string, error) {
	tmp, err := os.CreateTemp(l.dir, "hash-")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := l.RawCopy(ctx, image, tmp.Name()); err != nil {
		return "", err
	}
	h := sha256.New()
	f, err := os.Open(tmp.Name())
	if err != nil {
		return "", err
	}
	defer f.Close()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Hashes pauses the VM and returns the SHA-256 of each of its disks by target.
func (v *VM) Hashes(ctx context.Context) (map[string]string, error) {
	out := map[string]string{}
	err := v.Paused(ctx, func() error {
		disks, err := v.Disks(ctx)
		if err != nil {
			return err
		}
		for target, path := range disks {
			if out[target], err = v.lab.HashImage(ctx, path); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// NeedsRecovery says whether the ext4 file system in a raw image was not clean when it was frozen.
func NeedsRecovery(r io.ReaderAt) (bool, error) {
	p := make([]byte, 1024)
	if _, err := r.ReadAt(p, 1024); err != nil {
		return false, err
	}
	if p[0x38] != 0x53 || p[0x39] != 0xef {
		return false, fmt.Errorf("no ext4 file system")
	}
	return p[0x60]&4 != 0, nil
}

// Content returns what a disk of the VM holds now; a running VM is paused meanwhile.
func (v *VM) Content(ctx context.Context, target string) ([]byte, error) {
	disks, err := v.Disks(ctx)
	if err != nil {
		return nil, err
	}
	if disks[target] == "" {
		return nil, fmt.Errorf("VM %s has no disk %s", v.Name, target)
	}
	tmp, err := os.CreateTemp(v.lab.dir, "content-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	read := func() error { return v.lab.RawCopy(ctx, disks[target], tmp.Name()) }
	state, err := v.State(ctx)
	if err != nil {
		return nil, err
	}
	if state == "running" {
		err = v.Paused(ctx, read)
	} else {
		err = read()
	}
	if err != nil {
		return nil, err
	}
	return os.ReadFile(tmp.Name())
}
