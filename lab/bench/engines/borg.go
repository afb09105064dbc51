package engines

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
)

// borg works with its strongest setting for disks: fixed chunks of 64 KiB, and holes are skipped.
type borg struct {
	program, home string
	env           []string
	count         int
}

func (b *borg) repo() string { return filepath.Join(b.home, "repo") }

func (b *borg) call(dir string, args ...string) child {
	return child{dir: dir, args: append([]string{b.program}, args...), env: b.env}
}

func (b *borg) Init(ctx context.Context) error {
	_, err := all(ctx, b.call("", "init", "--encryption=repokey-blake2"))
	return err
}

func (b *borg) Backup(ctx context.Context, machine, src, _ string) (string, Usage, error) {
	b.count++
	point := fmt.Sprintf("%s-%04d", machine, b.count)
	u, err := all(ctx, b.call(src, "create", "--compression=zstd,1", "--chunker-params=fixed,65536", "--sparse", "--files-cache=disabled",
		"::"+point, "disk.img"))
	return point, u, err
}

func (b *borg) Restore(ctx context.Context, point, into string) (string, Usage, error) {
	u, err := all(ctx, b.call(into, "extract", "--sparse", "::"+point))
	return filepath.Join(into, "disk.img"), u, err
}

func (b *borg) Verify(ctx context.Context) (Usage, error) {
	return all(ctx, b.call("", "check", "--verify-data"))
}

func (b *borg) Prune(ctx context.Context, machines []string, n int) (Usage, error) {
	var list []child
	for _, m := range machines {
		list = append(list, b.call("", "prune", "--keep-last="+strconv.Itoa(n), "--glob-archives="+m+"-*"))
	}
	return all(ctx, append(list, b.call("", "compact"))...)
}

func (b *borg) Bytes() (int64, error) { return treeBytes(b.repo()) }
