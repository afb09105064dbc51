package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// python runs the second reader; it needs Debian's python3-cryptography and python3-zstandard.
func python(t *testing.T, args ...string) (string, error) {
	t.Helper()
	const interpreter = "/usr/bin/python3"
	if err := exec.Command(interpreter, "-c", "import cryptography, zstandard").Run(); err != nil {
		if os.Getenv("CAIRN_LAB") == "" {
			t.Skip("no /usr/bin/python3 with cryptography and zstandard")
		}
		t.Fatal("no /usr/bin/python3 with cryptography and zstandard")
	}
	out, err := exec.CommandContext(t.Context(), interpreter, append([]string{"-B"}, args...)...).CombinedOutput()
	return string(out), err
}

// reader runs cairn_reader.py on a repository.
func reader(t *testing.T, key, repo string, args ...string) (string, error) {
	t.Helper()
	return python(t, append([]string{"reader/cairn_reader.py", "--key", key, repo}, args...)...)
}

// sameByReader lists, verifies and extracts every restore point with the second reader and compares the disks.
func sameByReader(t *testing.T, key, repo string, points []RestorePoint, disks map[string][]byte) {
	t.Helper()
	list, err := reader(t, key, repo, "list")
	if err != nil || strings.Count(list, "\n") != len(points) {
		t.Errorf("list: %s%v", list, err)
	}
	if out, err := reader(t, key, repo, "verify"); err != nil || strings.Count(out, "is whole") != len(points) {
		t.Errorf("verify: %s%v", out, err)
	}
	for _, p := range points {
		dir := t.TempDir()
		if out, err := reader(t, key, repo, "extract", p.ID, dir); err != nil || !strings.Contains(list, p.ID) {
			t.Fatalf("extract %s: %s%v", p.ID, out, err)
		}
		if got := mustRead(t, filepath.Join(dir, "disk-"+p.Images[0].Name+".raw")); !bytes.Equal(got, disks[p.ID]) {
			t.Errorf("%s: the disk that was extracted is another one", p.ID)
		}
		if got := mustRead(t, filepath.Join(dir, "document-domain.xml")); string(got) != "<domain/>" {
			t.Errorf("%s: document %q", p.ID, got)
		}
	}
}

func TestSecondReaderReadsGolden(t *testing.T) {
	var want goldenFacts
	if err := json.Unmarshal(mustRead(t, filepath.Join(golden, "facts.json")), &want); err != nil {
		t.Fatal(err)
	}
	for _, p := range want.Points {
		to := t.TempDir()
		if out, err := reader(t, filepath.Join(golden, "key"), filepath.Join(golden, "repo"), "extract", p.ID, to); err != nil {
			t.Errorf("%s%v", out, err)
		} else if got := sumOf(mustRead(t, filepath.Join(to, "disk-vda.raw"))); got != want.Disks[p.ID] {
			t.Errorf("%s has SHA-256 %s, want %s", p.ID, got, want.Disks[p.ID])
		}
	}
}

// TestSecondReaderReadsNew writes full and incremental restore points with every codec and cipher.
func TestSecondReaderReadsNew(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(seeded.Seed(t), 3))
	disk := make([]byte, 20*testChunk+777)
	copy(disk, randomDisk(rnd, 8*testChunk))
	for i := 9 * testChunk; i < 13*testChunk; i++ {
		disk[i] = "long and longer runs, and short ones; "[(i/3+i*i/70000)%38]
	}
	fill(rnd, disk[20*testChunk:])
	disks := map[string][]byte{}
	var points []RestorePoint
	var parent *ImageRef
	before := disk
	for i, o := range []struct {
		how    pack.Compression
		cipher seal.Cipher
	}{{pack.Standard, 0}, {pack.Fast, seal.XChaCha20}, {pack.Off, 0}, {pack.High, 0}} {
		g.close()
		g.repo = must(Open(t.Context(), g.b, g.key, Options{Cipher: o.cipher, Compression: string(o.how)}))
		next := bytes.Clone(before)
		for range 5 { // scattered, so that chunks refer to blocks of others
			at := rnd.IntN(len(next) - 6000)
			copy(next[at:], bytes.Repeat([]byte{byte(i), byte(at), 7}, 1+rnd.IntN(1500)))
		}
		p := g.backup(next, before, parent)
		disks[p.ID], points = next, append(points, p)
		before, parent = next, &p.Images[0].Ref
	}
	codecs, refs := map[pack.Codec]int{}, 0
	for _, p := range g.repo.idx.Packs() {
		d := must(g.repo.openPack(t.Context(), p.ID, p.Size)).Directory()
		for _, f := range d.Frames {
			codecs[f.Codec]++
		}
		for i := range d.Entries {
			refs += len(d.Entries[i].Refs)
		}
	}
	if codecs[pack.None] == 0 || codecs[pack.Zstd] == 0 || codecs[pack.S2] == 0 || refs == 0 {
		t.Fatalf("frames by codec %v, %d references: the test does not test", codecs, refs)
	}
	keys := map[string]string{"key file": filepath.Join(t.TempDir(), "key")}
	mustWrite(t, keys["key file"], []byte(g.key.text()+"\n"))
	paper, _, err := AddPaperKey(t.Context(), g.b, g.key, "safe")
	if err != nil {
		t.Fatal(err)
	}
	keys["paper key"] = filepath.Join(t.TempDir(), "paper")
	mustWrite(t, keys["paper key"], []byte(must(paper.Text())))
	path, _, recipient := newIdentity(t, false)
	must(AddRecipient(t.Context(), g.b, g.key, recipient, "escrow"))
	keys["age identity"] = path
	sameByReader(t, keys["key file"], g.dir, points, disks)
	for _, name := range []string{"paper key", "age identity"} {
		if out, err := reader(t, keys[name], g.dir, "verify", points[1].ID); err != nil || !strings.Contains(out, "is whole") {
			t.Errorf("%s: %s%v", name, out, err)
		}
	}
	wrong := filepath.Join(t.TempDir(), "wrong")
	must(NewKeyFile(wrong))
	if out, err := reader(t, wrong, g.dir, "list"); err == nil || !strings.Contains(out, "no wrapping") {
		t.Errorf("wrong key: %s%v", out, err)
	}
}

