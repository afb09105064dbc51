package store

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/campaign/memory"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// savedTexts reads all versions of an owner, the newest first.
func savedTexts(t *testing.T, s *Saves, owner string) (out []string) {
	t.Helper()
	for _, v := range must(s.Versions(t.Context(), s.OwnerHash(owner))) {
		out = append(out, string(must(s.Text(t.Context(), v))))
	}
	return out
}

func TestSavedVersions(t *testing.T) {
	ctx := t.Context()
	g, p := smallRig(t)
	for _, text := range []string{"one", "", "three"} {
		if v, err := g.repo.Save(ctx, "a", []byte(text)); err != nil || v.Bytes == 0 {
			t.Fatalf("Save = %+v, %v", v, err)
		}
	}
	must(g.repo.Save(ctx, "b", []byte("another's")))
	check := func(want ...string) {
		t.Helper()
		if got := savedTexts(t, g.repo.Saves(), "a"); strings.Join(got, ",") != strings.Join(want, ",") {
			t.Errorf("versions %q, want %q", got, want)
		}
	}
	check("three", "", "one")

	// What restore points need has nothing to do with them, in either direction.
	if err := g.repo.Prune(ctx, p.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := g.repo.Collect(ctx, CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	g.reopen()
	check("three", "", "one")
	if report := must(g.repo.Check(ctx)); len(report.Problems) > 0 {
		t.Errorf("Check: %q", report.Problems)
	}
	if report := must(Scrub(ctx, g.b)); len(report.Problems) > 0 {
		t.Errorf("Scrub: %q", report.Problems)
	}

	// Who has the key reads beside the owner, and without an index.
	other := must(file.Open(g.dir))
	defer other.Close()
	s := must(OpenSaves(ctx, other, g.key))
	if got := savedTexts(t, s, "b"); len(got) != 1 || got[0] != "another's" {
		t.Errorf("beside the owner: %q", got)
	}
	if _, err := OpenSaves(ctx, other, newKey(t)); fault.KindOf(err) != fault.Denied {
		t.Errorf("with another key: %v", err)
	}

	versions := must(g.repo.Saves().Versions(ctx, g.repo.Saves().OwnerHash("a")))
	if err := g.repo.RemoveSaved(ctx, versions[1:]...); err != nil {
		t.Fatal(err)
	}
	check("three")
	if err := g.repo.RemoveSaved(ctx, versions...); err != nil { // again
		t.Fatal(err)
	}
	check()
}

func TestSavedVersionsGoOnWhenTheClockIsPutBack(t *testing.T) {
	g, _ := smallRig(t)
	s := g.repo.Saves()
	key := s.ownerKey("a")
	future := ulid.MustNew(ulid.MaxTime()-10, strings.NewReader("0123456789"))
	if err := blob.Put(t.Context(), g.b, savedName(key[:savedOwner], future), must(g.repo.encodeSaved(key, future, seal.NewSalt(), []byte("from the future")))); err != nil {
		t.Fatal(err)
	}
	must(g.repo.Save(t.Context(), "a", []byte("now")))
	if got := savedTexts(t, s, "a"); len(got) != 2 || got[0] != "now" {
		t.Errorf("the newest is not first: %q", got)
	}
}

func TestSaveThatFailsLeavesTheVersionBefore(t *testing.T) {
	g := newRig(t)
	must(g.repo.Save(t.Context(), "a", []byte("before")))
	g.close()
	failed := 0
	g.b = blobtest.Fails(g.b, func(op, name string) error {
		if op == "commit" && strings.HasPrefix(name, savedFolder) {
			failed++
			return errors.New("planted")
		}
		return nil
	})
	g.open()
	if _, err := g.repo.Save(t.Context(), "a", []byte("after")); err == nil || failed != 1 {
		t.Fatalf("Save = %v with %d faults", err, failed)
	}
	if got := savedTexts(t, g.repo.Saves(), "a"); len(got) != 1 || got[0] != "before" {
		t.Errorf("versions %q", got)
	}
}

func TestSaveNeedsTheOwner(t *testing.T) {
	g := newRig(t)
	v := must(g.repo.Save(t.Context(), "a", []byte("mine")))
	if err := blob.Put(t.Context(), g.b, epochName(g.repo.epoch+1), []byte("{}")); err != nil {
		t.Fatal(err)
	}
	if _, err := g.repo.Save(t.Context(), "a", []byte("too late")); fault.KindOf(err) != fault.Conflict {
		t.Errorf("Save by an owner that was overtaken: %v", err)
	}
	if err := g.repo.RemoveSaved(t.Context(), v); fault.KindOf(err) != fault.Conflict {
		t.Errorf("RemoveSaved by an owner that was overtaken: %v", err)
	}
	if got := savedTexts(t, g.repo.Saves(), "a"); len(got) != 1 {
		t.Errorf("versions %q", got)
	}
}

func TestSavedIsProven(t *testing.T) {
	ctx := t.Context()
	g := newRig(t)
	must(g.repo.Save(ctx, "a", []byte("one")))
	must(g.repo.Save(ctx, "b", []byte("two")))
	names := g.files("saved")
	if len(names) != 2 {
		t.Fatalf("objects %q", names)
	}
	one, two := mustRead(t, names[0]), mustRead(t, names[1])
	bad := 0
	finds := func(what string) {
		t.Helper()
		bad++
		if report := must(g.repo.Check(ctx)); len(report.Problems) == 0 {
			t.Errorf("Check does not find %s", what)
		}
	}
	for at := 0; at < len(one); at++ {
		flipped := bytes.Clone(one)
		flipped[at] ^= 1 << (at % 8)
		if sameJSON(one, flipped) {
			continue
		}
		overwrite(t, names[0], flipped)
		finds("a flip")
		if report := must(Scrub(ctx, g.b)); len(report.Problems) == 0 {
			t.Errorf("Scrub does not find a flip at %d", at)
		}
	}
	overwrite(t, names[0], two) // under another's name
	finds("a version under another name")
	overwrite(t, names[0], one)
	older := filepath.Join(filepath.Dir(names[0]), filepath.Base(names[0])[:savedOwner]+"-7zzzzzzzzzzzzzzzzzzzzzzzzz")
	mustWrite(t, older, one) // passed off as a newer one
	finds("a version passed off as a newer one")
	v := must(g.repo.Save(ctx, "a", []byte("three"))) // which does not keep a newer one from being written
	if got := must(g.repo.Saves().Text(ctx, v)); string(got) != "three" {
		t.Errorf("saved %q", got)
	}
	t.Logf("%d of them", bad)
	out, err := reader(t, keyFileOf(t, g.key), g.dir, "verify")
	if err != nil {
		t.Errorf("the second reader is bothered by what was saved: %s%v", out, err)
	}
}

func keyFileOf(t *testing.T, k Key) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	mustWrite(t, path, []byte(k.text()+"\n"))
	return path
}

func overwrite(t *testing.T, path string, p []byte) {
	t.Helper()
	if err := os.WriteFile(path, p, 0o600); err != nil {
		t.Fatal(err)
	}
}

// FuzzSaved gives anything as an object, as it is and signed: unsigned none counts, and a signed one opens only if it was sealed
// for its repository and name.
func FuzzSaved(f *testing.F) {
	ctx := context.Background()
	m := memory.New("fuzz")
	if err := Create(ctx, m, Key{}, CreateOptions{Name: "fuzz"}); err != nil {
		f.Fatal(err)
	}
	config, id, keys, err := loadConfig(ctx, m, Key{})
	if err != nil {
		f.Fatal(err)
	}
	r := &Repository{b: m, config: config, id: id, keys: keys, hasher: chunk.NewHasher(keys.IDs), o: Options{Cipher: seal.AES256GCM}}
	s := r.Saves()
	key, at := s.ownerKey("a"), ulid.MustParse("01KB0000000000000000000000")
	object, err := r.encodeSaved(key, at, seal.Salt{}, []byte("text"))
	if err != nil {
		f.Fatal(err)
	}
	var good savedFile
	if err := json.Unmarshal(object, &good); err != nil {
		f.Fatal(err)
	}
	v, _ := parseSavedName(blob.Info{Name: savedName(key[:savedOwner], at)})
	if text, err := s.parse(v, object); err != nil || string(text) != "text" {
		f.Fatalf("parse = %q, %v", text, err)
	}
	private := ed25519.NewKeyFromSeed(keys.Seed[:])
	boundary.Add(f, good.Body, boundary.Text(good.Body))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 2*textFactor, func() {
			if _, err := s.parse(v, p); err == nil {
				t.Error("an unsigned object counts")
			}
			text, err := json.Marshal(json.RawMessage(p)) // as it is in the file
			if err != nil {
				return // no JSON
			}
			raw, err := json.Marshal(savedFile{Body: text, Signature: hex.EncodeToString(ed25519.Sign(private, append([]byte(signSaved), text...)))})
			if err != nil {
				t.Fatal(err)
			}
			if got, err := s.parse(v, raw); err == nil && string(got) != "text" {
				t.Errorf("accepted %q", got)
			}
		})
	})
}
