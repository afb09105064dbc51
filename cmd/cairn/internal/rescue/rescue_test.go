package rescue_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/rescue"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

var (
	seed   = flag.Uint64("seed", 20261121, "seed of the disks' content")
	update = flag.Bool("update", false, "rewrite testdata")
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// repository is a real repository in a directory with three restore points: two of web01, one of db.
type repository struct {
	dir, key string
	unset    bool     // the environment names no key
	ids      []string // oldest first
	disks    map[string][]byte
}

const domainXML = "<domain type='kvm'><name>web01</name></domain>\n"

func build(t *testing.T) repository {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repo")
	b, err := file.Create(dir)
	must(t, err)
	return buildOn(t, b, dir)
}

// buildOn makes a repository on a backend and closes it.
func buildOn(t *testing.T, b blob.Store, dir string) repository {
	t.Helper()
	t.Logf("seed %d", *seed)
	r := repository{dir: dir, key: filepath.Join(t.TempDir(), "repo.key"), disks: map[string][]byte{}}
	key, err := store.NewKeyFile(r.key)
	must(t, err)
	defer func() { must(t, b.Close()) }()
	must(t, store.Create(t.Context(), b, key, store.CreateOptions{Name: "test"}))
	repo, err := store.Open(t.Context(), b, key, store.Options{})
	must(t, err)
	defer func() { must(t, repo.Close()) }()
	rng := rand.New(rand.NewPCG(*seed, 7))
	first := sparse(rng, 6<<20+512)
	second := bytes.Clone(first)
	for i := range 70000 {
		second[2<<20+i] = byte(rng.Uint32())
	}
	r.publish(t, repo, "web01", noon.Add(-26*time.Hour), map[string][]byte{"vda": first, "vdb": make([]byte, 3<<20)})
	r.publish(t, repo, "web01", noon.Add(-2*time.Hour), map[string][]byte{"vda": second, "vdb": sparse(rng, 3<<20)})
	r.publish(t, repo, "db\x1b[1m", noon.Add(-time.Hour), map[string][]byte{"vda": sparse(rng, 1<<20)})
	return r
}

func sparse(r *rand.Rand, size int) []byte {
	data := make([]byte, size)
	for off := r.IntN(300 << 10); off < size; off += r.IntN(600 << 10) {
		n := min(1+r.IntN(300<<10), size-off)
		for i := range n {
			data[off+i] = byte(r.Uint32())
		}
		off += n
	}
	return data
}

func (r *repository) publish(t *testing.T, repo *store.Repository, vm string, at time.Time, disks map[string][]byte) {
	t.Helper()
	r.publishIn(t, repo, "kvm/c/"+vm, vm, at, disks)
}

func (r *repository) publishIn(t *testing.T, repo *store.Repository, series, vm string, at time.Time, disks map[string][]byte) {
	t.Helper()
	ctx := t.Context()
	s, err := repo.Begin(ctx, store.SessionOptions{Series: series, Writer: "test"})
	must(t, err)
	m := store.Manifest{
		Series: series, Time: at, Labels: map[string]string{"vm_name": vm},
		Documents: []store.Document{
			{Name: "domain.xml", MediaType: "application/xml", Data: []byte(domainXML)},
			{Name: "nvram.fd", MediaType: "application/octet-stream", Data: []byte{0, 1, 2, 255}},
		},
		Meta: json.RawMessage(`{"consistency":"crash"}`),
		Description: json.RawMessage(`{"id":"u","name":` + quote(vm) + `,"power":"on","firmware":"uefi","machine":"q35","arch":"x86_64","cpus":2,"memory_bytes":2147483648,` +
			`"disks":[{"id":"vda","kind":"disk","bus":"virtio","format":"qcow2","size_bytes":1}],"nics":[{"id":"n","mac":"52:54:00:00:00:01","model":"virtio","network":"network:default"}]}`),
	}
	names := make([]string, 0, len(disks))
	for name := range disks {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		data := disks[name]
		w, err := s.NewImage(ctx, store.ImageOptions{SizeBytes: int64(len(data))})
		must(t, err)
		must(t, w.Write(ctx, 0, data))
		image, err := w.Finish(ctx)
		must(t, err)
		m.Images = append(m.Images, store.NamedImage{Name: name, Ref: image})
	}
	p, err := s.Publish(ctx, m)
	must(t, err)
	r.ids = append(r.ids, p.ID)
	for name, data := range disks {
		r.disks[p.ID+"/"+name] = data
	}
}

func quote(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type result struct {
	code           failure.Code
	stdout, stderr string
}

// run runs "cairn rescue args..." on the repository.
func (r repository) run(ctx context.Context, args ...string) result {
	env := map[string]string{"CAIRN_RESCUE_REPO": r.dir, "CAIRN_RESCUE_KEY": r.key}
	if r.unset {
		delete(env, "CAIRN_RESCUE_KEY")
	}
	var out, errs bytes.Buffer
	c := console.New(func(k string) string { return env[k] }, strings.NewReader(""), &out, &errs)
	c.Now, c.Location = func() time.Time { return noon }, time.UTC
	root := &cobra.Command{Use: "cairn", SilenceErrors: true, SilenceUsage: true}
	c.AddFlags(root)
	root.AddCommand(rescue.Command(c))
	root.SetOut(&out)
	root.SetErr(&errs)
	root.SetArgs(append([]string{"rescue"}, args...))
	err := root.ExecuteContext(ctx)
	failure.Print(&errs, err, false)
	return result{failure.CodeOf(err), out.String(), errs.String()}
}

func (r repository) ok(t *testing.T, args ...string) result {
	t.Helper()
	got := r.run(t.Context(), args...)
	if got.code != failure.OK {
		t.Fatalf("rescue %v: exit code %d\n%s%s", args, got.code, got.stdout, got.stderr)
	}
	return got
}

// stable replaces what differs from run to run.
func (r repository) stable(s string) string {
	if key, err := store.LoadKeyFile(r.key); err == nil {
		s = strings.ReplaceAll(s, key.Fingerprint(), strings.Repeat("F", 16))
	}
	s = strings.ReplaceAll(s, r.dir, "/srv/backup")
	s = regexp.MustCompile(`erasure set [0-9a-f]{8}`).ReplaceAllString(s, "erasure set ........")
	s = regexp.MustCompile(`(packs|keys)/[0-9a-f/]*[0-9a-f]{32}`).ReplaceAllStringFunc(s, func(name string) string { return name[:5] + strings.Repeat("x", len(name)-5) })
	s = regexp.MustCompile(`((Files|Shards) read: +)[0-9.]+ MiB`).ReplaceAllString(s, "${1}... MiB")
	s = variable.ReplaceAllString(s, "$1...")
	for i, id := range r.ids {
		s = strings.ReplaceAll(s, id, "rp_"+strings.Repeat(string(rune('A'+i)), len(id)-3))
	}
	var lines []string
	for line := range strings.Lines(s) {
		name, value, ok := strings.Cut(line, ":")
		if ok && name == "Published" || strings.HasPrefix(line, "Repository:") && len(strings.TrimSpace(value)) == 32 {
			line = name + ":" + strings.Repeat(" ", len(value)-len(strings.TrimLeft(value, " "))) + "...\n"
		}
		lines = append(lines, line)
	}
	return hideRoots(strings.Join(lines, ""))
}

// variable is what is random, or a time, on the pages about keys.
var variable = regexp.MustCompile(`(Identity: +|Public key: +|Data read: +[0-9.]+ [KM]iB of |key-file   F{16}   -       )[-0-9a-z/.: ]*[0-9a-z]`)

// hideRoots shortens words of 64 hexadecimal digits.
func hideRoots(s string) string {
	var b strings.Builder
	run := 0
	for i := range len(s) + 1 {
		if i < len(s) && strings.IndexByte("0123456789abcdef", s[i]) >= 0 {
			run++
			continue
		}
		if run == 64 {
			b.WriteString("HASH")
		} else {
			b.WriteString(s[i-run : i])
		}
		run = 0
		if i < len(s) {
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

func TestPages(t *testing.T) {
	r := build(t)
	t.Chdir(t.TempDir())
	pages := map[string][]string{
		"ls":      {"ls"},
		"ls_wide": {"ls", "-o", "wide"},
		"ls_vm":   {"ls", "--vm", "web01"},
		"ls_none": {"ls", "--vm", "nobody"},
		"show":    {"show", r.ids[0]},
		"verify":  {"verify"},
		"check":   {"check"},
		"scrub":   {"scrub"},
		"keys":    {"keys"},
		"drill":   {"drill"},
		"export":  {"export", "latest", "--vm", "web01", "--all", "--to", "qcow2", "--out", "web01"},
	}
	for name, args := range pages {
		t.Run(name, func(t *testing.T) {
			got := r.stable(r.ok(t, args...).stdout)
			page(t, name, got)
		})
	}
}

func TestListJSON(t *testing.T) {
	r := build(t)
	var got []struct {
		ID        string `json:"id"`
		VM        string `json:"vm"`
		SizeBytes int64  `json:"size_bytes"`
		Disks     []struct {
			Name      string `json:"name"`
			SizeBytes int64  `json:"size_bytes"`
		} `json:"disks"`
		Description json.RawMessage `json:"description"`
	}
	must(t, json.Unmarshal([]byte(r.ok(t, "ls", "-o", "json").stdout), &got))
	if len(got) != 3 || got[2].ID != r.ids[0] || got[1].VM != "web01" || got[1].SizeBytes != 9<<20+512 || len(got[1].Disks) != 2 {
		t.Errorf("got %+v", got)
	}
	var shown map[string]any
	must(t, json.Unmarshal([]byte(r.ok(t, "show", r.ids[1], "-o", "json").stdout), &shown))
	if d, _ := shown["description"].(map[string]any); d["firmware"] != "uefi" {
		t.Errorf("description: %v", shown["description"])
	}
}

func TestExport(t *testing.T) {
	r := build(t)
	_, noQEMU := exec.LookPath("qemu-img")
	for _, id := range r.ids {
		for _, disk := range []string{"vda", "vdb"} {
			want, ok := r.disks[id+"/"+disk]
			if !ok {
				continue
			}
			dir := t.TempDir()
			raw, image := filepath.Join(dir, "disk.raw"), filepath.Join(dir, "disk.qcow2")
			r.ok(t, "export", id, "--disk", disk, "--to", "raw", "--out", raw)
			got, err := os.ReadFile(raw)
			must(t, err)
			if !bytes.Equal(got, want) {
				t.Errorf("%s %s: the raw file differs", id, disk)
			}
			r.ok(t, "export", "--point", id, "--disk", disk, "--to", "qcow2", "--out", image)
			if noQEMU == nil {
				for _, args := range [][]string{{"check", "-f", "qcow2", image}, {"compare", "-f", "qcow2", "-F", "raw", image, raw}} {
					if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
						t.Errorf("qemu-img %v: %v\n%s", args, err, out)
					}
				}
			}
		}
	}
}

func TestExportKeepsHoles(t *testing.T) {
	r := build(t)
	out := filepath.Join(t.TempDir(), "vdb.raw")
	r.ok(t, "export", r.ids[0], "--disk", "vdb", "--out", out)
	var st syscall.Stat_t
	must(t, syscall.Stat(out, &st))
	if st.Size != 3<<20 || st.Blocks > 16 {
		t.Errorf("a disk of zeros became a file of %d bytes that takes %d blocks", st.Size, st.Blocks)
	}
}

func TestExportAllAndDocuments(t *testing.T) {
	r := build(t)
	dir := filepath.Join(t.TempDir(), "new", "web01")
	r.ok(t, "export", "latest", "--vm", "web01", "--all", "--out", dir)
	files := map[string][]byte{
		"domain.xml": []byte(domainXML), "nvram.fd": {0, 1, 2, 255},
		"vda.raw": r.disks[r.ids[1]+"/vda"], "vdb.raw": r.disks[r.ids[1]+"/vdb"],
	}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs", name)
		}
	}
	var description map[string]any
	data, err := os.ReadFile(filepath.Join(dir, "description.json"))
	must(t, err)
	must(t, json.Unmarshal(data, &description))
	if got := r.ok(t, "export", r.ids[1], "--document", "domain.xml", "--out", "-"); got.stdout != domainXML {
		t.Errorf("document on standard output: %q", got.stdout)
	}
}

func TestRefusals(t *testing.T) {
	r := build(t)
	dir := t.TempDir()
	there := filepath.Join(dir, "there")
	must(t, os.WriteFile(there, []byte("precious"), 0o600))
	wrongKey := filepath.Join(dir, "wrong.key")
	_, err := store.NewKeyFile(wrongKey)
	must(t, err)
	web := r.ids[1]
	tests := []struct {
		name string
		args []string
		code failure.Code
		word string
	}{
		{"no such verb", []string{"lst"}, failure.Usage, "no command"},
		{"file exists", []string{"export", web, "--disk", "vda", "--out", there}, failure.Conflict, "--force"},
		{"document file exists", []string{"export", web, "--document", "nvram.fd", "--out", there}, failure.Conflict, "--force"},
		{"no such disk", []string{"export", web, "--disk", "vdz", "--out", filepath.Join(dir, "x")}, failure.NotFound, "It has: vda, vdb."},
		{"which disk", []string{"export", web, "--out", filepath.Join(dir, "x")}, failure.Usage, "--disk"},
		{"no such document", []string{"export", web, "--document", "tpm", "--out", "-"}, failure.NotFound, "domain.xml, nvram.fd"},
		{"disk to standard output", []string{"export", web, "--disk", "vda", "--out", "-"}, failure.Usage, "Name a file"},
		{"two things", []string{"export", web, "--disk", "vda", "--all", "--out", dir}, failure.Usage, "do not go together"},
		{"two points", []string{"export", web, "--point", r.ids[0], "--out", dir}, failure.Usage, "not the same"},
		{"no point", []string{"export", "--out", dir}, failure.Usage, "which restore point"},
		{"no out", []string{"export", web, "--disk", "vda"}, failure.Usage, "--out"},
		{"format", []string{"export", web, "--disk", "vda", "--to", "vmdk", "--out", "x"}, failure.Usage, "--to qcow2"},
		{"no such point", []string{"show", "rp_00000000000000000000000000"}, failure.NotFound, "cairn rescue ls"},
		{"not an id", []string{"show", "../config"}, failure.NotFound, "cairn rescue ls"},
		{"whose latest", []string{"show", "latest"}, failure.Usage, "--vm NAME"},
		{"beginning of several ids", []string{"show", "rp_"}, failure.Usage, web},
		{"wrong key", []string{"ls", "--key", wrongKey}, failure.Denied, ""},
		{"no key file", []string{"ls", "--key", filepath.Join(dir, "none")}, failure.NotFound, ""},
		{"no repository", []string{"ls", "--repo", filepath.Join(dir, "none")}, failure.NotFound, ""},
		{"not a repository", []string{"ls", "--repo", dir}, failure.NotFound, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := r.run(t.Context(), tt.args...)
			if got.code != tt.code || !strings.Contains(got.stderr, tt.word) || got.stderr == "" || got.stdout != "" {
				t.Errorf("exit code %d, want %d with %q\n%s%s", got.code, tt.code, tt.word, got.stdout, got.stderr)
			}
			t.Log(got.stderr)
		})
	}
	if got, _ := os.ReadFile(there); string(got) != "precious" {
		t.Error("a file was overwritten")
	}
	r.ok(t, "export", web, "--disk", "vda", "--out", there, "--force")
	if got, _ := os.ReadFile(there); !bytes.Equal(got, r.disks[web+"/vda"]) {
		t.Error("--force: content differs")
	}
}

// Rescue must work from a medium that cannot be written, and beside a running owner.
func TestReadsWithoutWriting(t *testing.T) {
	r := build(t)
	before := tree(t, r.dir)
	key, err := store.LoadKeyFile(r.key)
	must(t, err)
	b, err := file.Open(r.dir)
	must(t, err)
	defer b.Close()
	owner, err := store.Open(t.Context(), b, key, store.Options{})
	must(t, err)
	owned := tree(t, r.dir)
	r.ok(t, "ls")
	r.ok(t, "verify")
	r.ok(t, "check")
	r.ok(t, "scrub")
	r.ok(t, "keys")
	r.ok(t, "drill")
	r.ok(t, "export", r.ids[2], "--out", filepath.Join(t.TempDir(), "d"))
	if diff := cmp.Diff(tree(t, r.dir), owned); diff != "" {
		t.Errorf("rescue changed the repository:\n%s", diff)
	}
	must(t, owner.Close())
	t.Logf("%d files", len(before))
}

func tree(t *testing.T, dir string) map[string]int64 {
	t.Helper()
	files := map[string]int64{}
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		files[path] = info.Size()
		return err
	}))
	return files
}

