package engines

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
)

// cairn is `cairn-lab repo`: the product's store and mover in a process of their own for each step.
type cairn struct {
	program, home string
	tracks        bool // uses records of changes; otherwise all of an image is read each day
	compression   string
	last          map[string]bool
}

func (c *cairn) repo() string { return filepath.Join(c.home, "repo") }

func (c *cairn) call(args ...string) child {
	return child{args: append([]string{c.program, "repo", "--repo", c.repo(), "--compression", c.compression}, args...), env: []string{"HOME=" + c.home}}
}

func (c *cairn) Init(ctx context.Context) error {
	c.last = map[string]bool{}
	_, err := all(ctx, c.call("create"))
	return err
}

func (c *cairn) Backup(ctx context.Context, machine, src, changes string) (string, Usage, error) {
	args := []string{"backup", "--series", machine, filepath.Join(src, "disk.img")}
	if c.tracks && changes != "" && c.last[machine] {
		args = append(args, "--changes", changes)
	}
	out, u, err := c.call(args...).run(ctx)
	if err != nil {
		return "", u, err
	}
	var r struct {
		Backup struct {
			Point string `json:"restore_point"`
		} `json:"backup"`
	}
	if err := json.Unmarshal(out, &r); err != nil || r.Backup.Point == "" {
		return "", u, fmt.Errorf("cairn-lab names no restore point: %q, %w", out, err)
	}
	c.last[machine] = true
	return r.Backup.Point, u, nil
}

func (c *cairn) Restore(ctx context.Context, point, into string) (string, Usage, error) {
	path := filepath.Join(into, "disk.img")
	u, err := all(ctx, c.call("restore", "--point", point, path))
	return path, u, err
}

func (c *cairn) Verify(ctx context.Context) (Usage, error) { return all(ctx, c.call("verify")) }

func (c *cairn) Prune(ctx context.Context, _ []string, n int) (Usage, error) {
	return all(ctx, c.call("prune", "--keep-last", strconv.Itoa(n)))
}

func (c *cairn) Bytes() (int64, error) { return treeBytes(c.repo()) }
