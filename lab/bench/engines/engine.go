package engines

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// Engine is a backup program with one repository. A point is what it calls the backup of one machine on one day.
type Engine interface {
	Init(ctx context.Context) error
	// Backup backs up the folder src, in which there is one file disk.img, and names the point. changes is the path
	// of the record of what changed since the point before, for engines that can use it.
	Backup(ctx context.Context, machine, src, changes string) (point string, u Usage, err error)
	// Restore writes a point's image into a folder and returns its path.
	Restore(ctx context.Context, point, into string) (path string, u Usage, err error)
	// Verify reads everything back.
	Verify(ctx context.Context) (Usage, error)
	// Prune keeps the last n points of each machine and frees what only the others needed.
	Prune(ctx context.Context, machines []string, n int) (Usage, error)
	// Bytes is how much the repository takes, without local caches.
	Bytes() (int64, error)
}

// Names lists the engines that there are.
var Names = []string{"cairn", "cairn-tracked", "cairn-high", "restic", "kopia-zstd", "kopia-s2-1m", "borg-64k"}

// Programs says where the engines' programs are.
type Programs struct{ Cairn, Restic, Kopia, Borg string }

// New returns an engine that keeps all it has below home.
func New(name, home string, p Programs) (Engine, error) {
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, err
	}
	at := func(s string) string { return filepath.Join(home, s) }
	switch name {
	case "cairn", "cairn-tracked":
		return &cairn{program: p.Cairn, home: home, tracks: name == "cairn-tracked"}, nil
	case "cairn-high":
		return &cairn{program: p.Cairn, home: home, compression: "high"}, nil
	case "restic":
		return &restic{program: p.Restic, repo: at("repo"), env: []string{
			"HOME=" + home, "RESTIC_REPOSITORY=" + at("repo"), "RESTIC_PASSWORD=bench", "RESTIC_CACHE_DIR=" + at("cache"),
			"RESTIC_PROGRESS_FPS=0.01",
		}}, nil
	case "kopia-zstd", "kopia-s2-1m":
		k := &kopia{program: p.Kopia, home: home, compression: "zstd", env: []string{
			"HOME=" + home, "KOPIA_PASSWORD=bench", "KOPIA_CONFIG_PATH=" + at("config"), "KOPIA_CACHE_DIRECTORY=" + at("cache"),
			"KOPIA_LOG_DIR=" + at("log"), "KOPIA_CHECK_FOR_UPDATES=false",
		}}
		if name == "kopia-s2-1m" {
			k.compression, k.create = "s2-default", []string{"--object-splitter=FIXED-1M"}
		}
		return k, nil
	case "borg-64k":
		return &borg{program: p.Borg, home: home, env: []string{
			"HOME=" + home, "BORG_BASE_DIR=" + home, "BORG_PASSPHRASE=bench", "BORG_REPO=" + at("repo"),
			"BORG_RELOCATED_REPO_ACCESS_IS_OK=yes", "BORG_DISPLAY_PASSPHRASE=no",
		}}, nil
	}
	return nil, fmt.Errorf("no engine %q; there are %v", name, Names)
}