// Every pack is damaged in turn, and lost in turn: verify must say so, and an export either gives the right bytes or
// nothing.
func TestDamage(t *testing.T) {
	r := build(t)
	packs, err := filepath.Glob(filepath.Join(r.dir, "packs", "*"))
	must(t, err)
	nested, err := filepath.Glob(filepath.Join(r.dir, "packs", "*", "*"))
	must(t, err)
	rng := rand.New(rand.NewPCG(*seed, 8))
	tried, salvaged := 0, 0
	for _, pack := range append(packs, nested...) {
		info, err := os.Stat(pack)
		must(t, err)
		if info.IsDir() {
			continue
		}
		good, err := os.ReadFile(pack)
		must(t, err)
		tried++
		bad := bytes.Clone(good)
		for range 40 {
			bad[rng.IntN(len(bad))] ^= 0x40
		}
		overwrite(t, pack, bad)
		salvaged += r.mustNotice(t, "damaged "+filepath.Base(pack))
		must(t, os.Remove(pack))
		salvaged += r.mustNotice(t, "lost "+filepath.Base(pack))
		overwrite(t, pack, good)
	}
	if tried == 0 || salvaged == 0 {
		t.Fatalf("%d packs were damaged, %d disks were salvaged", tried, salvaged)
	}
	r.ok(t, "verify")
}

