package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var (
	testContent = Content{DatabaseMiB: 2, Metrics: 2, SQLiteRows: 500, MediaMiB: 1, Messages: 40, Sources: 60, LogMiB: 1}
	testDay     = Day{
		PageShare: 0.1, Uniform: true, WALs: 1, SQLiteRows: 100, UpgradeMiB: 1, ListsMiB: 1, MediaMiB: 1, Messages: 20, Edits: 20, LogMiB: 1, Touched: 10,
	}
)

// installed fills a folder with what looks like installed packages.
func installed(t testing.TB, dir string) {
	t.Helper()
	rng := rand.New(rand.NewPCG(7, 7))
	put := func(name string, data []byte) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for p := range 6 {
		var list strings.Builder
		for f := range 8 {
			data := make([]byte, 3000+rng.IntN(60000))
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			if f%2 == 0 {
				copy(data, "\x7fELF")
			}
			name := fmt.Sprintf("usr/lib/p%d/f%d", p, f)
			put(name, data)
			list.WriteString("/" + name + "\n")
		}
		put(fmt.Sprintf("var/lib/dpkg/info/p%d.list", p), []byte(list.String()))
	}
	put("var/lib/dpkg/status", []byte(strings.Repeat("Package: p\nPriority: optional\n\n", 200)))
}

// tree returns the hash of every file below a folder.
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		if _, err := io.Copy(h, f); err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		out[name] = fmt.Sprintf("%x", h.Sum(nil)[:8])
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDaysDependOnTheSeedOnly lets machines live in plain folders.
func TestDaysDependOnTheSeedOnly(t *testing.T) {
	life := func(seed uint64) []map[string]string {
		dir := t.TempDir()
		installed(t, dir)
		var days []map[string]string
		for day := 1; day <= 4; day++ {
			w, err := openWorld(dir, "m", testContent, seed, day)
			if err != nil {
				t.Fatal(err)
			}
			if day == 1 {
				err = w.populate(t.Context())
			} else {
				err = w.live(t.Context(), testDay)
			}
			if err = errors.Join(err, w.close()); err != nil {
				t.Fatal(err)
			}
			days = append(days, tree(t, dir))
		}
		return days
	}
	a, b, other := life(1), life(1), life(2)
	for day := range a {
		if diff := cmp.Diff(a[day], b[day]); diff != "" {
			t.Errorf("day %d of the same seed (-first +second):\n%s", day+1, diff)
		}
		if maps.Equal(a[day], other[day]) {
			t.Errorf("day %d is the same with another seed", day+1)
		}
		if day > 0 && maps.Equal(a[day-1], a[day]) {
			t.Errorf("nothing happens on day %d", day+1)
		}
	}
	for _, name := range []string{"var/lib/appdb/base/16384", "var/lib/app/app.db", metricName(1)} {
		if a[0][name] == "" || a[0][name] == a[1][name] {
			t.Errorf("%s is %q on day 1 and %q on day 2", name, a[0][name], a[1][name])
		}
	}
	if a[1]["var/lib/dpkg/status"] != a[0]["var/lib/dpkg/status"] || a[2]["var/lib/dpkg/status"] == a[1]["var/lib/dpkg/status"] {
		t.Error("packages are not upgraded on day 3, or on day 2 already")
	}
}

// TestWritesStayInside gives a machine a link to the outside.
func TestWritesStayInside(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "var"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "var/log")); err != nil {
		t.Fatal(err)
	}
	w, err := openWorld(dir, "m", testContent, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	if err := w.log(1000); err == nil {
		t.Error("a log was written through a link that leads outside")
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside there are %v, error %v", left, err)
	}
}

// needLoop skips where an image cannot be mounted, unless the lab is asked for.
func needLoop(t *testing.T) {
	t.Helper()
	if os.Getenv("CAIRN_LAB") == "1" {
		return
	}
	if _, err := os.Stat("/dev/loop-control"); os.Getuid() != 0 || err != nil {
		t.Skip("needs root and loop devices; set CAIRN_LAB=1")
	}
}

// packed makes a root file system in a cache.
func packed(t *testing.T, cache string) string {
	t.Helper()
	src := t.TempDir()
	installed(t, src)
	archive := filepath.Join(cache, "roots", "m.tar")
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(archive)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(src)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
	return archive
}

