package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// epoch is when all packages were installed, as far as their files' times say.
const epoch = "1767225600"

func command(ctx context.Context, name string, args ...string) error {
	return commandWith(ctx, nil, name, args...)
}

func commandWith(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(append(os.Environ(), env...), "SOURCE_DATE_EPOCH="+epoch, "E2FSPROGS_FAKE_TIME="+epoch, "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		out = bytes.TrimSpace(out)
		return fmt.Errorf("%s: %w: %s", name, err, out[max(0, len(out)-2000):])
	}
	return nil
}

// Root returns the archive of a machine's packages, installing them once per cache, with scratch as the place to do so.
func Root(ctx context.Context, cache, scratch string, m Machine) (string, error) {
	archive := filepath.Join(cache, "roots", m.Root+".tar")
	if _, err := os.Stat(archive); err == nil {
		return archive, nil
	}
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return "", err
	}
	part := archive + ".part"
	var env []string
	if scratch != "" {
		env = []string{"TMPDIR=" + scratch}
	}
	err := commandWith(ctx, env, "mmdebstrap", "--mode=root", "--variant=minbase", "--dpkgopt=force-unsafe-io", `--aptopt=Acquire::Retries "3"`,
		"--include="+strings.Join(m.Packages, ","), "--format=tar", "bookworm", part, "deb http://deb.debian.org/debian bookworm main")
	if err != nil {
		return "", errors.Join(fmt.Errorf("install packages of %s: %w", m.Name, err), os.Remove(part))
	}
	return archive, os.Rename(part, archive)
}

// format makes an ext4 image of what an archive holds; an empty archive makes an empty one.
func format(ctx context.Context, archive, image string, m Machine) (err error) {
	tree, err := os.MkdirTemp(filepath.Dir(image), "tree-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tree)) }()
	if archive != "" {
		if err := command(ctx, "tar", "-xpf", archive, "-C", tree, "--exclude=./dev/*"); err != nil {
			return err
		}
	}
	f, err := os.Create(image)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(m.SizeBytes), f.Close()); err != nil {
		return err
	}
	// A fixed UUID and hash seed, nothing initialised later by the kernel: the same tree makes nearly the same image.
	return command(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-L", m.Name, "-U", "6361697f-6e00-4000-8000-000000000000",
		"-E", "hash_seed=6361697f-6e00-4000-8000-000000000000,lazy_itable_init=0,lazy_journal_init=0,nodiscard", "-d", tree, image)
}

// mounted runs do while an image is mounted. The calling goroutine is kept on one processor and nothing is allocated
// late, since ext4 places files by processor and by when it writes them out.
func mounted(ctx context.Context, image string, do func(dir string) error) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(image), "mnt-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := command(ctx, "mount", "-o", "loop,nodelalloc,nodiscard,relatime,commit=300", image, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, command(context.WithoutCancel(ctx), "umount", dir)) }()
	restore, err := pin()
	if err != nil {
		return err
	}
	defer restore()
	return do(dir)
}

// pin keeps this goroutine on the first processor it may use.
func pin() (restore func(), err error) {
	runtime.LockOSThread()
	var old, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &old); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	for i := range 1024 {
		if old.IsSet(i) {
			one.Set(i)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &old) // a failure leaves one thread on one processor
		runtime.UnlockOSThread()
	}, nil
}

// advance makes the changes of a day in an image; day 1 is the machine's content at first.
func advance(ctx context.Context, image string, m Machine, seed uint64, day int) error {
	err := mounted(ctx, image, func(dir string) (err error) {
		w, err := openWorld(dir, m.Name, m.Content, seed, day)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.close()) }()
		if day == 1 {
			return w.populate(ctx)
		}
		return w.live(ctx, m.Day)
	})
	if err != nil {
		return fmt.Errorf("day %d of %s: %w", day, m.Name, err)
	}
	return nil
}

// Place makes an image appear under another path: as a link, or where that is another file system, as a bind mount.
func Place(ctx context.Context, image, path string) (remove func() error, err error) {
	err = os.Link(image, path)
	if err == nil {
		return func() error { return os.Remove(path) }, nil
	}
	if !errors.Is(err, unix.EXDEV) {
		return nil, err
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return nil, err
	}
	if err := command(ctx, "mount", "--bind", "-o", "ro", image, path); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return func() error {
		err := command(context.WithoutCancel(ctx), "umount", path)
		return errors.Join(err, os.Remove(path))
	}, nil
}