func overwrite(t *testing.T, path string, data []byte) {
	t.Helper()
	_ = os.Remove(path)
	must(t, os.WriteFile(path, data, 0o600))
}

func (r repository) mustNotice(t *testing.T, what string) (salvaged int) {
	t.Helper()
	got := r.run(t.Context(), "verify")
	if got.code != failure.Failed || got.stderr == "" {
		t.Errorf("%s: verify ended with %d\n%s%s", what, got.code, got.stdout, got.stderr)
	}
	t.Logf("%s:\n%s%s", what, got.stdout, got.stderr)
	for key, want := range r.disks {
		id, disk, _ := strings.Cut(key, "/")
		out := filepath.Join(t.TempDir(), "disk.raw")
		got := r.run(t.Context(), "export", id, "--disk", disk, "--out", out)
		data, err := os.ReadFile(out)
		switch {
		case got.code == failure.OK && !bytes.Equal(data, want):
			t.Errorf("%s: export of %s gave wrong bytes", what, key)
		case got.code != failure.OK && err == nil:
			t.Errorf("%s: a failed export of %s left a file", what, key)
		}
		if got.code == failure.Failed && r.mustSalvage(t, what, id, disk, want) {
			salvaged++
		}
	}
	return salvaged
}

// mustSalvage exports a damaged disk with zeros for what is lost: every byte is the right one or is named as damaged.
func (r repository) mustSalvage(t *testing.T, what, id, disk string, want []byte) bool {
	t.Helper()
	out := filepath.Join(t.TempDir(), "disk.raw")
	got := r.run(t.Context(), "export", id, "--disk", disk, "--out", out, "--damaged-as-zeros", "-o", "json")
	if got.code == failure.Failed {
		return false // the structure itself is damaged: nothing was written, which mustNotice has checked the like of
	}
	var files []struct{ Damage []store.Damage }
	must(t, json.Unmarshal([]byte(got.stdout), &files))
	data, err := os.ReadFile(out)
	must(t, err)
	if got.code != failure.Warning || len(files) != 1 || len(files[0].Damage) == 0 || len(data) != len(want) {
		t.Fatalf("%s: salvage of %s ended with %d, %d bytes, %+v", what, disk, got.code, len(data), files)
	}
	expect := bytes.Clone(want)
	for _, d := range files[0].Damage {
		clear(expect[d.Offset : d.Offset+d.Length])
	}
	if !bytes.Equal(data, expect) {
		t.Errorf("%s: salvage of %s differs outside of what it names as damaged", what, disk)
	}
	return true
}