// TestGenerate makes a set and puts the images of later days together again: file systems without a fault.
func TestGenerate(t *testing.T) {
	needLoop(t)
	cache, dir := t.TempDir(), t.TempDir()
	packed(t, cache)
	m := Machine{Name: "m", Root: "m", SizeBytes: 96 << 20, Content: testContent, Day: testDay, Days: 3}
	long := m
	long.Name = "long"
	set := Set{Name: "test", Seed: 3, Machines: []Machine{m}, Long: long}
	g := Generator{Cache: cache, Dir: dir, Say: func(line string) { t.Log(line) }}
	if err := g.Generate(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(dir); err != nil || !cmp.Equal(got, set) {
		t.Errorf("set read back: %+v, %v", got, err)
	}
	for _, name := range []string{"m", "long"} {
		for day := 1; day <= 3; day++ {
			path := filepath.Join(t.TempDir(), "image")
			if err := Build(t.Context(), dir, name, day, path); err != nil {
				t.Fatal(err)
			}
			if err := command(t.Context(), "e2fsck", "-fn", path); err != nil {
				t.Error(err)
			}
			err := mounted(t.Context(), path, func(dir string) error {
				_, err := os.Stat(filepath.Join(dir, fmt.Sprintf("home/user/media/%03d", day)))
				return err
			})
			if err != nil {
				t.Errorf("day %d of %s: %v", day, name, err)
			}
		}
	}
}

// TestImages makes the same machine twice: the same files with the same content each day, in nearly the same places.
// Places and content cannot be equal to the last block: ext4 writes times, random generation numbers of inodes and
// checksums of both, and chooses some directories' groups at random.
func TestImages(t *testing.T) {
	needLoop(t)
	archive := packed(t, t.TempDir())
	m := Machine{Name: "m", SizeBytes: 96 << 20, Content: testContent, Day: testDay}
	type day struct {
		files   map[string]string
		changes Changes
	}
	life := func(seed uint64) []day {
		dir := t.TempDir()
		image, before := filepath.Join(dir, "image"), filepath.Join(dir, "before")
		if err := format(t.Context(), archive, image, m); err != nil {
			t.Fatal(err)
		}
		var out []day
		for n := 1; n <= 3; n++ {
			if err := Copy(t.Context(), image, before); err != nil {
				t.Fatal(err)
			}
			if err := advance(t.Context(), image, m, seed, n); err != nil {
				t.Fatal(err)
			}
			c, err := Compare(before, image)
			if err != nil {
				t.Fatal(err)
			}
			checkDelta(t, before, image, c)
			d := day{changes: c}
			if err := mounted(t.Context(), image, func(dir string) error { d.files = tree(t, dir); return nil }); err != nil {
				t.Fatal(err)
			}
			out = append(out, d)
		}
		return out
	}
	a, b, other := life(1), life(1), life(2)
	for n := range a {
		if diff := cmp.Diff(a[n].files, b[n].files); diff != "" {
			t.Errorf("files of day %d (-first +second):\n%s", n+1, diff)
		}
		same, different := overlap(a[n].changes, b[n].changes), overlap(a[n].changes, other[n].changes)
		t.Logf("day %d: %d KiB in %d extents changed; %.1f %% of the grains are the same with the same seed, %.1f %% with another",
			n+1, a[n].changes.ChangedBytes()>>10, len(a[n].changes.Changed), 100*same, 100*different)
		if same < 0.9 {
			t.Errorf("day %d: only %.1f %% of the changed grains are the same with the same seed", n+1, 100*same)
		}
		if maps.Equal(a[n].files, other[n].files) {
			t.Errorf("day %d has the same files with another seed", n+1)
		}
	}
}

// checkDelta makes an image of the one before it and what changed.
func checkDelta(t *testing.T, before, after string, c Changes) {
	t.Helper()
	delta, made := filepath.Join(t.TempDir(), "delta"), filepath.Join(t.TempDir(), "made")
	err := errors.Join(SaveDelta(after, delta, c), Copy(t.Context(), before, made), ApplyDelta(delta, made, c), Same(after, made))
	if err != nil {
		t.Error(err)
	}
}

// overlap is the share of changed grains that two records have in common.
func overlap(a, b Changes) float64 {
	grains := func(c Changes) map[int64]bool {
		out := map[int64]bool{}
		for _, e := range c.Changed {
			for off := e.Offset; off < e.Offset+e.Length; off += GrainBytes {
				out[off] = true
			}
		}
		return out
	}
	x, y := grains(a), grains(b)
	both := 0
	for g := range x {
		if y[g] {
			both++
		}
	}
	return float64(both) / float64(max(1, len(x)+len(y)-both))
}

func TestCompare(t *testing.T) {
	const size = 1<<20 + 8192 // the last grain is a part of one
	dir := t.TempDir()
	before, after := filepath.Join(dir, "before"), filepath.Join(dir, "after")
	for path, data := range map[string]map[int64]string{
		before: {0: "same", 200 << 10: "old", 500 << 10: "goes"},
		after:  {0: "same", 200 << 10: "new", 64<<10 + 4095: "xy", 128 << 10: "z", size - 1: "e", 500 << 10: "\x00\x00\x00\x00"},
	} {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		errs := []error{f.Truncate(size)}
		for off, s := range data {
			_, err := f.WriteAt([]byte(s), off)
			errs = append(errs, err)
		}
		if err := errors.Join(append(errs, f.Close())...); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Compare(before, after)
	if err != nil {
		t.Fatal(err)
	}
	want := Changes{SizeBytes: size, Grain: GrainBytes, Blocks: 6, Changed: []Extent{
		{Offset: 64 << 10, Length: 192 << 10}, {Offset: 448 << 10, Length: 64 << 10}, {Offset: 1 << 20, Length: 8192},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	checkDelta(t, before, after, got)
	record := filepath.Join(dir, "record")
	if err := got.Save(record); err != nil {
		t.Fatal(err)
	}
	if back, err := LoadChanges(record); err != nil || !slices.Equal(back.Changed, got.Changed) {
		t.Errorf("record read back: %+v, %v", back, err)
	}
}

// TestMetricsChangeInPlace reads every point of a metric back, on a day on which both rings begin anew.
func TestMetricsChangeInPlace(t *testing.T) {
	dir := t.TempDir()
	on := func(day int) []byte {
		w, err := openWorld(dir, "m", Content{Metrics: 1}, 5, day)
		if err != nil {
			t.Fatal(err)
		}
		if day == 1 {
			err = w.makeMetrics(1)
		} else {
			err = w.updateMetric(metricName(0))
		}
		data, readErr := w.root.ReadFile(metricName(0))
		if err := errors.Join(err, readErr, w.close()); err != nil {
			t.Fatal(err)
		}
		return data
	}
	data := on(1)
	for day := 2; day <= 9; day++ {
		before := data
		data = on(day)
		if len(data) != len(before) {
			t.Fatalf("day %d: %d bytes, before %d", day, len(data), len(before))
		}
		at, changed := int64(metricHead), 0
		for _, r := range metricRings {
			now := int64(metricEpoch + day*secondsPerDay)
			for slot := range r.points {
				p := at + slot*metricPoint
				when := int64(binary.BigEndian.Uint32(data[p:]))
				if when <= now-r.step*r.points || when > now || when/r.step%r.points != slot {
					t.Fatalf("day %d, ring of %d s: the point in slot %d is of %d, now is %d", day, r.step, slot, when, now)
				}
				if !bytes.Equal(before[p:p+metricPoint], data[p:p+metricPoint]) {
					changed++
				}
			}
			at += r.points * metricPoint
		}
		if want := 1440 + 144; changed != want || !bytes.Equal(before[:metricHead], data[:metricHead]) {
			t.Errorf("day %d: %d points changed, want %d", day, changed, want)
		}
	}
}

// TestSetsHaveBothKinds: results are told apart by kind, so there have to be machines of each.
func TestSetsHaveBothKinds(t *testing.T) {
	for _, name := range []string{"default", "small"} {
		s, err := NewSet(name, 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range Kinds {
			if !slices.ContainsFunc(s.Machines, func(m Machine) bool { return m.Kind == k && m.Days >= 4 }) {
				t.Errorf("set %s has no %s machine of four days", name, k)
			}
		}
	}
}
