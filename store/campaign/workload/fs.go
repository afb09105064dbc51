package workload

import (
	"os"
	"sync/atomic"
	"syscall"

	"github.com/cairn-backup/cairn/store/blob/file"
)

// FS is the operating system's file system with faults of the campaigns' own.
type FS struct {
	file.OS
	LieDirs, LieFiles bool         // say that a sync was done
	KillAt            int64        // the operation at which the process kills itself; 0: none
	Ops               atomic.Int64 // how many that change something there were
}

// op counts an operation, and ends the process at the one that was chosen; half is what is done before it.
func (f *FS) op(half func()) {
	if n := f.Ops.Add(1); n != f.KillAt {
		return
	}
	if half != nil {
		half()
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// Create implements file.FS.
func (f *FS) Create(name string) (file.File, error) {
	f.op(nil)
	inner, err := f.OS.Create(name)
	if err != nil {
		return nil, err
	}
	return &faulty{File: inner, fs: f}, nil
}

// Link implements file.FS.
func (f *FS) Link(old, name string) error { f.op(nil); return f.OS.Link(old, name) }

// Rename implements file.FS.
func (f *FS) Rename(old, name string) error { f.op(nil); return f.OS.Rename(old, name) }

// Remove implements file.FS.
func (f *FS) Remove(name string) error { f.op(nil); return f.OS.Remove(name) }

// Mkdir implements file.FS.
func (f *FS) Mkdir(name string) error { f.op(nil); return f.OS.Mkdir(name) }

// SyncDir implements file.FS.
func (f *FS) SyncDir(name string) error {
	f.op(nil)
	if f.LieDirs {
		return nil
	}
	return f.OS.SyncDir(name)
}

type faulty struct {
	file.File
	fs *FS
}

func (f *faulty) Write(p []byte) (int, error) {
	f.fs.op(func() { _, _ = f.File.Write(p[:len(p)/2]) })
	return f.File.Write(p)
}

func (f *faulty) Sync() error {
	f.fs.op(nil)
	if f.fs.LieFiles {
		return nil
	}
	return f.File.Sync()
}
