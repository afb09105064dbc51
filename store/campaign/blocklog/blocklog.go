// Package blocklog is a disk that remembers every write: a single-file FUSE file system whose file is put under a
// loop device, and which can be asked what a power cut at any moment would have left.
//
// It is for tests. Its invariant: what was written before a flush is in every image cut after it; of what was written
// since, any part may be missing, down to single sectors. The two sectors of ext4's superblock only go together: ext4 takes for granted
// that they do, and does not mount what has one of them.
package blocklog

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

const (
	sector     = 512
	superblock = 2 * sector // where ext4's lies, and how long it is
)

// entry is a write, a flush (no data) or an acknowledgement.
type entry struct {
	off  int64
	data []byte
	ack  string
}

// Log is the disk.
type Log struct {
	mu      sync.Mutex
	base    []byte
	now     []byte
	entries []entry
	ended   bool // what is written now is not recorded any more
}

// New returns a disk with this content.
func New(content []byte) *Log {
	return &Log{base: content, now: slices.Clone(content)}
}

// Serve shows the disk as DIR/disk, and DIR/acks: what is written to it is recorded among the writes of the disk, until stop. Whoever has
// copied our mounts meanwhile (a container that another test starts) may keep the disk for longer; it is served until they are gone.
func (l *Log) Serve(dir string) (stop func() error, err error) {
	server, err := fs.Mount(dir, &root{log: l}, &fs.Options{MountOptions: fuse.MountOptions{
		DirectMountStrict: true, FsName: "cairn-blocklog", Name: "blocklog", MaxWrite: 1 << 20,
	}})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", dir, err)
	}
	return func() error {
		l.mu.Lock()
		l.ended = true
		l.mu.Unlock()
		if err := server.Unmount(); !errors.Is(err, syscall.EBUSY) {
			return err
		}
		return syscall.Unmount(dir, syscall.MNT_DETACH)
	}, nil
}

// record remembers an entry.
func (l *Log) record(e entry) {
	if !l.ended {
		l.entries = append(l.entries, e)
	}
}

// Disk and Acks name the files below dir.
func Disk(dir string) string { return filepath.Join(dir, "disk") }

// Acks is the file for acknowledgements.
func Acks(dir string) string { return filepath.Join(dir, "acks") }

// Len returns how many entries were recorded.
func (l *Log) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.entries)
}

// Stats counts what was recorded.
func (l *Log) Stats() (writes, flushes, acks int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		switch {
		case e.ack != "":
			acks++
		case e.data == nil:
			flushes++
		default:
			writes++
		}
	}
	return writes, flushes, acks
}

// AckedAt returns the positions right after each acknowledgement.
func (l *Log) AckedAt() (out []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, e := range l.entries {
		if e.ack != "" {
			out = append(out, i+1)
		}
	}
	return out
}

// Dirty returns the positions right before each flush that has something to flush.
func (l *Log) Dirty() (out []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := false
	for i, e := range l.entries {
		switch {
		case e.data != nil:
			waiting = true
		case e.ack == "":
			if waiting {
				out = append(out, i)
			}
			waiting = false
		}
	}
	return out
}

// Loss is what happens to writes that were not flushed.
type Loss uint8

// The losses.
const (
	Everything Loss = iota // none reached the disk
	Nothing                // all did
	Some                   // a random subset, and of each any sectors
)

// Cut is what a power cut leaves.
type Cut struct {
	Image   []byte
	Acks    string // everything acknowledged before it
	Lost    int    // writes of which at least a sector is missing
	Pending int    // writes that were not flushed
}

// Replay goes through a recording once, from its beginning.
type Replay struct {
	entries []entry
	at      int
	durable []byte
	pending []entry
	acks    strings.Builder
}

// Replay starts at the beginning.
func (l *Log) Replay() *Replay {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Replay{entries: slices.Clone(l.entries), durable: slices.Clone(l.base)}
}

