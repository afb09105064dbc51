package engines

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
)

// kopia keeps what is asked for; its own retention is put out of the way until Prune.
type kopia struct {
	program, home string
	compression   string
	create        []string // more flags of creation
	env           []string
}

func (k *kopia) repo() string { return filepath.Join(k.home, "repo") }

func (k *kopia) call(args ...string) child {
	return child{args: append([]string{k.program}, args...), env: k.env}
}

func (k *kopia) retention(n int) child {
	none := []string{"--keep-hourly=0", "--keep-daily=0", "--keep-weekly=0", "--keep-monthly=0", "--keep-annual=0"}
	return k.call(append([]string{"policy", "set", "--global", "--keep-latest=" + strconv.Itoa(n)}, none...)...)
}

func (k *kopia) Init(ctx context.Context) error {
	create := append([]string{"repository", "create", "filesystem", "--path=" + k.repo()}, k.create...)
	_, err := all(ctx, k.call(create...), k.call("policy", "set", "--global", "--compression="+k.compression), k.retention(1000))
	return err
}

func (k *kopia) Backup(ctx context.Context, _, src, _ string) (string, Usage, error) {
	out, u, err := k.call("snapshot", "create", "--force-hash=100", "--no-progress", "--json", src).run(ctx)
	if err != nil {
		return "", u, err
	}
	var m struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(out, &m); err != nil || m.ID == "" {
		return "", u, fmt.Errorf("kopia names no snapshot: %.500q, %w", out, err)
	}
	return m.ID, u, nil
}

func (k *kopia) Restore(ctx context.Context, point, into string) (string, Usage, error) {
	u, err := all(ctx, k.call("restore", "--write-sparse-files", "--no-progress", point, into))
	return filepath.Join(into, "disk.img"), u, err
}

func (k *kopia) Verify(ctx context.Context) (Usage, error) {
	return all(ctx, k.call("snapshot", "verify", "--verify-files-percent=100", "--no-progress"))
}

func (k *kopia) Prune(ctx context.Context, _ []string, n int) (Usage, error) {
	return all(ctx, k.retention(n), k.call("snapshot", "expire", "--all", "--delete"), k.call("maintenance", "run", "--full", "--safety=none"))
}

func (k *kopia) Bytes() (int64, error) { return treeBytes(k.repo()) }
