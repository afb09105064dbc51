package rescue_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/erasure"
)

// testdata is absolute: tests change their directory.
var testdata, _ = filepath.Abs("testdata")

// buildSet is build on a set, whose directories are in the working directory.
func buildSet(t *testing.T, l erasure.Layout) (repository, []string) {
	t.Helper()
	var dirs []string
	var members []erasure.Member
	t.Chdir(t.TempDir())
	for i := range l.Members() {
		dir := "disk" + string(rune('1'+i))
		dirs = append(dirs, dir)
		members = append(members, erasure.Member{Path: dir, ID: "member" + string(rune('1'+i))})
	}
	_, err := erasure.Create(t.Context(), members, l, erasure.CreateOptions{})
	must(t, err)
	s, err := erasure.OpenPaths(t.Context(), erasure.Options{}, dirs...)
	must(t, err)
	return buildOn(t, s, strings.Join(dirs, string(filepath.ListSeparator))), dirs
}

func TestSet(t *testing.T) {
	r, dirs := buildSet(t, erasure.Layout{Data: 2, Parity: 1})
	before := map[string]int64{}
	for _, dir := range dirs {
		for path, size := range tree(t, dir) {
			before[path] = size
		}
	}
	for _, args := range [][]string{{"ls"}, {"verify"}, {"check"}, {"keys"}, {"drill"}, {"scrub"}} {
		if got := r.ok(t, args...); got.stderr != "" && !strings.Contains(got.stderr, "%") {
			t.Errorf("%v on a whole set said %s", args, got.stderr)
		}
	}
	page(t, "scrub_set", r.stable(r.ok(t, "scrub").stdout))
	two := r
	two.dir = dirs[2] + string(filepath.ListSeparator) + dirs[0]
	for id, want := range r.disks {
		point, disk, _ := strings.Cut(id, "/")
		out := filepath.Join(t.TempDir(), "disk.raw")
		got := two.ok(t, "export", point, "--disk", disk, "--out", out)
		if data, err := os.ReadFile(out); err != nil || !bytes.Equal(data, want) {
			t.Errorf("%s from two of three directories differs: %v", id, err)
		}
		if !strings.Contains(got.stderr, "Warning: erasure set is degraded") || !strings.Contains(got.stderr, "member2") {
			t.Errorf("the missing member is not named: %s", got.stderr)
		}
	}
	got := two.run(t.Context(), "scrub")
	if got.code != failure.Warning {
		t.Errorf("scrub of two of three ended with %d: %s", got.code, got.stderr)
	}
	page(t, "scrub_degraded", r.stable(got.stdout))
	if got := r.run(t.Context(), "ls", "--repo", dirs[1]); got.code != failure.Failed || !strings.Contains(got.stderr, "1 of 3 members") {
		t.Errorf("one of three ended with %d: %s", got.code, got.stderr)
	}
	for _, dir := range dirs {
		for path, size := range tree(t, dir) {
			if before[path] != size {
				t.Errorf("rescue changed %s", path)
			}
			delete(before, path)
		}
	}
	if len(before) > 0 {
		t.Errorf("rescue removed %v", before)
	}
}

// Rot on one member is found without a key and repaired by nobody; rot on two is damage.
func TestScrubSetFindsRot(t *testing.T) {
	r, dirs := buildSet(t, erasure.Layout{Data: 2, Parity: 1})
	r.unset = true
	rot := func(dir string) (shard string) {
		largest := int64(0)
		for path, size := range tree(t, dir) {
			if size > largest {
				largest, shard = size, path
			}
		}
		data, err := os.ReadFile(shard)
		must(t, err)
		for at := 600; at < len(data); at += 30000 {
			data[at] ^= 1
		}
		overwrite(t, shard, data)
		return shard
	}
	shard := rot(dirs[0])
	rotten, err := os.ReadFile(shard)
	must(t, err)
	got := r.run(t.Context(), "scrub", "-o", "json")
	var report struct {
		State string
		Set   struct {
			Members []struct {
				ID  string
				Bad int
			}
			Damaged []struct{ Lost bool }
		}
	}
	must(t, json.Unmarshal([]byte(got.stdout), &report))
	if got.code != failure.Warning || report.State != "degraded" || len(report.Set.Members) != 3 || report.Set.Members[0].Bad != 1 {
		t.Errorf("exit code %d, %+v\n%s", got.code, report, got.stderr)
	}
	if now, err := os.ReadFile(shard); err != nil || !bytes.Equal(now, rotten) {
		t.Error("scrub changed a shard")
	}
	rot(dirs[1])
	got = r.run(t.Context(), "scrub", "-o", "json")
	must(t, json.Unmarshal([]byte(got.stdout), &report))
	if got.code != failure.Failed || report.State != "damaged" {
		t.Errorf("rot beyond parity: exit code %d, %+v\n%s", got.code, report, got.stderr)
	}
}

func TestMirrorFromOneDirectory(t *testing.T) {
	r, dirs := buildSet(t, erasure.Layout{Data: 1, Parity: 1})
	for _, dir := range dirs {
		one := r
		one.dir = dir
		out := filepath.Join(t.TempDir(), "disk.raw")
		one.ok(t, "export", r.ids[0], "--disk", "vda", "--out", out)
		if data, err := os.ReadFile(out); err != nil || !bytes.Equal(data, r.disks[r.ids[0]+"/vda"]) {
			t.Errorf("%s: the disk differs: %v", dir, err)
		}
	}
}

