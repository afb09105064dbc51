package store

import (
	"math/rand/v2"
	"os"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// TestEitherCipherIsRead writes one restore point with each cipher into one repository.
func TestEitherCipherIsRead(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(8, 8))
	disk := randomDisk(rnd, 5*testChunk)
	before, parent := disk, (*ImageRef)(nil)
	for _, c := range []seal.Cipher{seal.XChaCha20, seal.AES256GCM, seal.XChaCha20} {
		g.close()
		r, err := Open(t.Context(), g.b, g.key, Options{Cipher: c})
		if err != nil {
			t.Fatal(err)
		}
		g.repo = r
		next := append([]byte(nil), disk...)
		fill(rnd, next[5000:6000])
		p := g.backup(next, before, parent)
		g.mustHold(p, next)
		disk, before, parent = next, next, &p.Images[0].Ref
		manifest := mustRead(t, g.dir+"/manifests/"+p.ID)
		if got := seal.Cipher(manifest[12]); got != c {
			t.Errorf("manifest has %v, want %v", got, c)
		}
	}
	count := map[seal.Cipher]int{}
	for _, name := range g.files("packs") {
		h, err := pack.ParseHeader(mustRead(t, name))
		if err != nil {
			t.Fatal(err)
		}
		count[h.Cipher]++
	}
	if count[seal.AES256GCM] < 2 || count[seal.XChaCha20] < 3 {
		t.Errorf("packs by cipher: %v", count)
	}
	if err := g.readAll(); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), g.b, g.key, Options{Cipher: 3, ReadOnly: true}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Open with cipher 3: %v, want invalid", err)
	}
}

// TestNoncesOfRealPacks: a subkey is unique by its salt, and each frame opens under its own number only.
func TestNoncesOfRealPacks(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(9, 9))
	for range 4 {
		g.backup(randomDisk(rnd, 40*testChunk), nil, nil)
	}
	salts, frames := map[seal.Salt]bool{}, 0
	unique := func(salt seal.Salt) {
		if salts[salt] || salt == (seal.Salt{}) {
			t.Errorf("salt %x repeats", salt)
		}
		salts[salt] = true
	}
	for _, name := range g.files("manifests") {
		unique(seal.Salt(mustRead(t, name)[56:88]))
	}
	for _, p := range g.repo.idx.Packs() {
		rd, err := g.repo.openPack(t.Context(), p.ID, p.Size)
		if err != nil {
			t.Fatal(err)
		}
		h := rd.Directory().Header
		unique(h.Salt)
		box, err := seal.NewCipherBox(h.Cipher, g.repo.keys.Data, h.KeyID, pack.Version, h.Repository, h.ID, h.Salt)
		if err != nil {
			t.Fatal(err)
		}
		raw := mustRead(t, g.dir+"/"+pack.Name(p.ID))
		for i, f := range rd.Directory().Frames {
			frames++
			for j := range rd.Directory().Frames {
				detail := uint64(f.Codec)<<32 | uint64(f.Plain)
				_, err := box.Open(nil, seal.Frame, uint64(j), detail, raw[f.Offset:f.Offset+f.Stored])
				if (err == nil) != (i == j) {
					t.Errorf("frame %d of %s under number %d: %v", i, pack.Name(p.ID), j, err)
				}
			}
		}
	}
	if frames < 20 || len(salts) < 12 {
		t.Errorf("only %d frames and %d salts were looked at", frames, len(salts))
	}
}

func TestScrubOfManifestsNeedsNoKey(t *testing.T) {
	g, _ := smallRig(t)
	name := g.files("manifests")[0]
	good := mustRead(t, name)
	if report, err := Scrub(t.Context(), g.b); err != nil || report.RestorePoints != 1 || len(report.Problems)+len(report.Notes) > 0 {
		t.Fatalf("Scrub = %+v, %v", report, err)
	}
	for at := range good {
		bad := append([]byte(nil), good...)
		bad[at] ^= 1 << (at % 8)
		mustWrite(t, name, bad)
		if report, err := Scrub(t.Context(), g.b); err != nil || len(report.Problems) != 1 {
			t.Fatalf("Scrub of a manifest with a flip at %d = %+v, %v", at, report, err)
		}
	}
	// The hash cannot be taken away.
	bad := append([]byte(nil), good...)
	clear(bad[92:124])
	mustWrite(t, name, bad)
	if report, err := Scrub(t.Context(), g.b); err != nil || len(report.Problems) != 1 {
		t.Errorf("Scrub without hash = %+v, %v", report, err)
	}
	if err := g.readAll(); err == nil {
		t.Error("a manifest whose hash was taken away is accepted")
	}
	mustWrite(t, name, nil)
	if report, err := Scrub(t.Context(), g.b); err != nil || len(report.Problems) != 1 {
		t.Errorf("Scrub of an empty manifest = %+v, %v", report, err)
	}
	mustWrite(t, name, good)
}

func mustWrite(t *testing.T, name string, p []byte) {
	t.Helper()
	if err := os.WriteFile(name, p, 0o600); err != nil {
		t.Fatal(err)
	}
}
