package file

import (
	"io"
	"io/fs"
)

// FS is the seam between the backend and the operating system: every file operation goes through it, so that a test
// can record them and cut the power after any. Errors are those of package os.
type FS interface {
	// Create makes a new file (O_EXCL) that only its owner may read, open for writing.
	Create(name string) (File, error)
	// Open opens a file for reading.
	Open(name string) (File, error)
	// Link gives a file a second name; the name must be free.
	Link(old, new string) error
	Rename(old, new string) error
	Remove(name string) error
	Mkdir(name string) error
	ReadDir(name string) ([]fs.DirEntry, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the entries of a directory durable.
	SyncDir(name string) error
	// Lock takes an exclusive lock on a file, made if need be, without waiting, and writes note into it. A lock held by
	// somebody else is an error that matches ErrLocked; held is then that one's note.
	Lock(name, note string) (release func() error, held string, err error)
}

// File is an open file.
type File interface {
	io.Writer
	io.ReaderAt
	io.Closer
	// Sync returns after the file's content is durable.
	Sync() error
}
