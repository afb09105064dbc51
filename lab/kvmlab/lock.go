package kvmlab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// lockFile locks a file against other processes and waits for it while ctx lasts.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	err = poll(ctx, 50*time.Millisecond, "lock "+path, func() (bool, error) {
		unlock, err = tryLock(path, syscall.LOCK_EX)
		return err == nil, err
	})
	return unlock, err
}

// tryLock locks a file shared or exclusively, at once or not at all. The lock ends with the process.
func tryLock(path string, how int) (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), how|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}
