//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/lab/kvmlab/pattern"
)

// disk is a block device of the guest.
type disk struct {
	*os.File
	name string
	size int64
}

func (d *disk) Size() int64 { return d.size }

// forget drops the device's pages from the cache, so that the next read comes from the disk.
func (d *disk) forget() {
	const blkFlsBuf = 0x1261
	_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, d.Fd(), blkFlsBuf, 0)
}

// findDisks waits a while for the expected number of disks and opens all that can be written. Disks whose serial
// begins with "unused" are left alone.
func findDisks(want int) []*disk {
	var names []string
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		a, _ := filepath.Glob("/sys/block/vd*")
		b, _ := filepath.Glob("/sys/block/sd*")
		names = append(a, b...)
		if len(names) >= want || time.Now().After(end) {
			break
		}
	}
	slices.Sort(names)
	var out []*disk
	for _, n := range names {
		if strings.HasPrefix(attr(n, "serial"), "unused") || attr(n, "ro") == "1" {
			continue
		}
		sectors, _ := strconv.ParseInt(attr(n, "size"), 10, 64)
		f, err := openDevice("/dev/" + filepath.Base(n))
		if err != nil {
			say("disk %s: %v", filepath.Base(n), err)
			continue
		}
		out = append(out, &disk{File: f, name: filepath.Base(n), size: sectors * 512})
	}
	return out
}

// openDevice waits for the device node, which appears shortly after the disk.
func openDevice(path string) (*os.File, error) {
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil || !errors.Is(err, os.ErrNotExist) || time.Now().After(end) {
			return f, err
		}
	}
}

func attr(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(b))
}

// isExt4 looks for the file system's magic number.
func isExt4(r io.ReaderAt) bool {
	p := make([]byte, 2)
	_, err := r.ReadAt(p, 1024+56)
	return err == nil && p[0] == 0x53 && p[1] == 0xef
}

// content is something that rounds are written to.
type content interface {
	Round() uint64
	WriteRound() error
}

// openFileSystem mounts a disk and continues the files on it.
func openFileSystem(d *disk) (content, func() (pattern.Report, error), pattern.Report, error) {
	dir := "/data/" + d.name
	var none pattern.Report
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, nil, none, err
	}
	if err := syscall.Mount("/dev/"+d.name, dir, "ext4", 0, ""); err != nil {
		return nil, nil, none, fmt.Errorf("mount %s: %w", d.name, err)
	}
	check := func() (pattern.Report, error) { return pattern.CheckFiles(dir) }
	rep, err := check()
	if err != nil && !errors.Is(err, pattern.ErrBlank) {
		return nil, nil, rep, err
	}
	files, err := pattern.OpenFiles(dir)
	return files, check, rep, err
}

// openBlocks continues the group of blocks on the disks, or starts one when all of them are blank. Blank disks
// beside written ones are left alone.
func openBlocks(disks []*disk, cfg config) (content, func() (pattern.Report, error), pattern.Report, error) {
	var written, blank []pattern.Device
	var none pattern.Report
	for _, d := range disks {
		switch _, err := pattern.Open(d); {
		case errors.Is(err, pattern.ErrBlank):
			blank = append(blank, d)
		default:
			written = append(written, d)
		}
	}
	check := func() (pattern.Report, error) {
		for _, d := range disks {
			d.forget()
		}
		return pattern.Check(written...)
	}
	if len(written) == 0 {
		written = blank
		w, err := pattern.Format(cfg.group, cfg.area, blank...)
		return w, check, none, err
	}
	rep, err := check()
	if err != nil {
		return nil, nil, rep, err
	}
	w, err := pattern.Open(written...)
	return w, check, rep, err
}
