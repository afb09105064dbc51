package measure

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/lab/bench/engines"
	"github.com/cairn-backup/cairn/lab/bench/images"
)

// shelf is an engine that keeps copies. spoil, if not nil, is done to what it restores.
type shelf struct {
	dir   string
	count int
	spoil func(path string) error
}

func (s *shelf) Init(context.Context) error { return os.MkdirAll(s.dir, 0o755) }

func (s *shelf) Backup(ctx context.Context, _, src, _ string) (string, engines.Usage, error) {
	s.count++
	point := strconv.Itoa(s.count)
	return point, engines.Usage{}, images.Copy(ctx, filepath.Join(src, "disk.img"), filepath.Join(s.dir, point))
}

func (s *shelf) Restore(ctx context.Context, point, into string) (string, engines.Usage, error) {
	path := filepath.Join(into, "disk.img")
	err := images.Copy(ctx, filepath.Join(s.dir, point), path)
	if err == nil && s.spoil != nil {
		err = s.spoil(path)
	}
	return path, engines.Usage{}, err
}

func (s *shelf) Verify(context.Context) (engines.Usage, error) { return engines.Usage{}, nil }
func (s *shelf) Prune(context.Context, []string, int) (engines.Usage, error) {
	return engines.Usage{}, nil
}
func (s *shelf) Bytes() (n int64, err error) {
	copies, err := os.ReadDir(s.dir)
	for _, c := range copies {
		info, statErr := c.Info()
		if err = errors.Join(err, statErr); err == nil {
			n += info.Size()
		}
	}
	return n, err
}

// TestWrongRestoreHasNoRow plants a restore that differs in one bit.
func TestWrongRestoreHasNoRow(t *testing.T) {
	flip := func(path string) error {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		b := make([]byte, 1)
		_, err = f.ReadAt(b, 12345)
		b[0] ^= 1
		_, writeErr := f.WriteAt(b, 12345)
		return errors.Join(err, writeErr, f.Close())
	}
	for _, tt := range []struct {
		name  string
		spoil func(string) error
		rows  int
		err   string
	}{
		{"right", nil, 1, ""},
		{"one bit", flip, 0, "not what was backed up"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			image := filepath.Join(dir, "image")
			if err := os.WriteFile(image, bytes.Repeat([]byte("image "), 50000), 0o644); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			x := &round{Run: &Run{Out: &out, Say: func(string) {}}, dir: dir}
			c := &contestant{name: "shelf", home: filepath.Join(dir, "home"), points: map[string][]string{}}
			c.Engine = &shelf{dir: filepath.Join(dir, "shelf"), spoil: tt.spoil}
			if err := c.Init(t.Context()); err != nil {
				t.Fatal(err)
			}
			x.field = []*contestant{c}
			if _, err := x.backup(t.Context(), c, "m", image, ""); err != nil {
				t.Fatal(err)
			}
			err := x.each(t.Context(), RestoreOld, "", func(c *contestant) (engines.Usage, error) {
				return x.restore(t.Context(), c, c.points["m"][0], image)
			})
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q in it", err, tt.err)
			}
			if n := strings.Count(out.String(), "\n"); n != tt.rows {
				t.Errorf("%d rows, want %d: %s", n, tt.rows, out.String())
			}
		})
	}
}

// TestKindsAddUp lets two machines of different kinds live for two days.
func TestKindsAddUp(t *testing.T) {
	dir := t.TempDir()
	set := filepath.Join(dir, "set")
	var out bytes.Buffer
	x := &round{Run: &Run{Out: &out, Images: set, Say: func(string) {}}, dir: dir, number: 1}
	c := &contestant{name: "shelf", home: filepath.Join(dir, "home"), points: map[string][]string{}}
	c.Engine = &shelf{dir: filepath.Join(dir, "shelf")}
	if err := c.Init(t.Context()); err != nil {
		t.Fatal(err)
	}
	x.field = []*contestant{c}
	var machines []images.Machine
	for i, k := range images.Kinds {
		m := images.Machine{Name: string(k), Kind: k, Days: 3 - i}
		machines = append(machines, m)
		if err := os.MkdirAll(filepath.Join(set, m.Name), 0o755); err != nil {
			t.Fatal(err)
		}
		content := bytes.Repeat([]byte{1}, (i+1)<<20)
		if err := os.WriteFile(x.live(m.Name), content, 0o644); err != nil {
			t.Fatal(err)
		}
		for day := 2; day <= m.Days; day++ {
			changes := images.Changes{SizeBytes: int64(len(content)), Grain: images.GrainBytes, Changed: []images.Extent{{Offset: 0, Length: images.GrainBytes}}}
			err := errors.Join(changes.Save(images.Record(set, m.Name, day)), os.WriteFile(images.Delta(set, m.Name, day), content[:images.GrainBytes], 0o644))
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(x.days(t.Context(), NextDay, machines, 2, 2), x.days(t.Context(), LaterDays, machines, 3, 3)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "rows")
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	rows, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, r := range rows {
		got[r.Step] = r.Added >> 20
	}
	want := map[string]int64{NextDay: 3, Of(NextDay, images.Quiet): 1, Of(NextDay, images.Scattered): 2, LaterDays: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("MiB added (-want +got):\n%s", diff)
	}
}