// Cut goes on to a position, which must not lie behind, and cuts the power there.
func (r *Replay) Cut(at int, loss Loss, rnd *rand.Rand) Cut {
	for ; r.at < at; r.at++ {
		e := r.entries[r.at]
		switch {
		case e.ack != "":
			r.acks.WriteString(e.ack)
		case e.data == nil:
			for _, w := range r.pending {
				copy(r.durable[w.off:], w.data)
			}
			r.pending = r.pending[:0]
		default:
			r.pending = append(r.pending, e)
		}
	}
	c := Cut{Image: slices.Clone(r.durable), Acks: r.acks.String(), Pending: len(r.pending)}
	for _, w := range r.pending {
		if !w.reach(c.Image, loss, rnd) {
			c.Lost++
		}
	}
	return c
}

// reach applies what survives of a write and reports whether that is all of it.
func (e entry) reach(image []byte, loss Loss, rnd *rand.Rand) bool {
	torn := false
	switch {
	case loss == Everything:
		return false
	case loss == Some && rnd.IntN(2) == 0:
		if rnd.IntN(3) > 0 {
			return false
		}
		torn = true
	}
	reached := true
	for at := 0; at < len(e.data); at += sector {
		if torn && e.off+int64(at) != superblock+sector {
			reached = rnd.IntN(2) == 0
		}
		if reached {
			copy(image[e.off+int64(at):], e.data[at:min(at+sector, len(e.data))])
		}
	}
	return !torn
}

// root is the directory of the file system.
type root struct {
	fs.Inode
	log *Log
}

// OnAdd implements fs.NodeOnAdder.
func (r *root) OnAdd(ctx context.Context) {
	for name, node := range map[string]fs.InodeEmbedder{"disk": &disk{log: r.log}, "acks": &acks{log: r.log}} {
		r.AddChild(name, r.NewPersistentInode(ctx, node, fs.StableAttr{Mode: fuse.S_IFREG}), true)
	}
}

type disk struct {
	fs.Inode
	log *Log
}

// Getattr implements fs.NodeGetattrer.
func (d *disk) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size = fuse.S_IFREG|0o600, uint64(len(d.log.base))
	return 0
}

// Open implements fs.NodeOpener. Direct I/O: the kernel keeps no pages of its own.
func (d *disk) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Read implements fs.NodeReader.
func (d *disk) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	n := 0
	if off < int64(len(d.log.now)) {
		n = copy(dest, d.log.now[off:])
	}
	return fuse.ReadResultData(dest[:n]), 0
}

// Write implements fs.NodeWriter.
func (d *disk) Write(_ context.Context, _ fs.FileHandle, p []byte, off int64) (uint32, syscall.Errno) {
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	if off+int64(len(p)) > int64(len(d.log.now)) {
		return 0, syscall.ENOSPC
	}
	copy(d.log.now[off:], p)
	d.log.record(entry{off: off, data: slices.Clone(p)})
	return uint32(len(p)), 0
}

// Fsync implements fs.NodeFsyncer.
func (d *disk) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	d.log.record(entry{})
	return 0
}

type acks struct {
	fs.Inode
	log *Log
}

// Getattr implements fs.NodeGetattrer.
func (a *acks) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = fuse.S_IFREG | 0o600
	return 0
}

// Setattr implements fs.NodeSetattrer.
func (a *acks) Setattr(context.Context, fs.FileHandle, *fuse.SetAttrIn, *fuse.AttrOut) syscall.Errno {
	return 0
}

// Open implements fs.NodeOpener.
func (a *acks) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

// Write implements fs.NodeWriter.
func (a *acks) Write(_ context.Context, _ fs.FileHandle, p []byte, _ int64) (uint32, syscall.Errno) {
	a.log.mu.Lock()
	defer a.log.mu.Unlock()
	a.log.record(entry{ack: string(p)})
	return uint32(len(p)), 0
}
