package kvmlab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// buildGuest compiles the guest program, static and stripped.
func buildGuest(ctx context.Context, out string) error {
	src, err := sourceDir()
	if err != nil {
		return err
	}
	_, err = run(ctx, "env", "CGO_ENABLED=0", "GOOS=linux", "go", "-C", src, "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./lab/kvmlab/guest")
	return err
}

// writeInitramfs makes a guest's file system: the guest program as init and the modules; with agent also the real
// QEMU guest agent, its libraries, and a shell for its hook.
func writeInitramfs(ctx context.Context, out, guest string, k kernel, agent bool) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &cpio{w: bufio.NewWriterSize(f, 1<<20)}
	for _, d := range []string{"dev", "proc", "sys", "lib", "lib/modules", "data", "run", "tmp", "etc", "bin", "usr", "usr/sbin"} {
		c.add(d, modeDir|0o755, nil)
	}
	c.file("init", guest, 0o755)
	for _, m := range k.modules {
		c.file("lib/modules/"+m, filepath.Join(k.dir, m), 0o644)
	}
	c.add("lib/modules/order", modeFile|0o644, []byte(strings.Join(k.modules, "\n")+"\n"))
	if agent {
		if err := c.agent(ctx); err != nil {
			return err
		}
	}
	return c.close()
}

const fsfreezeHook = `#!/bin/sh
echo "CAIRN-GUEST hook $1" >/dev/console
`

const shutdownScript = `#!/bin/sh
sync; poweroff -f
`

// agent adds qemu-ga and what it needs.
func (c *cpio) agent(ctx context.Context) error {
	const bin = "/usr/sbin/qemu-ga"
	c.file("usr/sbin/qemu-ga", bin, 0o755)
	c.file("bin/busybox", "/bin/busybox", 0o755)
	for _, name := range []string{"sh", "sync", "poweroff", "cat", "ls", "echo", "sha256sum", "dd", "sleep", "mount", "umount", "dmesg"} {
		c.add("bin/"+name, modeLink|0o777, []byte("busybox"))
	}
	c.add("sbin", modeDir|0o755, nil)
	c.add("sbin/shutdown", modeFile|0o755, []byte(shutdownScript))
	c.add("etc/fsfreeze-hook", modeFile|0o755, []byte(fsfreezeHook))
	libs, err := run(ctx, "ldd", bin)
	if err != nil {
		return err
	}
	made := map[string]bool{"lib": true, "usr": true}
	for _, word := range strings.Fields(libs) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		for i, r := range word[1:] {
			if dir := word[1:][:i]; r == '/' && !made[dir] {
				made[dir] = true
				c.add(dir, modeDir|0o755, nil)
			}
		}
		c.file(word[1:], word, 0o755)
	}
	return nil
}

// cpio writes the "newc" archive that the kernel unpacks. The first error sticks.
type cpio struct {
	w   *bufio.Writer
	off int64
	ino int
	err error
}

const (
	modeFile = 0o100000
	modeDir  = 0o040000
	modeLink = 0o120000
)

// file adds a file of the host, links resolved.
func (c *cpio) file(name, from string, perm uint32) {
	data, err := os.ReadFile(from)
	if err != nil {
		c.fail(err)
		return
	}
	c.add(name, modeFile|perm, data)
}

func (c *cpio) add(name string, mode uint32, data []byte) {
	c.ino++
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.write([]byte(head + name + "\x00"))
	c.pad()
	c.write(data)
	c.pad()
}

func (c *cpio) write(p []byte) {
	n, err := c.w.Write(p)
	c.off += int64(n)
	c.fail(err)
}

func (c *cpio) pad() { c.write(make([]byte, (4-c.off%4)%4)) }

func (c *cpio) fail(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *cpio) close() error {
	c.add("TRAILER!!!", 0, nil)
	c.fail(c.w.Flush())
	return c.err
}

// copyFile copies a file and keeps its holes.
func copyFile(to, from string, perm os.FileMode) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	defer func() {
		if e := dst.Close(); err == nil {
			err = e
		}
	}()
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	var off int64
	for {
		n, err := io.ReadFull(src, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := dst.WriteAt(buf[:n], off); err != nil {
				return err
			}
		}
		off += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return dst.Truncate(off)
		}
		if err != nil {
			return err
		}
	}
}
