package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

var (
	update       = flag.Bool("update", false, "rewrite the vectors in FORMAT.md")
	updateGolden = flag.Bool("update-golden", false, "make golden-1 anew: only as long as no release has written its like")
)

// goldenFacts is what the golden repository must be found to say.
type goldenFacts struct {
	Points []RestorePoint    `json:"points"`
	Disks  map[string]string `json:"disks"` // SHA-256 by restore point
}

// golden has all structures of format version 1: a key of each kind, both ciphers, all codecs, chunks that refer to
// others, a record of what was pruned.
const golden = "testdata/golden-1"

// TestGoldenRepository opens it, which every later version must.
func TestGoldenRepository(t *testing.T) {
	if *updateGolden {
		writeGolden(t)
	}
	key, err := LoadKeyFile(filepath.Join(golden, "key"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := file.Open(filepath.Join(golden, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), b, key, Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var want goldenFacts
	text, err := os.ReadFile(filepath.Join(golden, "facts.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, facts(t, r)); diff != "" {
		t.Errorf("golden repository (-recorded +read):\n%s", diff)
	}
	if report, err := r.Check(t.Context()); err != nil || len(report.Problems)+len(report.Notes) > 0 {
		t.Errorf("Check = %+v, %v", report, err)
	}
	for _, p := range want.Points {
		if _, err := r.Verify(t.Context(), p.ID, nil); err != nil {
			t.Error(err)
		}
	}
}

func facts(t *testing.T, r *Repository) goldenFacts {
	t.Helper()
	points, err := r.RestorePoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	f := goldenFacts{Points: points, Disks: map[string]string{}}
	for _, p := range points {
		i, err := r.OpenImage(t.Context(), p.Images[0].Ref)
		if err != nil {
			t.Fatal(err)
		}
		disk, err := io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
		if err != nil {
			t.Fatal(err)
		}
		i.Close()
		f.Disks[p.ID] = sumOf(disk)
	}
	return f
}

func sumOf(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

// TestGoldenOpensWithEveryKey opens golden-1 with its paper key and its age identity.
func TestGoldenOpensWithEveryKey(t *testing.T) {
	b := must(file.Open(filepath.Join(golden, "repo")))
	paper := must(ParsePaperKey(string(mustRead(t, filepath.Join(golden, "paper.txt")))))
	for _, by := range []Opener{paper, must(LoadIdentity(filepath.Join(golden, "identity.txt")))} {
		if report, err := Drill(t.Context(), b, by); err != nil || report.FrameBytes == 0 || report.Wrapping.Problem != "" {
			t.Errorf("%v: %+v, %v", by, report, err)
		}
	}
}

// writeGolden makes golden-1 anew.
func writeGolden(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	b := must(file.Create(filepath.Join(golden, "repo")))
	key := must(NewKeyFile(filepath.Join(golden, "key")))
	if err := Create(t.Context(), b, key, CreateOptions{Name: "golden-1"}); err != nil {
		t.Fatal(err)
	}
	g := &rig{t: t, b: b, key: key}
	rnd := rand.New(rand.NewPCG(2, 2))
	disk := make([]byte, 5*testChunk+1000)
	for i := range disk[:3*testChunk] {
		disk[i] = "compressible "[i%13] + byte(i>>12)
	}
	fill(rnd, disk[4*testChunk:])
	var parent *ImageRef
	before, first := disk, ""
	for i, o := range []struct {
		how    pack.Compression
		cipher seal.Cipher
	}{{pack.Standard, seal.AES256GCM}, {pack.Fast, seal.XChaCha20}, {pack.Off, seal.AES256GCM}} {
		g.repo = must(Open(context.Background(), b, key, Options{Cipher: o.cipher, Compression: string(o.how)}))
		next := bytes.Clone(before)
		copy(next[70000:], bytes.Repeat([]byte{byte(i), 1, 2, 3}, 500))
		copy(next[4*testChunk+5000:], bytes.Repeat([]byte{byte(i), 4, 5}, 2000))
		p := g.backup(next, before, parent)
		before, parent = next, &p.Images[0].Ref
		if first == "" {
			first = p.ID
		} else if o.how == pack.Fast {
			if err := g.repo.Prune(t.Context(), first); err != nil {
				t.Fatal(err)
			}
		}
		g.close()
	}
	path, _, recipient := newIdentity(t, false)
	must(AddRecipient(t.Context(), b, key, recipient, "escrow"))
	mustWrite(t, filepath.Join(golden, "identity.txt"), mustRead(t, path))
	paper, _, err := AddPaperKey(t.Context(), b, key, "safe")
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(golden, "paper.txt"), []byte(must(paper.Text())))
	g.repo = must(Open(t.Context(), b, key, Options{ReadOnly: true}))
	f := facts(t, g.repo)
	g.close()
	for _, name := range []string{reserveName, epochFolder, leaseFolder, formatName, readerName, "lock", "tmp"} { // of no interest to readers
		if err := os.RemoveAll(filepath.Join(golden, "repo", name)); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, filepath.Join(golden, "facts.json"), must(json.Marshal(f)))
}
