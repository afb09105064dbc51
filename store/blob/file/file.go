// Package file keeps objects in a directory.
//
// It is not a general file store: objects are written once and never changed. Its invariant is the order of a
// write: content into a temporary file of the same file system, fsync, link under the final name (which never
// replaces), fsync of the directory; and no file is used again after its fsync failed.
package file

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

const (
	tmpDir   = "tmp"
	lockFile = "lock"
)

// Store is a directory of objects. It implements blob.Store.
type Store struct {
	fs   FS
	root string
	seq  atomic.Uint64
	tag  string // keeps temporary names of several processes and Stores apart

	mu      sync.Mutex
	durable map[string]bool // directories whose own entry this process has made durable
	files   readers
}

// Open opens an existing directory.
func Open(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "open directory", dir, err)
	}
	return OpenFS(OS{}, abs)
}

// Create opens a directory and makes it if it is not there.
func Create(dir string) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "create directory", dir, err)
	}
	return CreateFS(OS{}, abs)
}

// OpenFS opens an existing directory of a file system.
func OpenFS(fsys FS, dir string) (*Store, error) {
	info, err := fsys.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, "open directory", dir, err).Explain(
			"The repository's directory is not there.", "Check the path, and that the disk it lies on is mounted.")
	}
	if err != nil {
		return nil, wrap("open directory", dir, err)
	}
	if !info.IsDir() {
		return nil, fault.New(fault.Invalid, "open directory", dir, "it is not a directory")
	}
	return &Store{fs: fsys, root: dir, tag: rand.Text(), durable: map[string]bool{}, files: readers{fs: fsys}}, nil
}

// CreateFS opens a directory of a file system and makes it if it is not there.
func CreateFS(fsys FS, dir string) (*Store, error) {
	if err := mkdirAll(fsys, dir); err != nil {
		return nil, wrap("create directory", dir, err)
	}
	return OpenFS(fsys, dir)
}

