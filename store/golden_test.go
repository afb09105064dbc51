package store

import (
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
)

var update = flag.Bool("update", false, "rewrite golden files and the vectors in FORMAT.md")

// goldenFacts is what the golden repository must be found to say.
type goldenFacts struct {
	Points []RestorePoint    `json:"points"`
	Disks  map[string]string `json:"disks"` // SHA-256 by restore point
}

const golden = "testdata/golden-1"

// TestGoldenRepository opens the repository of format version 1, which every later version must.
func TestGoldenRepository(t *testing.T) {
	if *update {
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
		h := sha256.New()
		if _, err := io.Copy(h, io.NewSectionReader(i, 0, i.Size())); err != nil {
			t.Fatal(err)
		}
		i.Close()
		f.Disks[p.ID] = hex.EncodeToString(h.Sum(nil))
	}
	return f
}

// writeGolden makes the golden repository anew: only for a format that was never released.
func writeGolden(t *testing.T) {
	t.Helper()
	if err := os.RemoveAll(golden); err != nil {
		t.Fatal(err)
	}
	b, err := file.Create(filepath.Join(golden, "repo"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKeyFile(filepath.Join(golden, "key"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), b, key, CreateOptions{Name: "golden"}); err != nil {
		t.Fatal(err)
	}
	r, err := Open(context.Background(), b, key, Options{})
	if err != nil {
		t.Fatal(err)
	}
	g := &rig{t: t, b: b, key: key, repo: r}
	rnd := rand.New(rand.NewPCG(1, 1))
	disk := make([]byte, 7*testChunk+1000)
	fill(rnd, disk[:testChunk])
	for i := 3 * testChunk; i < 5*testChunk; i++ {
		disk[i] = "compressible "[i%13]
	}
	fill(rnd, disk[7*testChunk:])
	before := append([]byte(nil), disk...)
	p := g.backup(disk, nil, nil)
	fill(rnd, disk[8192:9000])
	clear(disk[3*testChunk : 3*testChunk+4096])
	g.backup(disk, before, &p.Images[0].Ref)
	f := facts(t, r)
	g.close()
	for _, name := range []string{reserveName, epochFolder, leaseFolder, "lock", "tmp"} { // of no interest to readers
		if err := os.RemoveAll(filepath.Join(golden, "repo", name)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(golden, "facts.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
}
