package measure

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/lab/bench/images"
)

// settle makes the machine the same for whoever is measured next: what was written before is on the disk, and what is to
// be read is in the page cache, whoever read it last. What is compared is the engines, not this machine's disk.
func settle(paths ...string) error {
	for _, path := range paths {
		if err := syncAround(path); err != nil {
			return err
		}
		err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			return readData(path)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// syncAround waits until what was written to the file system that path is on is on the disk.
func syncAround(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd())))
}

// readData reads what is no hole.
func readData(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	data, err := images.DataExtents(f, info.Size())
	for _, e := range data {
		if _, copyErr := io.Copy(io.Discard, io.NewSectionReader(f, e.Offset, e.Length)); copyErr != nil {
			return copyErr
		}
	}
	return err
}
