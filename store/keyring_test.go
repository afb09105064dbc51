package store

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

func newKey(t *testing.T) Key {
	t.Helper()
	return must(NewKeyFile(filepath.Join(t.TempDir(), "key")))
}

// newIdentity writes an age identity file and returns its path, its secret and its recipient.
func newIdentity(t *testing.T, hybrid bool) (path, secret, recipient string) {
	t.Helper()
	if hybrid {
		id := must(age.GenerateHybridIdentity())
		secret, recipient = id.String(), id.Recipient().String()
	} else {
		id := must(age.GenerateX25519Identity())
		secret, recipient = id.String(), id.Recipient().String()
	}
	path = filepath.Join(t.TempDir(), "identity")
	mustWrite(t, path, []byte("# created: today\n# public key: "+recipient+"\n"+secret+"\n"))
	return path, secret, recipient
}

// openers gives a repository one more key of each kind.
func openers(t *testing.T, b blob.Store, by Opener) map[string]Opener {
	t.Helper()
	all := map[string]Opener{"first": by}
	second := newKey(t)
	if w, err := AddKey(t.Context(), b, by, second, "spare"); err != nil || w.Key != second.Fingerprint() || w.Label != "spare" {
		t.Fatalf("AddKey = %+v, %v", w, err)
	}
	all["second"] = second
	for _, hybrid := range []bool{false, true} {
		path, _, recipient := newIdentity(t, hybrid)
		// Each is added by another one, so that every kind of opener adds.
		w, err := AddRecipient(t.Context(), b, all["second"], recipient+"\n", "escrow")
		if err != nil || w.Kind != "age" || w.Key != recipient {
			t.Fatalf("AddRecipient = %+v, %v", w, err)
		}
		all[fmt.Sprintf("age, hybrid %v", hybrid)] = must(LoadIdentity(path))
	}
	paper, w, err := AddPaperKey(t.Context(), b, all["age, hybrid false"], "safe")
	if err != nil || w.Kind != "paper" {
		t.Fatalf("AddPaperKey = %+v, %v", w, err)
	}
	all["paper"] = must(ParsePaperKey(must(paper.Text())))
	return all
}

