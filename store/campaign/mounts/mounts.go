// Package mounts makes and mounts small file systems for tests, and takes them away again.
//
// It touches nothing that it has not made: its directories carry its name and the process that made them. Its
// invariant: what a test mounted is gone when it ends; what a killed test run left is removed by the next one.
package mounts

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const prefix = "cairn-campaign-"

// Need skips the test if this machine has no loop devices or FUSE, or fails it where they have to be (CAIRN_LAB=1).
func Need(t *testing.T) {
	t.Helper()
	why := missing()
	if why == "" {
		sweep(t)
		return
	}
	if os.Getenv("CAIRN_LAB") == "1" {
		t.Fatal(why)
	}
	t.Skip(why + " (CAIRN_LAB=1 makes this a failure)")
}

func missing() string {
	if os.Geteuid() != 0 {
		return "mounting needs root"
	}
	for _, name := range []string{"/dev/loop-control", "/dev/fuse"} {
		if _, err := os.Stat(name); err != nil {
			return name + " is not there"
		}
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return "mkfs.ext4 is not installed"
	}
	return ""
}

// Dir returns a new directory for images and mount points, removed when the test ends, after what is mounted in it.
func Dir(t *testing.T) string {
	t.Helper()
	parent := "/dev/shm"
	if _, err := os.Stat(parent); err != nil {
		parent = os.TempDir()
	}
	dir, err := os.MkdirTemp(parent, fmt.Sprintf("%s%d-", prefix, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := clear(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Ext4 makes an ext4 file system in a new file.
func Ext4(name string, bytes int64, options ...string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(bytes), f.Close()); err != nil {
		return err
	}
	// Lazy initialisation would go on writing in the background.
	args := append([]string{"-q", "-F", "-m0", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard"}, options...)
	return command("mkfs.ext4", append(args, name)...)
}

// Loop mounts an image file.
func Loop(image, at, options string) error {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	return command("mount", "-t", "ext4", "-o", strings.TrimSuffix("loop,"+options, ","), image, at)
}

// Tmpfs mounts a file system in memory.
func Tmpfs(at string, bytes int64, options string) error {
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	return command("mount", "-t", "tmpfs", "-o", strings.TrimSuffix(fmt.Sprintf("size=%d,%s", bytes, options), ","), "tmpfs", at)
}

// Unmount takes a mount away; the loop device goes with it. A file that this process still has open there is an
// error. A process that is just being started has copies of our descriptors until its exec: that is waited for.
func Unmount(at string) error {
	if err := command("umount", at); err == nil {
		return nil
	}
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		return err
	}
	for _, fd := range open {
		if name, err := os.Readlink(fd); err == nil && strings.HasPrefix(name, at+"/") {
			return errors.Join(fmt.Errorf("%s is still open", name), syscall.Unmount(at, syscall.MNT_DETACH))
		}
	}
	return syscall.Unmount(at, syscall.MNT_DETACH)
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// clear unmounts everything below dir, the last mounted first, and removes it.
func clear(dir string) error {
	mounted, err := below(dir)
	if err != nil {
		return err
	}
	for _, at := range slices.Backward(mounted) {
		if err := syscall.Unmount(at, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", at, err)
		}
	}
	return errors.Join(detach(dir), os.RemoveAll(dir))
}

func below(dir string) (out []string, err error) {
	p, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(p)) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir) {
			out = append(out, f[1])
		}
	}
	return out, nil
}

// detach frees loop devices that still have an image below dir: of a mount that failed half-way.
func detach(dir string) error {
	backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range backing {
		errs = append(errs, release(name, dir))
	}
	return errors.Join(errs...)
}

// release frees the loop device with this backing_file if its image is below dir. A mount of which another process had a copy may end
// meanwhile, and the device with it, which is then anybody's: only what is open does not change hands.
func release(backing, dir string) error {
	ours := func() bool {
		image, err := os.ReadFile(backing)
		return err == nil && strings.HasPrefix(string(image), dir+"/")
	}
	if !ours() {
		return nil
	}
	device, err := os.Open("/dev/" + strings.Split(backing, "/")[3])
	if err != nil {
		return err
	}
	defer device.Close()
	if !ours() {
		return nil
	}
	if err := unix.IoctlSetInt(int(device.Fd()), unix.LOOP_CLR_FD, 0); err != nil && !errors.Is(err, unix.ENXIO) {
		return fmt.Errorf("free %s: %w", device.Name(), err)
	}
	return nil
}

// sweep removes what test processes left that are no more.
func sweep(t *testing.T) {
	for _, parent := range []string{"/dev/shm", os.TempDir()} {
		left, err := filepath.Glob(filepath.Join(parent, prefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range left {
			owner, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix), "-")
			pid, err := strconv.Atoi(owner)
			if err != nil || syscall.Kill(pid, 0) == nil {
				continue
			}
			t.Logf("removing %s, left by process %d", dir, pid)
			if err := clear(dir); err != nil {
				t.Error(err)
			}
		}
	}
}