// mkdirAll makes a directory and its parents, each durable in the one above it.
func mkdirAll(fsys FS, dir string) error {
	if _, err := fsys.Stat(dir); err == nil {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := mkdirAll(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return fsys.SyncDir(parent)
}

// Location implements blob.Store.
func (s *Store) Location() string { return s.root }

// Close implements blob.Store.
func (s *Store) Close() error { return s.files.close() }

// path maps an object's name to a file, and refuses names that could leave the directory.
func (s *Store) path(name string) (string, error) {
	if !fs.ValidPath(name) || name == "." || name == lockFile || strings.HasPrefix(name, tmpDir+"/") {
		return "", fault.New(fault.Invalid, "name object", name, "not a name for an object")
	}
	return filepath.Join(s.root, filepath.FromSlash(name)), nil
}

// ensureDir makes the folder of an object. A folder that is there already may have been made by a process that died
// before its fsync, so each process syncs each parent once.
func (s *Store) ensureDir(rel string) error {
	if rel == "." {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.durable[rel] {
		return nil
	}
	at := ""
	for part := range strings.SplitSeq(rel, "/") {
		parent := at
		at = path.Join(at, part)
		if s.durable[at] {
			continue
		}
		if err := s.fs.Mkdir(filepath.Join(s.root, at)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		fault.Point("store.file.folder-made")
		if err := s.fs.SyncDir(filepath.Join(s.root, parent)); err != nil {
			return err
		}
		s.durable[at] = true
	}
	return nil
}

// Create implements blob.Store.
func (s *Store) Create(ctx context.Context, name string) (blob.Writer, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	final, err := s.path(name)
	if err != nil {
		return nil, err
	}
	if err := s.ensureDir(path.Dir(name)); err != nil {
		return nil, s.fail("create object", name, err)
	}
	if err := s.ensureDir(tmpDir); err != nil {
		return nil, s.fail("create object", name, err)
	}
	tmp := filepath.Join(s.root, tmpDir, fmt.Sprintf("%s-%d", s.tag, s.seq.Add(1)))
	f, err := s.fs.Create(tmp)
	if err != nil {
		return nil, s.fail("create object", name, err)
	}
	fault.Point("store.file.created")
	return &writer{store: s, name: name, tmp: tmp, final: final, f: f}, nil
}

// ReadAt implements blob.Store.
func (s *Store) ReadAt(ctx context.Context, name string, p []byte, off int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := s.path(name)
	if err != nil {
		return err
	}
	n, err := s.files.readAt(file, p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fault.New(fault.Corrupt, "read object", name, "it ends before offset %d", off+int64(len(p)))
	case errors.Is(err, syscall.EIO):
		return fault.Wrap(fault.Corrupt, "read object", name, err).Explain(
			"The disk under the repository could not read "+file+".",
			"Look at the system's log for disk errors; restore points that need this file are damaged until it can be read.")
	}
	return s.fail("read object", name, err)
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, name string) (blob.Info, error) {
	if err := ctx.Err(); err != nil {
		return blob.Info{}, err
	}
	file, err := s.path(name)
	if err != nil {
		return blob.Info{}, err
	}
	info, err := s.fs.Stat(file)
	if err != nil {
		return blob.Info{}, s.fail("look at object", name, err)
	}
	return blob.Info{Name: name, Size: info.Size()}, nil
}

// List implements blob.Store. A folder that is not there holds nothing; anything else that fails is an error.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		s.list(ctx, strings.TrimSuffix(prefix, "/"), yield)
	}
}

func (s *Store) list(ctx context.Context, dir string, yield func(blob.Info, error) bool) bool {
	if err := ctx.Err(); err != nil {
		return yield(blob.Info{}, err) && false
	}
	entries, err := s.fs.ReadDir(filepath.Join(s.root, filepath.FromSlash(dir)))
	if errors.Is(err, fs.ErrNotExist) {
		// Only the folder may be missing, not the directory everything lies in (an unmounted disk).
		if _, rootErr := s.fs.Stat(s.root); rootErr != nil {
			return yield(blob.Info{}, s.fail("list", s.root, rootErr)) && false
		}
		return true
	}
	if err != nil {
		return yield(blob.Info{}, s.fail("list", dir, err)) && false
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		if name == tmpDir || name == lockFile {
			continue
		}
		if e.IsDir() {
			if !s.list(ctx, name, yield) {
				return false
			}
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the directory was read
		}
		if err != nil {
			return yield(blob.Info{}, s.fail("list", name, err)) && false
		}
		if !yield(blob.Info{Name: name, Size: info.Size()}, nil) {
			return false
		}
	}
	return true
}

// Rename implements blob.Store. The new name is made durable before the loss of the old one.
func (s *Store) Rename(ctx context.Context, from, to string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	src, err := s.path(from)
	if err != nil {
		return err
	}
	dst, err := s.path(to)
	if err != nil {
		return err
	}
	if err := s.ensureDir(path.Dir(to)); err != nil {
		return s.fail("rename object", from, err)
	}
	s.files.forget(src)
	s.files.forget(dst) // of a file that somebody else removed
	// Two steps, so that no crash can lose both names, and nothing is ever replaced.
	if err := s.fs.Link(src, dst); errors.Is(err, fs.ErrExist) {
		return fault.New(fault.Exists, "rename object", from, "%s is there already", to)
	} else if err != nil {
		return s.fail("rename object", from, err)
	}
	fault.Point("store.file.renamed")
	if err := s.fs.SyncDir(filepath.Dir(dst)); err != nil {
		_ = s.fs.Remove(dst) // what is still there is the old name
		return s.fail("rename object", from, err)
	}
	if err := s.fs.Remove(src); err != nil {
		return s.fail("rename object", from, err)
	}
	if err := s.fs.SyncDir(filepath.Dir(src)); err != nil {
		return s.fail("rename object", from, err)
	}
	return nil
}

// Delete implements blob.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := s.path(name)
	if err != nil {
		return err
	}
	s.files.forget(file)
	if err := s.fs.Remove(file); err != nil {
		return s.fail("delete object", name, err)
	}
	fault.Point("store.file.unlinked")
	if err := s.fs.SyncDir(filepath.Dir(file)); err != nil {
		return s.fail("delete object", name, err)
	}
	return nil
}

// fail translates an error of the file system. That something is not there says nothing about it when the whole
// directory is gone (an unmounted disk).
func (s *Store) fail(op, subject string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if _, rootErr := s.fs.Stat(s.root); errors.Is(rootErr, fs.ErrNotExist) {
			return fault.Wrap(fault.Transient, op, subject, err).Explain(
				"The repository's directory "+s.root+" is not there any more.",
				"Check that the disk it lies on is mounted; what was being done can then be done again.")
		}
	}
	return wrap(op, subject, err)
}

// wrap translates an operating-system error.
func wrap(op, subject string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fault.Wrap(fault.Transient, op, subject, err).Explain(
			"The repository directory is full. This job was stopped; restore points made before are untouched.",
			"Remove restore points that are no longer needed (prune, then collect), or give the file system more space, and run the job again.")
	case errors.Is(err, syscall.EROFS):
		return fault.Wrap(fault.Conflict, op, subject, err).Explain(
			"The repository directory is read-only. Restore points that are there can still be read.",
			"Look at the system's log for why: a file system goes read-only after disk errors. Mount it for writing, and run the job again.")
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fault.Wrap(fault.Transient, op, subject, err).Explain(
			"The program, or the whole system, has as many files open as it may. This job was stopped; restore points made before are untouched.",
			"Run the job again when less is going on; if it comes back, raise the limit of open files (LimitNOFILE of the service).")
	case errors.Is(err, syscall.EIO):
		return fault.Wrap(fault.Internal, op, subject, err).Explain(
			"The disk under the repository reported an error; what was being written has been given up.",
			"Look at the system's log for disk errors before the next backup.")
	}
	return fault.Wrap(fault.KindOf(err), op, subject, err)
}