// page compares got with a file in testdata.
func page(t *testing.T, name, got string) {
	t.Helper()
	golden := filepath.Join(testdata, name+".txt")
	if *update {
		must(t, os.WriteFile(golden, []byte(got), 0o644))
	}
	want, err := os.ReadFile(golden)
	must(t, err)
	if diff := cmp.Diff(got, string(want)); diff != "" {
		t.Errorf("%s: -got +want:\n%s", name, diff)
	}
}

// The age identity of store/FORMAT.md.
const (
	secret    = "AGE-SECRET-KEY-1S8TF47QS0TH539ZJRMF8QE65X60QS42F4GSZQCHPJ3TVMWR8MXHQCN67QJ"
	recipient = "age1kzns623u7trcujfczrjc59fam5tvmnuzmmq8fjwnn3y445wkffvsyyqe5y"
)

// Every kind of key opens the repository, by every way it may be given.
func TestKeys(t *testing.T) {
	r := build(t)
	key, err := store.LoadKeyFile(r.key)
	must(t, err)
	b, err := file.Open(r.dir)
	must(t, err)
	defer b.Close()
	paper, _, err := store.AddPaperKey(t.Context(), b, key, "safe")
	must(t, err)
	text, err := paper.Text()
	must(t, err)
	_, err = store.AddRecipient(t.Context(), b, key, recipient, "escrow")
	must(t, err)
	dir := t.TempDir()
	typed, identity := filepath.Join(dir, "typed.txt"), filepath.Join(dir, "identity.txt")
	must(t, os.WriteFile(typed, []byte(text), 0o600))
	must(t, os.WriteFile(identity, []byte(secret+"\n"), 0o600))
	line, err := os.ReadFile(r.key)
	must(t, err)
	t.Setenv("CAIRN_TEST_KEY", string(line))
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(r.key))
	keyFile := r.key
	r.unset = true
	good := map[string][]string{
		"key-file": {"--key=" + keyFile, "--key=file:" + keyFile, "--key=env:CAIRN_TEST_KEY", "--key=credential:" + filepath.Base(keyFile)},
		"paper":    {"--paper=" + typed},
		"age":      {"--identity=" + identity},
	}
	for kind, flags := range good {
		for _, flag := range flags {
			var d struct {
				RestorePoint string `json:"restore_point"`
				Wrapping     struct{ Kind string }
				FrameBytes   int `json:"frame_bytes"`
			}
			got := r.ok(t, "drill", flag, "-o", "json")
			must(t, json.Unmarshal([]byte(got.stdout), &d))
			if d.Wrapping.Kind != kind || d.RestorePoint != r.ids[2] || d.FrameBytes == 0 {
				t.Errorf("%s: %+v", flag, d)
			}
			if ls := strings.Fields(r.ok(t, "ls", flag, "-o", "name").stdout); len(ls) != 3 {
				t.Errorf("%s: ls has %v", flag, ls)
			}
			if strings.Contains(got.stdout+got.stderr, string(line[12:60])) {
				t.Errorf("%s: the key was printed", flag)
			}
		}
	}
	got := r.ok(t, "keys").stdout
	got = regexp.MustCompile(`20[0-9-]+ [0-9:]{8}`).ReplaceAllString(got, "2026-11-22 12:00:00")
	r.stableKeys(t, key, paper, got)
	bad := []struct {
		name string
		args []string
		code failure.Code
		word string
	}{
		{"no key", []string{"ls"}, failure.Usage, "--identity"},
		{"two keys", []string{"ls", "--key", keyFile, "--paper", typed}, failure.Usage, "do not go together"},
		{"paper as key file", []string{"ls", "--key", typed}, failure.Usage, "--paper"},
		{"key file as paper", []string{"ls", "--paper", keyFile}, failure.Usage, "line"},
		{"key file as identity", []string{"ls", "--identity", keyFile}, failure.Usage, "age-keygen"},
		{"variable is not set", []string{"ls", "--key", "env:CAIRN_NONE"}, failure.NotFound, "CAIRN_NONE"},
		{"no such credential", []string{"ls", "--key", "credential:none"}, failure.NotFound, ""},
		{"no paper", []string{"drill", "--paper", filepath.Join(dir, "none")}, failure.NotFound, "none"},
		{"rate", []string{"scrub", "--rate", "fast"}, failure.Usage, ""},
	}
	for _, tt := range bad {
		got := r.run(t.Context(), tt.args...)
		if got.code != tt.code && tt.name != "rate" || !strings.Contains(got.stderr, tt.word) || got.stderr == "" || got.stdout != "" {
			t.Errorf("%s: exit code %d, want %d with %q\n%s%s", tt.name, got.code, tt.code, tt.word, got.stdout, got.stderr)
		}
	}
	r.ok(t, "scrub", "--rate", "50M") // needs no key
}

// stableKeys compares the list of keys with its page.
func (r repository) stableKeys(t *testing.T, key store.Key, paper store.PaperKey, got string) {
	t.Helper()
	got = strings.ReplaceAll(got, key.Fingerprint(), strings.Repeat("F", 16))
	got = strings.ReplaceAll(got, strings.TrimPrefix(paper.String(), "paper key "), strings.Repeat("P", 16))
	lines := strings.SplitAfter(strings.TrimSpace(got), "\n")
	if len(lines) != 4 {
		t.Fatalf("keys:\n%s", got)
	}
	page(t, "keys_all", lines[0]+sortedLines(lines[1:]))
}

// sortedLines puts lines in order: keys of one second have none of their own.
func sortedLines(lines []string) string {
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\n") + "\n"
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
