package disk

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// WriteExt4 writes an ext4 file system with the content of a directory ("" for none). The order of a directory's files is
// that of their names, and their times are epoch but for the modification, which is the file's.
func WriteExt4(ctx context.Context, name, label string, id GUID, mib int, from string, epoch time.Time) error {
	if err := makeFile(name, int64(mib)<<20); err != nil {
		return err
	}
	uuid := id.String()
	args := []string{"-q", "-t", "ext4", "-L", label, "-U", uuid, "-m", "0",
		"-E", "hash_seed=" + uuid + ",lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard"}
	if from != "" {
		args = append(args, "-d", from)
	}
	t := tools{epoch: epoch}
	if err := t.run(ctx, "mke2fs", append(args, name)...); err != nil || from == "" {
		return err
	}
	return t.settleInodes(ctx, name)
}

// settleInodes sets what mke2fs took over of files that were made just now: when they were read, and when their inodes
// were changed, which no one can set in the directory.
func (t tools) settleInodes(ctx context.Context, name string) error {
	last, err := usedInodes(ctx, name)
	if err != nil {
		return err
	}
	var script strings.Builder
	const root, first = 2, 11
	for n := root; n <= last; n++ {
		if n > root && n < first {
			continue // the file system's own
		}
		fmt.Fprintf(&script, "sif <%d> ctime @%d\nsif <%d> atime @%d\n", n, t.epoch.Unix(), n, t.epoch.Unix())
	}
	file := name + ".script"
	if err := os.WriteFile(file, []byte(script.String()), 0o600); err != nil {
		return err
	}
	defer os.Remove(file)
	return t.run(ctx, "debugfs", "-w", "-f", file, name)
}

// usedInodes counts the inodes in use of a file system that was filled once and never emptied: they have the first numbers.
func usedInodes(ctx context.Context, name string) (int, error) {
	out, err := command(ctx, []string{"LC_ALL=C"}, "dumpe2fs", "-h", name).Output()
	if err != nil {
		return 0, fmt.Errorf("dumpe2fs %s: %w", name, err)
	}
	values := map[string]int{}
	for line := range strings.Lines(string(out)) {
		key, value, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
			values[key] = n
		}
	}
	if values["Inode count"] <= values["Free inodes"] {
		return 0, fmt.Errorf("dumpe2fs says nothing usable of %s: %s", name, out)
	}
	return values["Inode count"] - values["Free inodes"], nil
}
