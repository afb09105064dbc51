package store

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
)

// keepIndex opens the rig's repository with an index on disk, or opens it again.
func (g *rig) keepIndex() {
	g.t.Helper()
	g.close()
	repo, err := Open(g.t.Context(), g.b, g.key, Options{IndexDir: filepath.Join(filepath.Dir(g.dir), "index")})
	if err != nil {
		g.t.Fatal(err)
	}
	g.repo = repo
}

// verifies reports whether a restore point is whole; any other failure ends the test.
func (g *rig) verifies(p RestorePoint) bool {
	g.t.Helper()
	report, err := g.repo.Verify(context.Background(), p.ID, nil)
	if err != nil && (fault.KindOf(err) != fault.Corrupt || len(report.Damage) == 0) {
		g.t.Fatalf("Verify = %+v, %v", report, err)
	}
	return err == nil
}

// flipFrame changes a byte of a pack's first frame in place.
func flipFrame(name string) error { return flipAt(name, 140) }

func flipAt(name string, at int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 0x40
	_, err = f.WriteAt(b[:], at)
	return err
}

var damages = map[string]func(name string) error{
	"flipped":   flipFrame,
	"truncated": func(name string) error { return os.Truncate(name, 3000) },
	"empty":     func(name string) error { return os.Truncate(name, 0) },
	"deleted":   os.Remove,
}

func healDisk() []byte {
	disk := make([]byte, 40*testChunk+777)
	fill(rand.New(rand.NewPCG(22, 11)), disk)
	return disk
}

// A full backup after a Verify that found damage stores what is damaged again, which heals the old point too.
func TestFullBackupHealsDamage(t *testing.T) {
	for name, damage := range damages {
		for _, hit := range [][]int{{0}, {1}, {0, 1}} {
			for _, reopen := range []bool{false, true} {
				g := newRig(t)
				g.keepIndex()
				disk := healDisk()
				old := g.backup(disk, nil, nil)
				if !g.verifies(old) { // fills the caches with what is good
					t.Fatal("the first point is damaged")
				}
				packs := g.files("packs")
				for _, i := range hit {
					if err := damage(packs[i]); err != nil {
						t.Fatal(err)
					}
				}
				if g.verifies(old) {
					t.Fatalf("%s: packs %v: damage is not found", name, hit)
				}
				if reopen {
					g.keepIndex()
				}
				healed := g.backup(disk, nil, nil)
				if !g.verifies(healed) || !g.verifies(old) {
					t.Errorf("%s: packs %v, reopen %v: the new or the old point is damaged", name, hit, reopen)
					continue
				}
				if _, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil {
					t.Errorf("%s: Collect: %v", name, err)
				}
				g.keepIndex()
				g.mustHold(healed, disk)
				g.mustHold(old, disk)
				if err := g.repo.Prune(t.Context(), old.ID); err != nil {
					t.Fatal(err)
				}
				if _, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil {
					t.Errorf("%s: Collect after Prune: %v", name, err)
				}
				g.mustHold(healed, disk)
			}
		}
	}
}

// A session that relied on a pack which is not there any more says so; the next one stores it again.
func TestPackLostWhileOpenFailsThePublish(t *testing.T) {
	for name, damage := range damages {
		if name == "flipped" {
			continue // its size is right: Verify finds it
		}
		for pack := range 2 {
			g := newRig(t)
			disk := healDisk()
			old := g.backup(disk, nil, nil)
			if err := damage(g.files("packs")[pack]); err != nil {
				t.Fatal(err)
			}
			s := g.begin()
			ref, _ := g.write(s, disk, nil, nil)
			_, err := s.Publish(t.Context(), Manifest{Images: []NamedImage{{Name: "vda", Ref: ref}}, Documents: []Document{{Name: "domain.xml", Data: []byte("<domain/>")}}})
			if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Corrupt || meaning == "" || advice == "" {
				t.Errorf("%s: pack %d: Publish: %v, want corrupt, explained", name, pack, err)
			}
			if err := s.Abort(t.Context()); err != nil {
				t.Fatal(err)
			}
			again := g.backup(disk, nil, nil)
			g.mustHold(again, disk)
			g.mustHold(old, disk)
		}
	}
}

// Damage that is found while a session runs counts for what the session has relied on before.
func TestDamageFoundDuringASessionFailsThePublish(t *testing.T) {
	g := newRig(t)
	disk := healDisk()
	old := g.backup(disk, nil, nil)
	s := g.begin()
	ref, _ := g.write(s, disk, nil, nil)
	if err := flipFrame(g.files("packs")[0]); err != nil {
		t.Fatal(err)
	}
	if g.verifies(old) {
		t.Fatal("damage is not found")
	}
	if _, err := s.Publish(t.Context(), Manifest{Images: []NamedImage{{Name: "vda", Ref: ref}}}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("Publish: %v, want corrupt", err)
	}
}

