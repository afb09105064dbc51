package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/support"
	"github.com/cairn-backup/cairn/internal/version"
)

// bundled is what a support bundle is made of with or without a running manager.
type bundled struct {
	dir      string           // the data directory
	printed  string           // all settings
	catalog  *catalog.Catalog // nil: it cannot be opened
	closed   error            // why the catalog is nil
	recent   *support.Ring    // nil: the log is systemd's
	database catalog.Secret
	getenv   func(string) string
}

// How much of each list is in a bundle.
const (
	bundledRuns  = 200
	bundledAudit = 500
	bundledFiles = 2000
)

const bundleReadme = `A support bundle of Cairn.

Before it was written, everything in it was searched for the passwords, keys and tokens that the appliance knows, in clear,
escaped, in hexadecimal and in base64, and for what looks like one; "[redacted]" stands in their place. Names and addresses
of VMs, hosts, networks, files and people are in it: look through it before you give it away. What could not be gathered
stands in missing.txt.
`

// parts are those that need no running manager. unknown is why some secrets are not known: then the log, the one place in which
// anything could stand, is left out.
func (b bundled) parts(unknown error) []support.Part {
	text := func(s string) func(context.Context) (any, error) {
		return func(context.Context) (any, error) { return s, nil }
	}
	out := []support.Part{
		{Name: "README.txt", Gather: text(bundleReadme)},
		{Name: "version.json", Gather: b.version},
		{Name: "configuration.yaml", Gather: text(b.printed)},
		{Name: "host.txt", Gather: func(context.Context) (any, error) { return hostFacts() }},
		{Name: "files.txt", Gather: b.files},
		{Name: "unit.txt", Gather: unitState},
		{Name: "log.txt", Gather: func(ctx context.Context) (any, error) {
			if unknown != nil {
				return nil, fmt.Errorf("left out, since not all secrets are known: %w", unknown)
			}
			return b.log(ctx)
		}},
	}
	list := func(name string, read func(ctx context.Context, c *catalog.Catalog) (any, error)) {
		out = append(out, support.Part{Name: name, Gather: func(ctx context.Context) (any, error) {
			if b.catalog == nil {
				return nil, b.closed
			}
			return read(ctx, b.catalog)
		}})
	}
	list("appliance.json", func(ctx context.Context, c *catalog.Catalog) (any, error) { return c.Standing(ctx) })
	list("managers.json", func(ctx context.Context, c *catalog.Catalog) (any, error) { return c.Managers(ctx) })
	list("connections.json", func(ctx context.Context, c *catalog.Catalog) (any, error) { return c.AllConnections(ctx) })
	list("repositories.json", func(ctx context.Context, c *catalog.Catalog) (any, error) { return c.AllRepositories(ctx) })
	list("policies.json", func(ctx context.Context, c *catalog.Catalog) (any, error) { return c.Policies(ctx) })
	list("exclusions.json", func(ctx context.Context, c *catalog.Catalog) (any, error) { return c.Exclusions(ctx) })
	list("turns.json", func(ctx context.Context, c *catalog.Catalog) (any, error) { return c.OpenTurns(ctx) })
	list("runs.json", bundleRuns)
	list("cleanups.json", func(ctx context.Context, c *catalog.Catalog) (any, error) { return c.OpenCleanups(ctx, "") })
	list("audit.json", func(ctx context.Context, c *catalog.Catalog) (any, error) {
		entries, err := c.AuditLog(ctx, 0, bundledAudit)
		return entries, errors.Join(err, c.CheckAudit(ctx))
	})
	return out
}

func (b bundled) version(context.Context) (any, error) {
	commit, built := version.Source()
	out := map[string]any{
		"version": version.Version, "commit": commit, "built": built, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH,
		"time": time.Now().UTC(), "database": "sqlite", "pid": os.Getpid(),
	}
	if b.database != "" {
		out["database"] = "postgresql"
	}
	if b.catalog != nil {
		out["schema"] = b.catalog.Schema()
	}
	return out, nil
}

// bundleRuns are the newest runs with their tasks, and the events of the newest that did not end well.
func bundleRuns(ctx context.Context, c *catalog.Catalog) (any, error) {
	type run struct {
		catalog.Run
		Tasks  []catalog.Task  `json:"tasks"`
		Events []catalog.Event `json:"events,omitempty"`
	}
	list, err := c.Runs(ctx, catalog.RunFilter{}, catalog.Page{Limit: bundledRuns, Sort: "-created_at"})
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, r := range list.Items {
		ids = append(ids, r.ID)
	}
	tasks, err := c.TasksOfRuns(ctx, ids)
	if err != nil {
		return nil, err
	}
	var out []run
	for i, r := range list.Items {
		one := run{Run: r, Tasks: tasks[r.ID]}
		for n := range one.Tasks {
			if one.Tasks[n].Kind == catalog.KindDeploy {
				one.Tasks[n].Spec = nil // it has sealed secrets in it
			}
		}
		if i < bundledRuns/4 && r.State != catalog.Succeeded {
			if one.Events, err = c.Events(ctx, r.ID, 0, 100); err != nil {
				return out, err
			}
		}
		out = append(out, one)
	}
	return out, nil
}

// files lists the data directory, without the caches of indexes.
func (b bundled) files(ctx context.Context) (any, error) {
	var out strings.Builder
	n := 0
	err := filepath.WalkDir(b.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if n++; n > bundledFiles {
			return errors.New("there are more files")
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(b.dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%s %12d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), rel)
		if d.IsDir() && rel == "index" {
			return filepath.SkipDir
		}
		return nil
	})
	return out.String(), err
}

// disks are how full the file systems of the data directory and of the repositories are.
func (b bundled) disks(ctx context.Context) (any, error) {
	paths := []string{b.dir}
	if b.catalog != nil {
		list, err := b.catalog.AllRepositories(ctx)
		if err != nil {
			return nil, err
		}
		for _, r := range list {
			if len(r.Members) == 0 {
				paths = append(paths, r.Path)
			}
			for _, m := range r.Members {
				paths = append(paths, m.Path)
			}
		}
	}
	type disk struct {
		Bytes int64  `json:"bytes"`
		Free  int64  `json:"free_bytes"`
		Files uint64 `json:"files_free"`
		Kind  string `json:"file_system"`
		Error string `json:"error,omitempty"`
	}
	out := map[string]disk{}
	for _, p := range paths {
		var s syscall.Statfs_t
		if err := syscall.Statfs(p, &s); err != nil {
			out[p] = disk{Error: err.Error()}
			continue
		}
		out[p] = disk{Bytes: int64(s.Blocks) * s.Bsize, Free: int64(s.Bavail) * s.Bsize, Files: s.Ffree, Kind: fmt.Sprintf("%#x", s.Type)}
	}
	return out, nil
}
