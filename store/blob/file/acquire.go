package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Acquire implements blob.Store.
func (s *Store) Acquire(ctx context.Context) (func() error, error) {
	host, _ := os.Hostname()
	note := fmt.Sprintf("process %d on %s", os.Getpid(), host)
	release, held, err := s.fs.Lock(filepath.Join(s.root, lockFile), note)
	if errors.Is(err, ErrLocked) {
		if held == "" {
			held = "another process"
		}
		return nil, fault.New(fault.Conflict, "open repository", s.root, "in use by %s", held).Explain(
			"Only one process at a time may write to a repository, and "+held+" has it open.",
			"Stop that process, or work through it; reading (cairn rescue) is possible beside it.")
	}
	if err != nil {
		return nil, s.fail("lock repository", s.root, err)
	}
	if err := s.settle(ctx); err != nil {
		return nil, errors.Join(err, release())
	}
	return release, nil
}

// settle makes every entry durable that a killed process may have left visible only, before anything is built on
// it, and removes unfinished temporary files.
func (s *Store) settle(ctx context.Context) error {
	tmp := filepath.Join(s.root, tmpDir)
	entries, err := s.fs.ReadDir(tmp)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return s.fail("open repository", s.root, err)
	}
	for _, e := range entries {
		if err := s.fs.Remove(filepath.Join(tmp, e.Name())); err != nil {
			return s.fail("remove unfinished file", e.Name(), err)
		}
		fault.Point("store.file.leftover-removed")
	}
	return s.syncTree(ctx, s.root)
}

func (s *Store) syncTree(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	entries, err := s.fs.ReadDir(dir)
	if err != nil {
		return s.fail("open repository", dir, err)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := s.syncTree(ctx, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := s.fs.SyncDir(dir); err != nil {
		return s.fail("open repository", dir, err)
	}
	return nil
}
