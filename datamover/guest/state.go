//go:build linux

package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/internal/fault"
)

// StateDir is where a mover keeps what it must know after a restart: its key and certificate.
const StateDir = "/var/lib/cairn-mover"

// StateUUID ("cairn-mover-stat" in ASCII) is the UUID of the partition table entry that the images have for the mover's state. It is the only block
// device that a mover's machine writes to by itself.
const StateUUID = "63616972-6e2d-6d6f-7665-722d73746174"

// errNoState says that the image has no partition for state.
var errNoState = errors.New("there is no partition for the mover's state")

// mountState mounts the state partition, once in the machine's life. Disks that can be others' are looked at only where the machine has
// none of its own that match; other disks of movers carry the same mark, and two that match are refused, never guessed at.
func (r root) mountState(m *modules) (device string, err error) {
	found, err := r.findState()
	if err != nil {
		return "", err
	}
	switch len(found) {
	case 0:
		return "", errNoState
	case 1:
	default:
		return "", fault.New(fault.Conflict, "find the mover's state", "", "%s all look like it", strings.Join(found, ", ")).Explain(
			"A disk of another mover is attached to this one, and it cannot tell which state is its own.",
			"Detach the other disks and start the mover's machine again.")
	}
	if err := m.load("ext4"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.MkdirAll(StateDir, 0o700); err != nil {
		return "", err
	}
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_NOATIME
	if err := unix.Mount(found[0], StateDir, "ext4", flags, "errors=remount-ro"); err != nil {
		return "", fmt.Errorf("mount the mover's state %s: %w", found[0], err)
	}
	return found[0], os.Chmod(StateDir, 0o700)
}

// findState returns the device files of all partitions with StateUUID that can only be the machine's own, or, if there is none,
// of those that may be.
func (r root) findState() ([]string, error) {
	names, err := filepath.Glob(r.path("sys/class/block/*"))
	if err != nil {
		return nil, err
	}
	found := map[owner][]string{}
	for _, n := range names {
		p, err := os.ReadFile(filepath.Join(n, "partition"))
		if err != nil {
			continue // a whole disk
		}
		of := r.ownerOf(filepath.Base(n))
		if of == foreign {
			continue
		}
		uuid, err := partitionUUID(r.path("dev/"+filepath.Base(r.dirOf(filepath.Base(n)))), strings.TrimSpace(string(p)))
		if err == nil && uuid == StateUUID {
			found[of] = append(found[of], r.path("dev/"+filepath.Base(n)))
		}
	}
	if len(found[own]) > 0 {
		return found[own], nil
	}
	return found[unknown], nil
}

// dirOf returns the place in sysfs of the disk that a device is, or is a partition of; "" if it is gone.
func (r root) dirOf(name string) string {
	dir, err := filepath.EvalSymlinks(r.path("sys/class/block/" + name))
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(dir, "partition")); err == nil {
		dir = filepath.Dir(dir)
	}
	return dir
}

// partitionUUID reads the unique GUID of a partition from a disk's GUID partition table (UEFI 2.10, 5.3).
func partitionUUID(disk, number string) (string, error) {
	var n int
	if _, err := fmt.Sscan(number, &n); err != nil || n < 1 || n > 128 {
		return "", fmt.Errorf("partition %q of %s is not looked at", number, disk)
	}
	f, err := os.Open(disk)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return gptUUID(f, n)
}

// gptUUID reads entry n (from 1) of the table in the second 512-byte block.
func gptUUID(f interface {
	ReadAt([]byte, int64) (int, error)
}, n int) (string, error) {
	const block = 512
	head := make([]byte, block)
	if _, err := f.ReadAt(head, block); err != nil {
		return "", err
	}
	entries, size := binary.LittleEndian.Uint64(head[72:]), binary.LittleEndian.Uint32(head[84:])
	if !bytes.HasPrefix(head, []byte("EFI PART")) || entries > 1<<20 || size < 128 || size > 4096 || uint32(n) > binary.LittleEndian.Uint32(head[80:]) {
		return "", errors.New("there is no partition table of this kind")
	}
	e := make([]byte, 128)
	if _, err := f.ReadAt(e, int64(entries)*block+int64(n-1)*int64(size)); err != nil {
		return "", err
	}
	return formatGUID([16]byte(e[16:32])), nil
}

// formatGUID writes a GUID as it stands on disk: the first three groups are little-endian.
func formatGUID(g [16]byte) string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g[0:]), binary.LittleEndian.Uint16(g[4:]),
		binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:16])
}