func TestEveryKindOfKeyOpens(t *testing.T) {
	g, p := smallRig(t)
	for name, by := range openers(t, g.b, g.key) {
		r, err := Open(t.Context(), g.b, by, Options{ReadOnly: true})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := r.Verify(t.Context(), p.ID, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		report, err := Drill(t.Context(), g.b, by)
		if err != nil || report.RestorePoint != p.ID || report.Pack == "" || report.FrameBytes == 0 || report.Repository != g.repo.ID() {
			t.Errorf("%s: Drill = %+v, %v", name, report, err)
		}
	}
	list, err := Wrappings(t.Context(), g.b)
	if err != nil || len(list) != 5 {
		t.Fatalf("Wrappings = %v, %v", list, err)
	}
	for _, w := range list {
		if w.Problem != "" || w.Created.IsZero() {
			t.Errorf("%+v", w)
		}
	}
	if err := g.readAll(); err != nil {
		t.Error(err)
	}
}

func TestSameKeyTwiceIsRefused(t *testing.T) {
	g, _ := smallRig(t)
	_, _, recipient := newIdentity(t, false)
	if _, err := AddRecipient(t.Context(), g.b, g.key, recipient, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := AddRecipient(t.Context(), g.b, g.key, recipient, "again"); fault.KindOf(err) != fault.Exists {
		t.Errorf("second AddRecipient: %v, want exists", err)
	}
	if _, err := AddKey(t.Context(), g.b, g.key, g.key, "again"); fault.KindOf(err) != fault.Exists {
		t.Errorf("second AddKey: %v, want exists", err)
	}
	for _, bad := range []string{"", "age1", "age1pq1zzz", recipient[:20], strings.Replace(recipient, recipient[10:11], "b", 1)} {
		if _, err := AddRecipient(t.Context(), g.b, g.key, bad, ""); fault.KindOf(err) != fault.Invalid {
			t.Errorf("AddRecipient(%q): %v, want invalid", bad, err)
		}
	}
}

func TestWrongKeyIsToldWhichWouldDo(t *testing.T) {
	g, _ := smallRig(t)
	openers(t, g.b, g.key)
	path, _, _ := newIdentity(t, false)
	wrong := []Opener{newKey(t), must(LoadIdentity(path)), PaperKey{key: newKey(t)}}
	for _, by := range wrong {
		_, err := Open(t.Context(), g.b, by, Options{ReadOnly: true})
		_, advice := fault.Explanation(err)
		if fault.KindOf(err) != fault.Denied {
			t.Errorf("%v: %v, want denied", by, err)
		}
		for _, part := range []string{g.key.Fingerprint(), "age recipient age1", "(spare)", "(escrow)", "paper key", "(safe)"} {
			if !strings.Contains(advice, part) {
				t.Errorf("%v: advice %q does not name %q", by, advice, part)
			}
		}
		if _, err := Drill(t.Context(), g.b, by); fault.KindOf(err) != fault.Denied {
			t.Errorf("Drill with %v: %v, want denied", by, err)
		}
		if _, err := AddKey(t.Context(), g.b, by, newKey(t), ""); fault.KindOf(err) != fault.Denied {
			t.Errorf("AddKey with %v: %v, want denied", by, err)
		}
	}
}

func TestLastWrappingStays(t *testing.T) {
	g, _ := smallRig(t)
	list := must(Wrappings(t.Context(), g.b))
	if err := RemoveWrapping(t.Context(), g.b, g.key, list[0].ID); fault.KindOf(err) != fault.Conflict {
		t.Fatalf("RemoveWrapping of the only one: %v, want conflict", err)
	}
	all := openers(t, g.b, g.key)
	// Others open it, but the one who asks would not.
	if err := RemoveWrapping(t.Context(), g.b, g.key, list[0].ID); fault.KindOf(err) != fault.Conflict {
		t.Errorf("RemoveWrapping of one's own: %v, want conflict", err)
	}
	if err := RemoveWrapping(t.Context(), g.b, all["paper"], list[0].ID); err != nil {
		t.Error(err)
	}
	if _, err := Open(t.Context(), g.b, g.key, Options{ReadOnly: true}); fault.KindOf(err) != fault.Denied {
		t.Errorf("Open with a removed key: %v, want denied", err)
	}
	for _, id := range []string{list[0].ID, "", "../config", strings.ToUpper(list[0].ID)} {
		if err := RemoveWrapping(t.Context(), g.b, all["paper"], id); fault.KindOf(err) != fault.NotFound {
			t.Errorf("RemoveWrapping(%q): %v, want not found", id, err)
		}
	}
}

// Somebody removes a wrapping behind the back of whoever deletes another one.
func TestTwoWhoRemoveDoNotLockEverybodyOut(t *testing.T) {
	g, _ := smallRig(t)
	second := newKey(t)
	w := must(AddKey(t.Context(), g.b, g.key, second, ""))
	first := must(Wrappings(t.Context(), g.b))
	victim := ""
	for _, x := range first {
		if x.ID != w.ID {
			victim = x.ID
		}
	}
	raced := false
	b := blobtest.Fails(g.b, func(op, _ string) error {
		if op != "delete" || raced {
			return nil
		}
		raced = true
		return g.b.Delete(t.Context(), wrappingName(w.ID))
	})
	if err := RemoveWrapping(t.Context(), b, second, victim); fault.KindOf(err) != fault.Conflict {
		t.Errorf("RemoveWrapping: %v, want conflict", err)
	}
	if !raced {
		t.Error("nobody removed anything meanwhile")
	}
	if _, err := Drill(t.Context(), g.b, g.key); err != nil {
		t.Errorf("the wrapping was not put back: %v", err)
	}
}

// TestRotationSurvivesACrash cuts the power after every operation of a rotation.
func TestRotationSurvivesACrash(t *testing.T) {
	ctx := t.Context()
	rnd := rand.New(rand.NewPCG(seeded.Seed(t), 7))
	old, next := newKey(t), newKey(t)
	fsys := crashfs.New()
	if err := fsys.Mkdir("/disk"); err != nil {
		t.Fatal(err)
	}
	if err := fsys.SyncDir("/"); err != nil {
		t.Fatal(err)
	}
	b := must(file.CreateFS(fsys, "/disk/repo"))
	if err := Create(ctx, b, old, CreateOptions{ChunkBytes: chunk.MinBytes}); err != nil {
		t.Fatal(err)
	}
	r := must(Open(ctx, b, old, Options{}))
	must(crashBackup(ctx, r, bytes.Repeat([]byte("text "), 5000), nil))
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	begun := fsys.Ops()
	if err := RotateKey(ctx, b, old, next); err != nil {
		t.Fatal(err)
	}
	ended := fsys.Ops()
	states, both := 0, 0
	for disk := fsys.Disk(); ; {
		for n := 0; disk.At() >= begun && n < 4; n++ {
			states++
			c := must(file.OpenFS(disk.Crash(crashfs.Loss(min(n, 2)), rnd), "/disk/repo"))
			byOld, byNew := opens(ctx, c, old), opens(ctx, c, next)
			if !byOld && !byNew || disk.At() >= ended && (byOld || !byNew) {
				t.Fatalf("after operation %d of %d to %d: old opens %v, new opens %v", disk.At(), begun, ended, byOld, byNew)
			}
			if byOld && byNew {
				both++
			}
			if err := RotateKey(ctx, c, old, next); err != nil {
				t.Fatalf("operation %d: the rotation cannot be completed: %v", disk.At(), err)
			}
			if report, err := Drill(ctx, c, next); err != nil || report.Pack == "" || opens(ctx, c, old) {
				t.Fatalf("operation %d: after completing it: %+v, %v", disk.At(), report, err)
			}
		}
		if !disk.Step() {
			break
		}
	}
	if both == 0 || states < 20 {
		t.Errorf("%d states, in %d both keys open it", states, both)
	}
	t.Logf("%d states, in %d of them both keys open it", states, both)
	if err := RotateKey(ctx, b, next, next); fault.KindOf(err) != fault.Invalid {
		t.Errorf("rotation to itself: %v, want invalid", err)
	}
	if err := RotateKey(ctx, b, newKey(t), newKey(t)); fault.KindOf(err) != fault.Denied {
		t.Errorf("rotation by a stranger: %v, want denied", err)
	}
}

// forge writes a wrapping as somebody would who knows FORMAT.md but no key.
func forge(t *testing.T, g *rig, recipient string, keys *seal.KeySet, inside seal.ID) string {
	t.Helper()
	w, id := newWrapping(wrapByAge, recipient, "forged", g.repo.id, keys.ID)
	var sealed bytes.Buffer
	r, _, err := parseRecipient(recipient)
	if err != nil {
		t.Fatal(err)
	}
	out := must(age.Encrypt(&sealed, r))
	must(out.Write(agePlain(inside, id, keys)))
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	w.Sealed = hex.EncodeToString(sealed.Bytes())
	if err := putWrapping(t.Context(), g.b, &w, keys); err != nil {
		t.Fatal(err)
	}
	return wrappingName(w.ID)
}

func TestForgedWrappingHandsOutNoKeySet(t *testing.T) {
	g, p := smallRig(t)
	path, _, recipient := newIdentity(t, false)
	by := must(LoadIdentity(path))
	forged := forge(t, g, recipient, seal.NewKeySet(1), g.repo.id)
	if _, err := Open(t.Context(), g.b, by, Options{ReadOnly: true}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("Open by a forged wrapping: %v, want corrupt", err)
	}
	if report, err := g.repo.Check(t.Context()); err != nil || len(report.Problems) != 1 || !strings.Contains(report.Problems[0], forged) {
		t.Errorf("Check = %+v, %v", report, err)
	}
	// The forged one claims the recipient; that does not keep the true one out.
	if _, err := AddRecipient(t.Context(), g.b, g.key, recipient, "true"); err != nil {
		t.Fatal(err)
	}
	if report, err := Drill(t.Context(), g.b, by); err != nil || report.RestorePoint != p.ID || report.Wrapping.Label != "true" {
		t.Errorf("Drill = %+v, %v", report, err)
	}
	bad := 0
	for _, w := range must(Wrappings(t.Context(), g.b)) {
		if w.Problem == "" {
			continue
		}
		bad++
		if err := RemoveWrapping(t.Context(), g.b, by, w.ID); err != nil {
			t.Error(err)
		}
	}
	if err := g.readAll(); bad != 1 || err != nil {
		t.Errorf("%d forged; after removing: %v", bad, err)
	}
}

func TestWrappingsOfAnotherRepositoryAreRefused(t *testing.T) {
	g, _ := smallRig(t)
	other, _ := smallRig(t)
	path, _, recipient := newIdentity(t, false)
	identity := must(LoadIdentity(path))
	must(AddRecipient(t.Context(), other.b, other.key, recipient, ""))
	paper, _, err := AddPaperKey(t.Context(), other.b, other.key, "")
	if err != nil {
		t.Fatal(err)
	}
	replay := func(rewrite bool) {
		for _, name := range other.files("keys") {
			p := mustRead(t, name)
			if rewrite {
				p = bytes.ReplaceAll(p, []byte(other.repo.ID()), []byte(g.repo.ID()))
			}
			mustWrite(t, filepath.Join(g.dir, "keys", filepath.Base(name)), p)
		}
	}
	for _, rewrite := range []bool{false, true} {
		replay(rewrite)
		for _, by := range []Opener{other.key, identity, paper} {
			if _, err := Open(t.Context(), g.b, by, Options{ReadOnly: true}); fault.KindOf(err) != fault.Denied && fault.KindOf(err) != fault.Corrupt {
				t.Errorf("rewritten %v, %v: %v, want a refusal", rewrite, by, err)
			}
		}
		if err := g.repo.Close(); err != nil {
			t.Fatal(err)
		}
		g.open() // the true key still does
	}
	// The other repository's key set in a wrapping that is for this one.
	forge(t, g, recipient, other.repo.keys, g.repo.id)
	forge(t, g, recipient, other.repo.keys, other.repo.id)
	if _, err := Open(t.Context(), g.b, identity, Options{ReadOnly: true}); fault.KindOf(err) != fault.Corrupt {
		t.Errorf("key set of another repository: %v, want corrupt", err)
	}
}

func TestAlteredLabelsAreTold(t *testing.T) {
	g, _ := smallRig(t)
	w := must(AddKey(t.Context(), g.b, g.key, newKey(t), "first office"))
	name := filepath.Join(g.dir, wrappingName(w.ID))
	mustWrite(t, name, bytes.Replace(mustRead(t, name), []byte("first office"), []byte("other office"), 1))
	list := must(Wrappings(t.Context(), g.b))
	problems := 0
	for _, w := range list {
		if w.Problem != "" {
			problems++
		}
	}
	if problems != 1 || len(list) != 2 {
		t.Errorf("Wrappings = %+v", list)
	}
}

func TestDrillFindsWhatIsBroken(t *testing.T) {
	g, p := smallRig(t)
	manifest, packs := g.files("manifests")[0], g.files("packs")
	flip := func(name string, at int) func() {
		good := mustRead(t, name)
		bad := bytes.Clone(good)
		bad[at] ^= 1
		mustWrite(t, name, bad)
		return func() { mustWrite(t, name, good) }
	}
	tests := map[string]func() func(){
		"config":   func() func() { return flip(filepath.Join(g.dir, "config"), 40) },
		"manifest": func() func() { return flip(manifest, 200) },
		"frames of data": func() func() {
			for _, name := range packs {
				if h := must(pack.ParseHeader(mustRead(t, name))); h.Kind == pack.Data {
					return flip(name, pack.HeaderBytes+5)
				}
			}
			return nil
		},
	}
	for name, damage := range tests {
		undo := damage()
		if report, err := Drill(t.Context(), g.b, g.key); fault.KindOf(err) != fault.Corrupt {
			t.Errorf("damaged %s: %+v, %v, want corrupt", name, report, err)
		}
		undo()
	}
	if report, err := Drill(t.Context(), g.b, g.key); err != nil || report.RestorePoint != p.ID {
		t.Errorf("Drill = %+v, %v", report, err)
	}
	empty := newRig(t)
	if report, err := Drill(t.Context(), empty.b, empty.key); err != nil || report.RestorePoint != "" {
		t.Errorf("Drill of an empty repository = %+v, %v", report, err)
	}
}

func TestLoadKey(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "repo.key")
	k := must(NewKeyFile(path))
	t.Setenv("CAIRN_TEST_KEY", k.text()+"\n")
	t.Setenv("CAIRN_TEST_BAD", k.text()[:50])
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for _, source := range []string{path, "file:" + path, "env:CAIRN_TEST_KEY", "credential:repo.key"} {
		if got, err := LoadKey(t.Context(), source); err != nil || got != k {
			t.Errorf("LoadKey(%s) = %v, %v", source, got, err)
		}
	}
	tests := map[string]fault.Kind{
		"": fault.Invalid, "repo.key": fault.Invalid, k.text(): fault.Invalid, "file:": fault.Invalid, "vault:x": fault.Invalid,
		"env:CAIRN_TEST_NONE": fault.NotFound, "env:CAIRN_TEST_BAD": fault.Invalid, "file:" + path + "x": fault.NotFound,
		"credential:none": fault.NotFound, "credential:../" + filepath.Base(dir) + "/repo.key": fault.Invalid, "credential:..": fault.Invalid,
	}
	for source, want := range tests {
		_, err := LoadKey(t.Context(), source)
		if err == nil || fault.KindOf(err) != want {
			t.Errorf("LoadKey(%s): %v, want %v", source, err, want)
		}
		if err != nil && strings.Contains(err.Error(), k.text()[20:40]) {
			t.Errorf("the error tells the key: %v", err)
		}
	}
	if err := os.Unsetenv("CREDENTIALS_DIRECTORY"); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(t.Context(), "credential:repo.key"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("LoadKey without credentials: %v, want not found", err)
	}
}

func TestOpenersKeepTheirSecrets(t *testing.T) {
	g, _ := smallRig(t)
	path, secret, recipient := newIdentity(t, false)
	must(AddRecipient(t.Context(), g.b, g.key, recipient, ""))
	paper, _, err := AddPaperKey(t.Context(), g.b, g.key, "")
	if err != nil {
		t.Fatal(err)
	}
	line := paper.lines()[1]
	for _, x := range []any{must(LoadIdentity(path)), paper, g.key, g.repo.keys} {
		for _, s := range []string{fmt.Sprint(x), fmt.Sprintf("%+v", x), fmt.Sprintf("%#v", x), string(must(json.Marshal(x)))} {
			if strings.Contains(s, secret[20:40]) || strings.Contains(s, line[4:12]) || strings.Contains(s, hex.EncodeToString(g.key.secret[8:16])) ||
				strings.Contains(s, strings.Trim(fmt.Sprint(paper.key.secret[:8]), "[]")) || strings.Contains(s, strings.Trim(fmt.Sprint(g.key.secret[:8]), "[]")) {
				t.Errorf("%T tells its secret: %.80s", x, s)
			}
		}
	}
	// A slip in an identity file is not quoted.
	mustWrite(t, path, []byte(secret[:60]+"!\n"))
	if _, err := LoadIdentity(path); fault.KindOf(err) != fault.Invalid || strings.Contains(err.Error(), secret[20:40]) {
		t.Errorf("LoadIdentity of an altered file: %v", err)
	}
	if _, err := LoadIdentity(path + "x"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("LoadIdentity of nothing: %v", err)
	}
}
