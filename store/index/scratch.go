package index

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/cairn-backup/cairn/store/seal"
)

// scratchMark stands in the names of scratch indexes.
const scratchMark = ".reader-"

// OpenScratch opens an empty index of its own beside the one in dir, for who may not use that one. It is on disk, so
// that memory stays bounded, and goes with Close. What crashed processes left is removed.
func OpenScratch(dir string, repository seal.ID, log *slog.Logger) (*Index, error) {
	dir = filepath.Clean(dir)
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("make index: %w", err)
	}
	removeStale(dir, log)
	own, err := os.MkdirTemp(filepath.Dir(dir), filepath.Base(dir)+scratchMark)
	if err != nil {
		return nil, fmt.Errorf("make index: %w", err)
	}
	x, err := open(own, repository, log)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(own))
	}
	x.scratch = true
	return x, nil
}

// removeStale removes scratch indexes nobody holds. A young one may be about to be locked.
func removeStale(dir string, log *slog.Logger) {
	old, _ := filepath.Glob(globQuote(dir+scratchMark) + "*") // a pattern that is well-formed
	for _, name := range old {
		info, err := os.Stat(name)
		if err != nil || time.Since(info.ModTime()) < time.Hour {
			continue
		}
		lock, err := pebble.LockDirectory(name, vfs.Default)
		if err != nil {
			continue
		}
		if err := errors.Join(os.RemoveAll(name), lock.Close()); err != nil {
			log.Warn("stale index is not removed", "dir", name, "err", err)
		}
	}
}

// globQuote makes a path match only itself.
func globQuote(path string) string {
	var out []byte
	for i := range len(path) {
		switch path[i] {
		case '*', '?', '[', '\\':
			out = append(out, '\\')
		}
		out = append(out, path[i])
	}
	return string(out)
}