func TestSecondReaderRefusesFlips(t *testing.T) {
	g, p := smallRig(t)
	key := filepath.Join(t.TempDir(), "key")
	mustWrite(t, key, []byte(g.key.text()+"\n"))
	for _, folder := range []string{"packs", "manifests", "keys", "config"} {
		for _, name := range g.files(folder) {
			good := mustRead(t, name)
			at := []int{len(good) / 3}
			switch folder {
			case "config":
				at = []int{60}
			case "packs": // a frame and the directory
				at = append(at, 5+int(binary.LittleEndian.Uint64(good[len(good)-80:])))
			case "manifests": // its hash and its text
				at = append(at, 100, len(good)-20)
			}
			for _, at := range at {
				bad := bytes.Clone(good)
				bad[at] ^= 4
				mustWrite(t, name, bad)
				if out, err := reader(t, key, g.dir, "verify"); err == nil {
					t.Errorf("%s with a flip at %d: %s", name, at, out)
				}
			}
			mustWrite(t, name, good)
		}
	}
	if out, err := reader(t, key, g.dir, "verify"); err != nil || !strings.Contains(out, p.ID+" is whole") {
		t.Errorf("with everything put back: %s%v", out, err)
	}
}

// TestSecondReaderComputesTheVectors: the vectors of FORMAT.md are computed by two programs.
func TestSecondReaderComputesTheVectors(t *testing.T) {
	out, err := python(t, "reader/vectors_test.py", "FORMAT.md")
	if err != nil || !strings.Contains(out, "vectors are right") {
		t.Errorf("%s%v", out, err)
	}
	// It can fail.
	text := string(mustRead(t, "FORMAT.md"))
	head, vectors, _ := strings.Cut(text, "<!-- vectors -->")
	wrong := filepath.Join(t.TempDir(), "FORMAT.md")
	for i, line := range strings.Split(strings.TrimSpace(vectors), "\n") {
		if i%7 != 0 || len(line) < 60 { // some are enough
			continue
		}
		last := line[len(line)-1:]
		flipped := line[:len(line)-1] + map[bool]string{true: "1", false: "0"}[last == "0"]
		mustWrite(t, wrong, []byte(head+"<!-- vectors -->"+strings.Replace(vectors, line, flipped, 1)))
		if out, err := python(t, "reader/vectors_test.py", wrong); err == nil {
			t.Errorf("a wrong %.50s is not found: %s", line, out)
		}
	}
}

func TestReaderIsShort(t *testing.T) {
	if n := bytes.Count(mustRead(t, "reader/cairn_reader.py"), []byte("\n")); n >= 600 {
		t.Errorf("cairn_reader.py has %d lines, want fewer than 600", n)
	}
}

// TestRepositoryDescribesItself: each has the description of its format and a reader in it, older ones get them.
func TestRepositoryDescribesItself(t *testing.T) {
	g := newRig(t)
	for name, want := range map[string]string{"FORMAT.md": "FORMAT.md", "cairn_reader.py": "reader/cairn_reader.py"} {
		if !bytes.Equal(mustRead(t, filepath.Join(g.dir, name)), mustRead(t, want)) {
			t.Errorf("%s in the repository is another one", name)
		}
		if err := os.Remove(filepath.Join(g.dir, name)); err != nil {
			t.Fatal(err)
		}
		r := must(Open(context.Background(), g.b, g.key, Options{ReadOnly: true}))
		if _, err := os.Stat(filepath.Join(g.dir, name)); err == nil {
			t.Errorf("a reader wrote %s", name)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		g.reopen()
		if !bytes.Equal(mustRead(t, filepath.Join(g.dir, name)), mustRead(t, want)) {
			t.Errorf("%s is not put back", name)
		}
	}
}
