//go:build linux

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/internal/fault"
)

// seedLabel is the label of a NoCloud seed's file system, in either case.
const seedLabel = "cidata"

// seedReader reads user-data from the file system on a device; nil if there is none.
type seedReader func(device, fs string) ([]byte, error)

// findSeed finds the NoCloud seed on the disks of an owner, and its document: a whole device or a partition whose ISO 9660 or FAT
// file system is labelled cidata and whose user-data has our key. Other disks are not even opened, whatever is on them: their
// owners must not be able to send a mover to a manager of their own.
func (r root) findSeed(ctx context.Context, of owner, read seedReader) (found Config, document []byte, err error) {
	for _, dev := range r.blockDevices(of) {
		if err := ctx.Err(); err != nil {
			return Config{}, nil, err
		}
		fs := seedFileSystem(dev)
		if fs == "" {
			continue
		}
		p, err := read(dev, fs)
		if errors.Is(err, os.ErrPermission) {
			continue // a service that may not mount; it has its configuration from one that may
		}
		if err != nil {
			return Config{}, nil, fault.Context("read NoCloud seed", dev, err)
		}
		cfg, err := ParseDocument(p)
		switch {
		case errors.Is(err, errNotOurs):
			continue
		case err != nil:
			return Config{}, nil, fmt.Errorf("NoCloud seed %s: %w", dev, err)
		case document != nil && !bytes.Equal(document, p):
			return Config{}, nil, fault.New(fault.Conflict, "read the mover's configuration", "",
				"%s and %s are both NoCloud seeds of a mover, and differ", found.Sources[0], dev).Explain(
				"The mover cannot know which one is meant for it.", "Leave only one of them attached.")
		}
		document, found = p, cfg
		found.Sources = []string{"NoCloud seed " + filepath.Base(dev)}
	}
	if document == nil {
		return Config{}, nil, errNotOurs
	}
	return found, document, nil
}

// blockDevices returns the device files of an owner's disks and partitions, in the kernel's order.
func (r root) blockDevices(of owner) []string {
	names, _ := filepath.Glob(r.path("sys/class/block/*")) // the pattern is good
	var out []string
	for _, n := range names {
		name := filepath.Base(n)
		size, err := os.ReadFile(filepath.Join(n, "size"))
		if err == nil && strings.TrimSpace(string(size)) != "0" && r.ownerOf(name) == of {
			out = append(out, r.path("dev/"+name))
		}
	}
	return out
}

// seedFileSystem returns "iso9660" or "vfat" when a device holds one labelled cidata. What cannot be read is no seed.
func seedFileSystem(dev string) string {
	f, err := os.Open(dev)
	if err != nil {
		return ""
	}
	defer f.Close()
	p := make([]byte, 34<<10)
	n, _ := io.ReadFull(f, p)
	kind, label := volumeLabel(p[:n])
	if !strings.EqualFold(label, seedLabel) {
		return ""
	}
	return kind
}

// volumeLabel reads the label of an ISO 9660 or FAT file system from a volume's first 34 KiB.
func volumeLabel(p []byte) (kind, label string) {
	const isoAt = 32 << 10
	if len(p) >= isoAt+72 && string(p[isoAt+1:isoAt+6]) == "CD001" && p[isoAt] == 1 {
		return "iso9660", strings.TrimRight(string(p[isoAt+40:isoAt+72]), " \x00")
	}
	if len(p) < 512 || p[510] != 0x55 || p[511] != 0xaa {
		return "", ""
	}
	for _, at := range []struct{ label, magic int }{{71, 82}, {43, 54}} { // FAT32, FAT12 and FAT16
		if strings.HasPrefix(string(p[at.magic:at.magic+8]), "FAT") {
			return "vfat", strings.TrimRight(string(p[at.label:at.label+11]), " \x00")
		}
	}
	return "", ""
}

// mountSeed is the seedReader of a real machine: it mounts a seed read-only where nobody else looks, reads user-data and takes the mount away again.
func mountSeed(dev, fs string) (p []byte, err error) {
	dir, err := os.MkdirTemp("", "cairn-seed-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount(dev, dir, fs, unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return nil, fmt.Errorf("mount %s: %w", fs, err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, 0)) }()
	p, err = readBounded(filepath.Join(dir, "user-data"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // labelled cidata, but not for us
	}
	return p, err
}

// readBounded reads a file of at most maxDocument bytes.
func readBounded(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err == nil && len(p) > maxDocument {
		return nil, invalid(fmt.Errorf("%s is larger than %d bytes", name, maxDocument))
	}
	return p, err
}
