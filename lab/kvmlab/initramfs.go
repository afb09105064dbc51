package kvmlab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/images/cpio"
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
	c := cpio.New(f, time.Unix(0, 0))
	for _, d := range []string{"dev", "proc", "sys", "data", "run", "tmp", "etc", "bin"} {
		c.Dir(d)
	}
	c.FileFrom("init", guest, 0o755)
	for _, m := range k.modules {
		c.FileFrom("lib/modules/"+m, filepath.Join(k.dir, m), 0o644)
	}
	c.File("lib/modules/order", 0o644, []byte(strings.Join(k.modules, "\n")+"\n"))
	if agent {
		if err := addAgent(ctx, c); err != nil {
			return err
		}
	}
	return c.Close()
}

const fsfreezeHook = `#!/bin/sh
echo "CAIRN-GUEST hook $1" >/dev/console
`

const shutdownScript = `#!/bin/sh
sync; poweroff -f
`

// addAgent adds qemu-ga and what it needs.
func addAgent(ctx context.Context, c *cpio.Writer) error {
	const bin = "/usr/sbin/qemu-ga"
	c.FileFrom("usr/sbin/qemu-ga", bin, 0o755)
	c.FileFrom("bin/busybox", "/bin/busybox", 0o755)
	for _, name := range []string{"sh", "sync", "poweroff", "cat", "ls", "echo", "sha256sum", "dd", "sleep", "mount", "umount", "dmesg"} {
		c.Link("bin/"+name, "busybox")
	}
	c.File("sbin/shutdown", 0o755, []byte(shutdownScript))
	c.File("etc/fsfreeze-hook", 0o755, []byte(fsfreezeHook))
	libs, err := run(ctx, "ldd", bin)
	if err != nil {
		return err
	}
	for word := range strings.FieldsSeq(libs) {
		if strings.HasPrefix(word, "/") {
			c.FileFrom(word[1:], word, 0o755)
		}
	}
	return nil
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
