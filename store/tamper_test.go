package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// files returns the objects of a repository under a folder.
func (g *rig) files(folder string) []string {
	g.t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(g.dir, folder), func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return out
}

// reader opens the repository for reading beside the owner and reads everything; any error is returned.
func (g *rig) readAll() error {
	b, err := file.Open(g.dir)
	if err != nil {
		return err
	}
	defer b.Close()
	r, err := Open(context.Background(), b, g.key, Options{ReadOnly: true, Workers: 1})
	if err != nil {
		return err
	}
	defer r.Close()
	points, err := r.RestorePoints(context.Background())
	if err != nil {
		return err
	}
	for _, p := range points {
		if _, err := r.Verify(context.Background(), p.ID, nil); err != nil {
			return err
		}
	}
	report, err := r.Check(context.Background())
	if err == nil && len(report.Problems) > 0 {
		err = fault.New(fault.Corrupt, "check", "", "%q", report.Problems)
	}
	return err
}

func smallRig(t *testing.T) (*rig, RestorePoint) {
	g := newRig(t)
	disk := make([]byte, 3*testChunk)
	rnd := rand.New(rand.NewPCG(5, 5))
	fill(rnd, disk[:8192])
	fill(rnd, disk[testChunk:testChunk+100])
	p := g.backup(disk, nil, nil)
	if err := g.readAll(); err != nil {
		t.Fatal(err)
	}
	return g, p
}