func TestInterruptedExport(t *testing.T) {
	r := build(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	if got := r.run(ctx, "export", r.ids[1], "--disk", "vda", "--out", filepath.Join(dir, "x")); got.code == failure.OK {
		t.Error("an interrupted export succeeded")
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
}

func TestSeveralVMsOfOneName(t *testing.T) {
	r := build(t)
	key, err := store.LoadKeyFile(r.key)
	must(t, err)
	b, err := file.Open(r.dir)
	must(t, err)
	defer b.Close()
	repo, err := store.Open(t.Context(), b, key, store.Options{})
	must(t, err)
	r.publishIn(t, repo, "kvm/other/web01", "web01", noon.Add(-time.Minute), map[string][]byte{"vda": make([]byte, 1<<20)})
	must(t, repo.Close())
	for _, args := range [][]string{
		{"show", "latest", "--vm", "web01"}, {"verify", "latest", "--vm", "web01"},
		{"export", "latest", "--vm", "web01", "--all", "--out", t.TempDir()},
	} {
		got := r.run(t.Context(), args...)
		want := []string{"kvm/c/web01  " + r.ids[1] + "  2026-11-21T10:00:00Z", "kvm/other/web01  " + r.ids[3] + "  2026-11-21T11:59:00Z", "with --vm"}
		for _, w := range want {
			if got.code != failure.Usage || !strings.Contains(got.stderr, w) {
				t.Errorf("%v: exit code %d, no %q in\n%s", args, got.code, w, got.stderr)
			}
		}
	}
	for series, want := range map[string]string{"kvm/c/web01": r.ids[1], "kvm/other/web01": r.ids[3]} {
		if got := r.ok(t, "verify", "latest", "--vm", series, "-o", "json"); !strings.Contains(got.stdout, want) {
			t.Errorf("verify latest --vm %s: no %s in\n%s", series, want, got.stdout)
		}
	}
	got := strings.Fields(r.ok(t, "ls", "--vm", "kvm/c/web01", "-o", "name").stdout)
	if diff := cmp.Diff([]string{r.ids[1], r.ids[0]}, got); diff != "" {
		t.Errorf("ls of a series: -want +got %s", diff)
	}
}
