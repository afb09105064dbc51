package kvmlab

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// claim makes the lab's directory and marks it as in use, as long as this process lives. Labs of tests that died
// are removed on the way.
func (l *Lab) claim(ctx context.Context) error {
	unlock, err := lockFile(ctx, filepath.Join(runtimeDir, "labs"))
	if err != nil {
		return err
	}
	defer unlock()
	if err := sweep(ctx); err != nil {
		l.log.Warn("cannot remove what an earlier test left", "err", err)
	}
	for _, d := range []string{filepath.Dir(l.dir), l.dir, l.PoolDir()} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
	}
	for _, file := range []string{l.path("lock"), filepath.Join(runtimeDir, "users")} {
		unuse, err := tryLock(file, syscall.LOCK_SH)
		if err != nil {
			return err
		}
		l.unuse = append(l.unuse, unuse)
	}
	return nil
}

// sweep removes labs below baseDir that no process uses.
func sweep(ctx context.Context) error {
	dirs, err := filepath.Glob(filepath.Join(baseDir, "*"))
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range dirs {
		unlock, err := tryLock(filepath.Join(dir, "lock"), syscall.LOCK_EX)
		if err != nil {
			continue
		}
		errs = append(errs, remains(ctx, dir))
		unlock()
	}
	return errors.Join(errs...)
}

// remains removes a lab that somebody else made.
func remains(ctx context.Context, dir string) error {
	l, err := Reopen(ctx, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return os.RemoveAll(dir) // nothing was made yet
	}
	if err != nil {
		return err
	}
	return l.Close()
}