func TestFlipsAreDetected(t *testing.T) {
	g, _ := smallRig(t)
	flips := 0
	for _, folder := range []string{"packs", "manifests", "config", "keys"} {
		for _, name := range g.files(folder) {
			good, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			step := 1 + len(good)/60 // the tests of pack and manifest flip every byte
			for at := 0; at < len(good); at += step {
				if folder == "packs" && at >= len(good)-80+32 && at < len(good)-80+64 {
					continue // the stored-bytes hash serves Scrub alone, and its test
				}
				bad := bytes.Clone(good)
				bad[at] ^= 1 << (at % 8)
				if err := os.WriteFile(name, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := g.readAll(); err == nil && !sameJSON(good, bad) {
					t.Errorf("%s: flip at %d of %d is not detected", name, at, len(good))
				}
				flips++
			}
			if err := os.WriteFile(name, good, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("%d flips", flips)
	if err := g.readAll(); err != nil {
		t.Errorf("after putting everything back: %v", err)
	}
}

func TestPackRemovedBehindTheOwnerIsDamage(t *testing.T) {
	g, p := smallRig(t)
	g.reopen()
	for _, name := range g.files("packs") {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := g.b.Close(); err != nil { // files kept open would still be read
		t.Fatal(err)
	}
	if report, err := g.repo.Verify(t.Context(), p.ID, nil); fault.KindOf(err) != fault.Corrupt || len(report.Damage) == 0 {
		t.Errorf("Verify = %+v, %v, want damage", report, err)
	}
	if _, err := g.repo.Document(t.Context(), p.ID, "domain.xml"); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("Document: %v, want corrupt", err)
	}
}

// sameJSON reports whether a flip left the meaning of a JSON object as it was: the case of a hex digit or of a name.
func sameJSON(a, b []byte) bool { return bytes.EqualFold(a, b) }

func TestScrubNeedsNoKey(t *testing.T) {
	g, _ := smallRig(t)
	if report, err := Scrub(t.Context(), g.b); err != nil || report.Packs != 2 || len(report.Problems) > 0 {
		t.Fatalf("Scrub = %+v, %v", report, err)
	}
	for i, name := range g.files("packs") {
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)*(i+1)/4] ^= 0x10
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if report, err := Scrub(t.Context(), g.b); err != nil || len(report.Problems) != 1 {
			t.Errorf("Scrub of a flipped pack = %+v, %v", report, err)
		}
		if err := os.WriteFile(name, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTruncatedAndSwappedAreRefused(t *testing.T) {
	g, p := smallRig(t)
	q := g.backup([]byte("another disk, to be swapped with"), nil, nil)
	other, _ := smallRig(t)
	packs, manifests := g.files("packs"), g.files("manifests")
	foreign := other.files("manifests")[0]
	tests := []struct {
		name, file string
		with       func([]byte) []byte
	}{
		{"empty pack", packs[0], func([]byte) []byte { return nil }},
		{"pack cut by one byte", packs[1], func(b []byte) []byte { return b[:len(b)-1] }},
		{"pack cut in half", packs[1], func(b []byte) []byte { return b[:len(b)/2] }},
		{"pack with a byte more", packs[0], func(b []byte) []byte { return append(b, 0) }},
		{"another pack in its place", packs[0], func([]byte) []byte { return mustRead(t, packs[1]) }},
		{"manifest of another point replayed", manifests[0], func([]byte) []byte { return mustRead(t, manifests[1]) }},
		{"manifest of another repository", manifests[0], func([]byte) []byte { return mustRead(t, foreign) }},
		{"empty manifest", manifests[0], func([]byte) []byte { return nil }},
		{"config of another repository", filepath.Join(g.dir, "config"), func([]byte) []byte { return mustRead(t, filepath.Join(other.dir, "config")) }},
	}
	for _, tt := range tests {
		good := mustRead(t, tt.file)
		if err := os.WriteFile(tt.file, tt.with(bytes.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		err := g.readAll()
		if kind := fault.KindOf(err); err == nil || (kind != fault.Corrupt && kind != fault.Denied) {
			t.Errorf("%s: %v (%v), want corrupt", tt.name, err, kind)
		}
		if err := os.WriteFile(tt.file, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g.reopen()
	g.mustHold(q, []byte("another disk, to be swapped with"))
	_ = p
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOneDamagedPointDoesNotHideTheOthers(t *testing.T) {
	g, _ := smallRig(t)
	p := g.backup([]byte("good"), nil, nil)
	bad := g.files("manifests")[0]
	if strings.HasSuffix(bad, p.ID) {
		t.Fatal("the first file is the newest point")
	}
	if err := os.WriteFile(bad, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	g.reopen()
	points, err := g.repo.RestorePoints(t.Context())
	if fault.KindOf(err) != fault.Corrupt || len(points) != 1 || points[0].ID != p.ID {
		t.Errorf("RestorePoints = %v, %v", points, err)
	}
	// Not knowing what the damaged one needs, a collect deletes nothing.
	before := len(g.files("packs"))
	if _, err := g.repo.Collect(t.Context(), CollectOptions{}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("Collect: %v, want corrupt", err)
	}
	if after := len(g.files("packs")); after != before {
		t.Errorf("Collect left %d of %d packs", after, before)
	}
	// Pruning it by hand is the way out.
	if err := g.repo.Prune(t.Context(), filepath.Base(bad)); err != nil {
		t.Fatal(err)
	}
	if report, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil || report.PacksFreed == 0 {
		t.Errorf("Collect = %+v, %v", report, err)
	}
	g.mustHold(p, []byte("good"))
}

func TestOpenErrorsAreInPlainWords(t *testing.T) {
	g, _ := smallRig(t)
	g.close()
	otherKey, err := NewKeyFile(filepath.Join(t.TempDir(), "other"))
	if err != nil {
		t.Fatal(err)
	}
	empty, err := file.Create(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	check := func(name string, err error, kind fault.Kind, words string) {
		t.Helper()
		meaning, advice := fault.Explanation(err)
		if err == nil || fault.KindOf(err) != kind || !strings.Contains(meaning, words) || advice == "" {
			t.Errorf("%s: %v (%v), meaning %q, advice %q", name, err, fault.KindOf(err), meaning, advice)
		}
	}
	_, err = Open(t.Context(), g.b, otherKey, Options{})
	check("wrong key", err, fault.Denied, "does not open this repository")
	_, err = Open(t.Context(), empty, g.key, Options{})
	check("no repository", err, fault.NotFound, "holds no repository")
	if err := Create(t.Context(), g.b, g.key, CreateOptions{}); fault.KindOf(err) != fault.Exists {
		t.Errorf("Create over a repository: %v, want exists", err)
	}
	_, err = LoadKeyFile(filepath.Join(t.TempDir(), "none"))
	check("no key file", err, fault.NotFound, "no backup can be written")
	broken := filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(broken, []byte(strings.Replace(g.key.text(), "a", "b", 1)+"x"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = LoadKeyFile(broken)
	check("broken key file", err, fault.Invalid, "whole key")
	config := filepath.Join(g.dir, "config")
	newer := bytes.Replace(mustRead(t, config), []byte(`"format":1`), []byte(`"format":2`), 1)
	if err := os.WriteFile(config, newer, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), g.b, g.key, Options{})
	check("newer", err, fault.Unsupported, "newer version")
	g.repo = nil
}

func TestKeyFileRoundTripAndSecrecy(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	k, err := NewKeyFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := LoadKeyFile(path)
	if err != nil || got != k {
		t.Errorf("LoadKeyFile = %v, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o400 {
		t.Errorf("key file: %v, %v", info.Mode(), err)
	}
	if _, err := NewKeyFile(path); fault.KindOf(err) != fault.Exists {
		t.Errorf("second NewKeyFile: %v, want exists", err)
	}
	//lint:ignore SA9005 that nothing comes out is what is tested
	encoded, err := json.Marshal(k)
	if err != nil {
		t.Fatal(err)
	}
	paper := PaperKey{key: k}
	bytesOf := fmt.Sprintf("%d", k.secret[:4])
	for _, s := range []string{
		k.String(), k.GoString(), k.LogValue().String(), string(encoded), fmt.Sprintf("%d %x %+v %#v", k, k, k, k),
		fmt.Sprintf("%d %x %+v %#v", paper, paper, paper, paper),
	} {
		if strings.Contains(s, k.text()[12:40]) || strings.Contains(s, bytesOf[1:len(bytesOf)-1]) {
			t.Errorf("%q tells the secret", s)
		}
	}
}
