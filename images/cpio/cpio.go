// Package cpio writes the "newc" archives that Linux unpacks as its first file system.
//
// It does not read them. Its invariant: the same calls give the same bytes.
package cpio

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"time"
)

const (
	modeFile = 0o100000
	modeDir  = 0o040000
	modeLink = 0o120000
)

// Writer writes one archive. The first error sticks and comes from Close.
type Writer struct {
	w     *bufio.Writer
	mtime uint32
	dirs  map[string]bool
	off   int64
	ino   int
	err   error
}

// New begins an archive in which everything belongs to root and is of one time.
func New(w io.Writer, mtime time.Time) *Writer {
	return &Writer{w: bufio.NewWriterSize(w, 1<<20), mtime: uint32(mtime.Unix()), dirs: map[string]bool{".": true}}
}

// Dir adds a directory and those above it; one that is there already is left alone. Names have no slash before them.
func (c *Writer) Dir(name string) {
	if c.dirs[name] {
		return
	}
	c.Dir(path.Dir(name))
	c.dirs[name] = true
	c.add(name, modeDir|0o755, nil)
}

// File adds a file, and the directories above it.
func (c *Writer) File(name string, perm uint32, data []byte) {
	c.Dir(path.Dir(name))
	c.add(name, modeFile|perm, data)
}

// FileFrom adds a file of the host, links resolved.
func (c *Writer) FileFrom(name, from string, perm uint32) {
	data, err := os.ReadFile(from)
	if err != nil {
		c.fail(err)
		return
	}
	c.File(name, perm, data)
}

// Link adds a symbolic link.
func (c *Writer) Link(name, target string) {
	c.Dir(path.Dir(name))
	c.add(name, modeLink|0o777, []byte(target))
}

func (c *Writer) add(name string, mode uint32, data []byte) {
	c.ino++
	links := 1
	if mode&modeDir != 0 && mode&modeFile == 0 {
		links = 2
	}
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.ino, mode, 0, 0, links, c.mtime, len(data), 0, 0, 0, 0, len(name)+1, 0, name))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *Writer) write(p []byte) {
	n, err := c.w.Write(p)
	c.off += int64(n)
	c.fail(err)
}

func (c *Writer) pad() { c.write(make([]byte, (4-c.off%4)%4)) }

func (c *Writer) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

// Close writes the archive's end. It does not close what is below.
func (c *Writer) Close() error {
	c.ino, c.mtime = -1, 0
	c.add("TRAILER!!!", 0, nil)
	c.fail(c.w.Flush())
	return c.err
}
