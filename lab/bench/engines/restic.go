package engines

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// restic works as it does by default; --force makes it read all of an image each time, as it has to when the file's
// time has changed.
type restic struct {
	program, repo string
	env           []string
	src           map[string]string // where a point's folder was
}

func (r *restic) call(args ...string) child {
	return child{args: append([]string{r.program}, args...), env: r.env}
}

func (r *restic) Init(ctx context.Context) error {
	r.src = map[string]string{}
	_, err := all(ctx, r.call("init"))
	return err
}

func (r *restic) Backup(ctx context.Context, _, src, _ string) (string, Usage, error) {
	out, u, err := r.call("backup", "--force", "--json", src).run(ctx)
	if err != nil {
		return "", u, err
	}
	for line := range strings.Lines(string(out)) {
		var m struct {
			Type  string `json:"message_type"`
			Point string `json:"snapshot_id"`
		}
		if json.Unmarshal([]byte(line), &m) == nil && m.Type == "summary" && m.Point != "" {
			r.src[m.Point] = src
			return m.Point, u, nil
		}
	}
	return "", u, fmt.Errorf("restic names no snapshot: %.500q", out)
}

func (r *restic) Restore(ctx context.Context, point, into string) (string, Usage, error) {
	u, err := all(ctx, r.call("restore", point+":"+r.src[point], "--target", into, "--sparse"))
	return filepath.Join(into, "disk.img"), u, err
}

func (r *restic) Verify(ctx context.Context) (Usage, error) {
	return all(ctx, r.call("check", "--read-data"))
}

func (r *restic) Prune(ctx context.Context, _ []string, n int) (Usage, error) {
	return all(ctx, r.call("forget", "--keep-last", strconv.Itoa(n), "--prune"))
}

func (r *restic) Bytes() (int64, error) { return treeBytes(r.repo) }
