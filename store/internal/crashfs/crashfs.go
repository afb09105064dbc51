// Package crashfs is a file system in memory that records what was done to it and can be cut off after any operation.
//
// It is for tests. Its model of a disk is a harsh one: without a file's fsync its bytes may be lost, cut or zeroed;
// without the directory's fsync any subset of the changes to its entries may be lost, a rename half of them.
package crashfs

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/store/blob/file"
)

// opKind is a recorded operation.
type opKind uint8

const (
	opCreate opKind = iota // of a file: inode, entry
	opWrite
	opSync
	opLink
	opUnlink
	opMkdir
	opSyncDir
	opLost // a file's fsync failed: what it was to make durable never will be
)

type op struct {
	kind opKind
	name string
	ino  int
	data []byte
}

// FS implements file.FS.
type FS struct {
	// Lie, if set, answers whether a sync of a path is to be reported as done without being done. isDir tells
	// directories; last is the path whose entry was changed last in it, with a "-" before it if it was removed.
	Lie func(name string, isDir bool, last string) bool
	// Capacity, if not 0, is how many bytes of files fit; beyond it Write answers ENOSPC.
	Capacity int64
	// Fail, if set, may answer an error for an operation, which is then not done; but after io.ErrShortWrite half of a
	// write is, and after a failed sync of a file what was written before is lost whatever later syncs say.
	Fail func(op, name string) error

	mu      sync.Mutex
	inodes  []*inode
	entries map[string]int // -1: directory
	base    map[string]int // entries and sizes of files before the first recorded operation, all durable
	sizes   map[int]int
	log     []op
	last    map[string]string
	locked  map[string]bool
	state   uint64 // see State
}

type inode struct {
	data []byte
}

// New returns an empty file system with a root directory.
func New() *FS {
	return &FS{entries: map[string]int{"/": -1}, last: map[string]string{}, locked: map[string]bool{}}
}

// Unlock takes a lock from whoever holds it, as a network file system may.
func (f *FS) Unlock(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.locked, name)
}

// Ops returns how many operations were recorded.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.log)
}

func (f *FS) fail(op, name string) error {
	if f.Fail == nil {
		return nil
	}
	if err := f.Fail(op, name); err != nil {
		return &fs.PathError{Op: op, Path: name, Err: err}
	}
	return nil
}

func notThere(op, name string) error { return &fs.PathError{Op: op, Path: name, Err: fs.ErrNotExist} }

func (f *FS) record(o op) {
	f.log = append(f.log, o)
	switch o.kind {
	case opUnlink:
		f.last[path.Dir(o.name)] = "-" + o.name
	case opCreate, opLink, opMkdir:
		f.last[path.Dir(o.name)] = o.name
	}
}

// Create implements file.FS.
func (f *FS) Create(name string) (file.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("create", name); err != nil {
		return nil, err
	}
	if _, ok := f.entries[path.Dir(name)]; !ok {
		return nil, notThere("create", name)
	}
	if _, ok := f.entries[name]; ok {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	ino := len(f.inodes)
	f.inodes = append(f.inodes, &inode{})
	f.entries[name] = ino
	f.record(op{kind: opCreate, name: name, ino: ino})
	return &handle{f: f, ino: ino, name: name}, nil
}

// Open implements file.FS.
func (f *FS) Open(name string) (file.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("open", name); err != nil {
		return nil, err
	}
	ino, ok := f.entries[name]
	if !ok || ino < 0 {
		return nil, notThere("open", name)
	}
	return &handle{f: f, ino: ino, name: name}, nil
}

// Link implements file.FS.
func (f *FS) Link(old, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("link", name); err != nil {
		return err
	}
	ino, ok := f.entries[old]
	if !ok {
		return notThere("link", old)
	}
	if _, ok := f.entries[name]; ok {
		return &fs.PathError{Op: "link", Path: name, Err: fs.ErrExist}
	}
	f.entries[name] = ino
	f.record(op{kind: opLink, name: name, ino: ino})
	return nil
}

// Rename implements file.FS.
func (f *FS) Rename(old, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("rename", old); err != nil {
		return err
	}
	ino, ok := f.entries[old]
	if !ok {
		return notThere("rename", old)
	}
	f.entries[name] = ino
	delete(f.entries, old)
	f.record(op{kind: opLink, name: name, ino: ino})
	f.record(op{kind: opUnlink, name: old})
	return nil
}

// Remove implements file.FS.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("remove", name); err != nil {
		return err
	}
	if _, ok := f.entries[name]; !ok {
		return notThere("remove", name)
	}
	delete(f.entries, name)
	f.record(op{kind: opUnlink, name: name})
	return nil
}