// No chunk is stored as references to blocks of a suspect pack, and a good chunk that refers there is stored again.
func TestReferencesAvoidSuspectPacks(t *testing.T) {
	g := newRig(t)
	first := healDisk()
	p1 := g.backup(first, nil, nil)
	before := g.files("packs")
	second := bytes.Clone(first)
	second[5] ^= 1
	p2 := g.backup(second, first, &p1.Images[0].Ref)
	for _, name := range before {
		if err := flipFrame(name); err != nil {
			t.Fatal(err)
		}
	}
	if g.verifies(p1) || g.verifies(p2) {
		t.Fatal("damage is not found")
	}
	third := bytes.Clone(second)
	third[9000] ^= 1
	s := g.begin()
	ref, stats := g.write(s, third, nil, nil)
	if stats.ChunksNew != stats.Chunks {
		t.Errorf("a full read stored %+v, want all", stats)
	}
	p3 := g.publish(s, ref)
	g.mustHold(p3, third)

	fourth := bytes.Clone(third)
	fourth[testChunk-1] ^= 1
	s = g.begin()
	ref, stats = g.write(s, fourth, third, &p3.Images[0].Ref)
	if stats.ChunksRefs != 1 {
		t.Errorf("an incremental on a good parent stored %+v, want references", stats)
	}
	g.mustHold(g.publish(s, ref), fourth)

	fifth := bytes.Clone(second)
	fifth[testChunk-1] ^= 2
	s = g.begin()
	w, err := s.NewImage(t.Context(), ImageOptions{SizeBytes: int64(len(fifth)), Parent: &p2.Images[0].Ref})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Write(t.Context(), 0, fifth); err != nil {
		t.Fatal(err)
	}
	if ref, err = w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if stats := w.Stats(); stats.ChunksNew != 1 || stats.ChunksRefs != 0 {
		t.Errorf("on a damaged parent: %+v, want one chunk stored whole", stats)
	}
	g.mustHold(g.publish(s, ref), fifth)
}

// A pack that a Verify reads as good again is relied on again.
func TestSuspectIsAcquitted(t *testing.T) {
	g := newRig(t)
	g.keepIndex()
	disk := healDisk()
	old := g.backup(disk, nil, nil)
	for _, name := range g.files("packs") {
		if err := flipFrame(name); err != nil {
			t.Fatal(err)
		}
	}
	if g.verifies(old) || !g.repo.idx.AnySuspect() {
		t.Fatal("damage is not found")
	}
	for _, name := range g.files("packs") {
		if err := flipFrame(name); err != nil {
			t.Fatal(err)
		}
	}
	g.keepIndex()
	if !g.repo.idx.AnySuspect() {
		t.Error("the marks are gone with the reopening")
	}
	if !g.verifies(old) || g.repo.idx.AnySuspect() {
		t.Errorf("after putting the bytes back: suspects %x", g.repo.idx.Suspects())
	}
	s := g.begin()
	ref, stats := g.write(s, disk, nil, nil)
	if stats.ChunksNew != 0 {
		t.Errorf("a good pack is not relied on: %+v", stats)
	}
	g.publish(s, ref)
}

// A file that was put back while the repository is open is found by the next Verify.
func TestPackPutBackWhileOpen(t *testing.T) {
	g := newRig(t)
	disk := healDisk()
	old := g.backup(disk, nil, nil)
	for _, name := range g.files("packs") {
		if err := os.Rename(name, name+".away"); err != nil {
			t.Fatal(err)
		}
	}
	if g.verifies(old) {
		t.Fatal("the loss is not found")
	}
	for _, name := range g.files("packs") {
		if err := os.Rename(name, name[:len(name)-len(".away")]); err != nil {
			t.Fatal(err)
		}
	}
	if !g.verifies(old) {
		t.Error("the file that was put back is not found")
	}
	g.mustHold(old, disk)
}

// Rot that a Verify could not reach, because the tree above it is damaged too, is found by the backup that heals.
func TestHiddenDamageIsFoundByTheNextBackup(t *testing.T) {
	g := newRig(t)
	disk := healDisk()
	old := g.backup(disk, nil, nil)
	for _, name := range g.files("packs") {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		at := info.Size() / 2 // of the data pack: so that good hits come before the bad one
		if info.Size() < testChunk {
			at = 140
		}
		if err := flipAt(name, at); err != nil {
			t.Fatal(err)
		}
	}
	if g.verifies(old) {
		t.Fatal("damage is not found")
	}
	s := g.begin()
	ref, stats := g.write(s, disk, nil, nil)
	if stats.ChunksNew == 0 || stats.ChunksNew == stats.Chunks {
		t.Errorf("stored %+v, want those that are damaged or come after them", stats)
	}
	g.mustHold(g.publish(s, ref), disk)
	g.mustHold(old, disk)
}

// A pack that is cut short and needed by no restore point goes to quarantine also while a session relies on it, which
// then cannot publish. Before, Heal did not mention it, and it stayed a problem of every check.
func TestHealClearsAwayWhatASessionReliesOn(t *testing.T) {
	g := newRig(t)
	ctx := t.Context()
	disk := healDisk()
	if err := g.repo.Prune(ctx, g.backup(disk, nil, nil).ID); err != nil {
		t.Fatal(err)
	}
	packs := g.files("packs")
	s := g.begin()
	ref, stats := g.write(s, disk, nil, nil)
	if stats.ChunksNew > 0 {
		t.Fatalf("the session does not rely on the packs: %+v", stats)
	}
	for _, name := range packs {
		if err := os.Truncate(name, 3000); err != nil {
			t.Fatal(err)
		}
	}
	report, err := g.repo.Heal(ctx, HealOptions{})
	if err != nil || len(report.Quarantined) != len(packs) || len(report.Damage) != len(packs) {
		t.Errorf("Heal = %+v, %v; want %d packs in quarantine", report, err, len(packs))
	}
	if _, err := s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "vda", Ref: ref}}}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("publish on packs that are gone: %v", err)
	}
	if err := s.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	if report, err := g.repo.Check(ctx); err != nil || len(report.Problems) > 0 {
		t.Errorf("Check = %+v, %v", report, err)
	}
	g.mustHold(g.backup(disk, nil, nil), disk)
}
