package kvmlab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// claim makes the lab's directory and marks it as in use, as long as this process lives. Labs of tests that died
// are removed on the way.
func (l *Lab) claim(ctx context.Context) error {
	dead, err := l.mark(ctx)
	if err != nil {
		return err
	}
	for dir, unlock := range dead {
		if err := remains(ctx, dir); err != nil {
			l.log.Warn("cannot remove what an earlier test left", "dir", dir, "err", err)
		}
		unlock()
	}
	return nil
}

// mark makes the lab's directory, marks it as in use, and returns the directories below baseDir that no process
// uses, locked. Removing those takes long, and other labs do not wait for it.
func (l *Lab) mark(ctx context.Context) (dead map[string]func(), err error) {
	unlock, err := lockFile(ctx, filepath.Join(runtimeDir, "labs"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	for _, d := range []string{filepath.Dir(l.dir), l.dir, l.PoolDir()} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, err
		}
	}
	for _, file := range []string{l.path("lock"), filepath.Join(runtimeDir, "users")} {
		unuse, err := tryLock(file, syscall.LOCK_SH)
		if err != nil {
			return nil, err
		}
		l.unuse = append(l.unuse, unuse)
	}
	dirs, err := filepath.Glob(filepath.Join(baseDir, "*"))
	if err != nil {
		return nil, err
	}
	dead = map[string]func(){}
	for _, dir := range dirs {
		if unlock, err := tryLock(filepath.Join(dir, "lock"), syscall.LOCK_EX); err == nil {
			dead[dir] = unlock
		}
	}
	return dead, nil
}

// remains removes a lab that somebody else made. A libvirtd of its own is killed first, for it may hang; the one that
// takes its place takes over its VMs.
func remains(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := privateDaemon(filepath.Join(dir, privateDir)).Signal(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	l, err := Reopen(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(dir) // nothing was made yet
	}
	if err != nil {
		return err
	}
	return l.Close()
}
