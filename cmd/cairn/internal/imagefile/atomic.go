// Package imagefile writes disk images and documents into files, raw or qcow2, sparse.
//
// It does not know where images come from and opens no repository. Its one invariant: a file appears under its name
// only when it is complete and durable; until then it has another name, and it is removed when anything fails.
package imagefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cairn-backup/cairn/internal/fault"
)

const op = "write file"

// File is a file that is being written. Commit gives it its name; Close without Commit removes it.
type File struct {
	*os.File
	path  string
	force bool
	done  bool
}

// Create starts a file that will be called path. An existing file is refused at once unless force is set, and is
// replaced only by Commit; what is not a regular file is always refused.
func Create(path string, force bool) (*File, error) {
	if err := vacant(path, force); err != nil {
		return nil, err
	}
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	f, err := os.CreateTemp(dir, "."+name+".*.partial")
	if err != nil {
		return nil, fault.Wrap(fault.KindOf(err), op, path, err).Explain("The directory cannot be written to.",
			"Make the directory, or choose another one with --out.")
	}
	return &File{File: f, path: path, force: force}, nil
}

func vacant(path string, force bool) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fault.Wrap(fault.KindOf(err), op, path, err)
	case !info.Mode().IsRegular():
		return fault.New(fault.Invalid, op, path, "it is there and is not a regular file").
			Explain("Only new files are written; a device or directory is never overwritten.", "Name a new file with --out.")
	case !force:
		return fault.New(fault.Exists, op, path, "the file exists").
			Explain("Nothing was written.", "Choose another name, or overwrite it with --force.")
	}
	return nil
}

// Commit makes the content durable, gives the file its name and makes the name durable.
func (f *File) Commit() error {
	if err := errors.Join(f.Sync(), f.File.Close()); err != nil {
		return fault.Wrap(fault.KindOf(err), op, f.path, err)
	}
	if err := f.publish(); err != nil {
		return err
	}
	f.done = true
	dir, err := os.Open(filepath.Dir(f.path))
	if err != nil {
		return fault.Wrap(fault.KindOf(err), op, f.path, err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fault.Wrap(fault.KindOf(err), op, f.path, err)
	}
	return nil
}

// publish renames the file; without force through a hard link, which unlike a rename never replaces a file that
// came up meanwhile. File systems without links (FAT) get a last look and a rename.
func (f *File) publish() error {
	if !f.force {
		err := os.Link(f.Name(), f.path)
		if err == nil {
			f.done = true
			return os.Remove(f.Name())
		}
		if err := vacant(f.path, false); err != nil {
			return err
		}
	}
	if err := os.Rename(f.Name(), f.path); err != nil {
		return fault.Wrap(fault.KindOf(err), op, f.path, err)
	}
	return nil
}

// Close removes the file unless it was committed. It may follow Commit.
func (f *File) Close() error {
	if f.done {
		return nil
	}
	f.done = true
	_ = f.File.Close() // of no interest: the file goes away
	return os.Remove(f.Name())
}

// WriteBytes writes a small file whole.
func WriteBytes(path string, data []byte, force bool) error {
	f, err := Create(path, force)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return fault.Wrap(fault.KindOf(err), op, path, err)
	}
	return f.Commit()
}