// Mkdir implements file.FS.
func (f *FS) Mkdir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("mkdir", name); err != nil {
		return err
	}
	if _, ok := f.entries[name]; ok {
		return &fs.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
	}
	if _, ok := f.entries[path.Dir(name)]; !ok {
		return notThere("mkdir", name)
	}
	f.entries[name] = -1
	f.record(op{kind: opMkdir, name: name, ino: -1})
	return nil
}

// ReadDir implements file.FS.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("readdir", name); err != nil {
		return nil, err
	}
	if ino, ok := f.entries[name]; !ok || ino >= 0 {
		return nil, notThere("readdir", name)
	}
	var out []fs.DirEntry
	for p, ino := range f.entries {
		if p != name && path.Dir(p) == name {
			out = append(out, fs.FileInfoToDirEntry(f.info(p, ino)))
		}
	}
	slices.SortFunc(out, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return out, nil
}

func (f *FS) info(name string, ino int) info {
	if ino < 0 {
		return info{name: path.Base(name), dir: true}
	}
	return info{name: path.Base(name), size: int64(len(f.inodes[ino].data))}
}

// Stat implements file.FS.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("stat", name); err != nil {
		return nil, err
	}
	ino, ok := f.entries[name]
	if !ok {
		return nil, notThere("stat", name)
	}
	return f.info(name, ino), nil
}

// SyncDir implements file.FS.
func (f *FS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.fail("syncdir", name); err != nil {
		return err
	}
	if ino, ok := f.entries[name]; !ok || ino >= 0 {
		return notThere("syncdir", name)
	}
	if f.Lie != nil && f.Lie(name, true, f.last[name]) {
		return nil
	}
	f.record(op{kind: opSyncDir, name: name})
	return nil
}

// Lock implements file.FS. It ends with the FS, as a process's lock does with the process.
func (f *FS) Lock(name, _ string) (func() error, string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locked[name] {
		return nil, "test", file.ErrLocked
	}
	f.locked[name] = true
	return func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.locked, name)
		return nil
	}, "", nil
}

type handle struct {
	f    *FS
	ino  int
	name string
}

func (h *handle) Write(p []byte) (int, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if err := h.f.fail("write", h.name); err != nil {
		if errors.Is(err, io.ErrShortWrite) {
			h.append(slices.Clone(p[:len(p)/2]))
			return len(p) / 2, err
		}
		return 0, err
	}
	if h.f.Capacity > 0 && h.f.used()+int64(len(p)) > h.f.Capacity {
		return 0, &fs.PathError{Op: "write", Path: h.name, Err: syscall.ENOSPC}
	}
	data := slices.Clone(p)
	h.append(data)
	return len(p), nil
}

func (h *handle) append(data []byte) {
	i := h.f.inodes[h.ino]
	i.data = append(i.data, data...)
	h.f.record(op{kind: opWrite, name: h.name, ino: h.ino, data: data})
}

// used returns the bytes of all files that have a name.
func (f *FS) used() (n int64) {
	seen := map[int]bool{}
	for _, ino := range f.entries {
		if ino >= 0 && !seen[ino] {
			seen[ino] = true
			n += int64(len(f.inodes[ino].data))
		}
	}
	return n
}

// Used returns the bytes of all files.
func (f *FS) Used() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.used()
}

// Names returns the files under a directory.
func (f *FS) Names(dir string) (out []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, ino := range f.entries {
		if ino >= 0 && strings.HasPrefix(name, dir+"/") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if err := h.f.fail("read", h.name); err != nil {
		return 0, err
	}
	data := h.f.inodes[h.ino].data
	if off >= int64(len(data)) {
		return 0, io.EOF
	}
	n := copy(p, data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) Sync() error {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if err := h.f.fail("sync", h.name); err != nil {
		h.f.record(op{kind: opLost, name: h.name, ino: h.ino})
		return err
	}
	if h.f.Lie != nil && h.f.Lie(h.name, false, "") {
		return nil
	}
	h.f.record(op{kind: opSync, name: h.name, ino: h.ino})
	return nil
}

func (h *handle) Close() error { return nil }

type info struct {
	name string
	size int64
	dir  bool
}

func (i info) Name() string { return i.name }
func (i info) Size() int64  { return i.size }
func (i info) IsDir() bool  { return i.dir }
func (i info) Sys() any     { return nil }
func (i info) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}
func (i info) ModTime() time.Time { return time.Time{} }
