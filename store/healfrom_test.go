package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/pack"
)

// rots damage a pack file; the second one is for those that need another.
var rots = map[string]func(rnd *rand.Rand, name, other string) error{
	"flipped": func(rnd *rand.Rand, name, _ string) error {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		return flipAt(name, rnd.Int64N(info.Size()))
	},
	"truncated": func(rnd *rand.Rand, name, _ string) error {
		info, err := os.Stat(name)
		if err != nil {
			return err
		}
		return os.Truncate(name, rnd.Int64N(info.Size()))
	},
	"zero sector": func(rnd *rand.Rand, name, _ string) error {
		p, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		at := rnd.IntN(len(p)/512) * 512
		clear(p[at : at+512])
		return os.WriteFile(name, p, 0o600)
	},
	"missing": func(_ *rand.Rand, name, _ string) error { return os.Remove(name) },
	"swapped": func(_ *rand.Rand, name, other string) error {
		a, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(other)
		if err != nil {
			return err
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			return err
		}
		return os.WriteFile(other, a, 0o600)
	},
}

// Rot of every kind is found by a sweep, which names what cannot be read; a copy of the repository heals all of it.
func TestSweepFindsAndHealMends(t *testing.T) {
	const seed = 20261122
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 7))
	f := newFleet(t, rnd, 3, 3)
	rounds := 3
	if os.Getenv("CAIRN_SOAK") != "" {
		rounds = 40
	}
	fired := 0
	for kind, rot := range rots {
		for round := range rounds {
			n, ok := f.rotAndHeal(rnd, rot)
			if fired += n; !ok {
				t.Errorf("%s, round %d", kind, round)
			}
		}
	}
	t.Logf("%d packs were damaged, found and healed", fired)
	if want := len(rots) * rounds; fired < want {
		t.Errorf("%d of %d faults fired", fired, want)
	}
}

func (f *fleet) rotAndHeal(rnd *rand.Rand, rot func(*rand.Rand, string, string) error) (fired int, ok bool) {
	f.t.Helper()
	ctx := f.t.Context()
	dir := f.copy()
	good := f.open(f.copy())
	defer f.shut(good)
	r := f.open(dir) // before the rot: it happens while the repository is open
	defer f.shut(r)
	files := packFiles(f.t, dir)
	rnd.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
	whole := map[string][]byte{}
	for _, name := range files {
		whole[name], _ = os.ReadFile(name)
	}
	for i := 0; i < 4; i += 2 {
		if err := rot(rnd, files[i], files[i+1]); err != nil {
			f.t.Fatal(err)
		}
	}
	var hurt []string
	for _, name := range files {
		if now, err := os.ReadFile(name); err != nil || !bytes.Equal(now, whole[name]) {
			hurt = append(hurt, packName(name))
		}
	}
	slices.Sort(hurt)
	report, err := r.Sweep(ctx, SweepOptions{})
	if (fault.KindOf(err) != fault.Corrupt) != (len(hurt) == 0) || !report.Complete {
		f.t.Errorf("Sweep with %d damaged packs = %+v, %v", len(hurt), report, err)
		return len(hurt), false
	}
	var found []string
	for _, d := range report.Damage {
		found = append(found, d.Pack)
	}
	slices.Sort(found)
	if diff := cmp.Diff(hurt, found); diff != "" {
		f.t.Errorf("damaged packs (-are +found):\n%s", diff)
		return len(hurt), false
	}
	if diff := cmp.Diff(f.oracle(r), report.Touched); diff != "" {
		f.t.Errorf("touched (-cannot be read +named):\n%s", diff)
		return len(hurt), false
	}
	return len(hurt), f.heal(ctx, r, good, report)
}

func (f *fleet) heal(ctx context.Context, r, good *Repository, sweep SweepReport) bool {
	f.t.Helper()
	dry, err := r.Heal(ctx, HealOptions{From: []*Repository{good}, DryRun: true})
	if err != nil || len(dry.Touched) > 0 {
		f.t.Errorf("dry run of Heal = %+v, %v", dry, err)
		return false
	}
	healed, err := r.Heal(ctx, HealOptions{From: []*Repository{good}})
	if err != nil || healed.Remaining > 0 || len(healed.Touched)+len(healed.Kept) > 0 {
		f.t.Errorf("Heal = %+v, %v", healed, err)
		return false
	}
	if diff := cmp.Diff(dry.Quarantined, healed.Quarantined); diff != "" || objects(dry) < objects(healed) || len(dry.Damage) != len(healed.Damage) {
		f.t.Errorf("Heal = %+v, its dry run %+v", healed, dry)
		return false
	}
	after, err := r.Sweep(ctx, SweepOptions{})
	if err != nil || after.Proven != len(f.disks) {
		f.t.Errorf("Sweep after Heal = %+v, %v", after, err)
		return false
	}
	aside, err := r.Quarantine(ctx)
	if err != nil || len(aside) != len(healed.Quarantined) {
		f.t.Errorf("Quarantine = %v, %v; Heal had %v", aside, err, healed.Quarantined)
		return false
	}
	f.mustBeWhole(r)
	if _, err := r.Collect(ctx, CollectOptions{}); err != nil {
		f.t.Errorf("Collect after Heal: %v", err)
		return false
	}
	f.mustBeWhole(r)
	return true
}

func objects(report HealReport) int {
	n := report.Moved.Objects
	for _, from := range report.Healed {
		n += from.Objects
	}
	return n
}

// A repository of the same domain, with other keys and its own restore points of the same machines, heals as well.
func TestHealFromTheDomain(t *testing.T) {
	const seed = 20261122
	rnd := rand.New(rand.NewPCG(seed, 8))
	f := newFleet(t, rnd, 2, 3)
	dir := f.copy()
	r := f.open(dir)
	defer f.shut(r)
	other := f.domain(r)
	defer f.shut(other)
	if bytes.Equal(other.keys.Data[:], r.keys.Data[:]) || bytes.Equal(other.keys.Seed[:], r.keys.Seed[:]) || !r.SameDomain(other) {
		t.Fatal("a domain shares the key of ids, and only that")
	}
	for _, name := range packFiles(t, dir) {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	if report, err := r.Sweep(t.Context(), SweepOptions{}); fault.KindOf(err) != fault.Corrupt || len(report.Touched) != len(f.disks) {
		t.Fatalf("Sweep without packs = %+v, %v", report, err)
	}
	// The machines are not the only ones whose documents the other has: those are the same bytes in both.
	report, err := r.Heal(t.Context(), HealOptions{From: []*Repository{other}})
	if err != nil || len(report.Healed) != 1 || report.Healed[0].Objects == 0 || report.Moved.Objects != 0 {
		t.Fatalf("Heal = %+v, %v", report, err)
	}
	f.mustBeWhole(r)

	stranger := newFleet(t, rnd, 1, 1)
	s := stranger.open(stranger.dir)
	defer stranger.shut(s)
	if _, err := r.Heal(t.Context(), HealOptions{From: []*Repository{s}}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Heal from a stranger: %v", err)
	}
	if _, err := r.Heal(t.Context(), HealOptions{From: []*Repository{r}}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("Heal from itself: %v", err)
	}
}

// domain makes a repository in r's domain with full backups of all disks.
func (f *fleet) domain(r *Repository) *Repository {
	f.t.Helper()
	b, err := file.Create(filepath.Join(f.t.TempDir(), "domain"))
	if err != nil {
		f.t.Fatal(err)
	}
	if err := Create(f.t.Context(), b, f.key, CreateOptions{Name: "domain", Domain: r}); err != nil {
		f.t.Fatal(err)
	}
	out := f.openStore(b, "")
	points, err := r.RestorePoints(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range points {
		f.backup(out, p.Series, f.disks[p.ID], nil, nil)
	}
	return out
}

// Without any other repository, Heal moves what is good out of damaged packs and keeps those in which something is
// still missing; nothing gets worse.
func TestHealAloneDestroysNothing(t *testing.T) {
	const seed = 20261122
	rnd := rand.New(rand.NewPCG(seed, 9))
	f := newFleet(t, rnd, 3, 3)
	kept, moved := 0, 0
	// Packs have random names, so what a seed hits differs from run to run.
	for round := 0; round < 6 || round < 60 && (kept == 0 || moved == 0); round++ {
		dir := f.copy()
		good := f.open(f.copy())
		r := f.open(dir)
		files := packFiles(t, dir)
		for range 3 {
			if err := rots["flipped"](rnd, files[rnd.IntN(len(files))], ""); err != nil {
				t.Fatal(err)
			}
		}
		sweep, err := r.Sweep(t.Context(), SweepOptions{})
		if fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("Sweep = %+v, %v", sweep, err)
		}
		report, err := r.Heal(t.Context(), HealOptions{})
		if (err != nil) != (len(sweep.Touched) > 0) {
			t.Errorf("Heal = %+v, %v", report, err)
		}
		if diff := cmp.Diff(sweep.Touched, report.Touched); diff != "" {
			t.Errorf("touched (-before +after):\n%s", diff)
		}
		if diff := cmp.Diff(f.oracle(r), report.Touched); diff != "" {
			t.Errorf("touched (-cannot be read +named):\n%s", diff)
		}
		kept += len(report.Kept)
		moved += report.Moved.Objects
		f.heal2(r, good)
		f.shut(r)
		f.shut(good)
	}
	if kept == 0 || moved == 0 {
		t.Errorf("%d packs were kept, %d objects moved: the test shows nothing", kept, moved)
	}
}

// heal2 ends what a Heal alone could not.
func (f *fleet) heal2(r, good *Repository) {
	f.t.Helper()
	if report, err := r.Heal(f.t.Context(), HealOptions{From: []*Repository{good}}); err != nil || len(report.Kept) > 0 {
		f.t.Fatalf("Heal = %+v, %v", report, err)
	}
	f.mustBeWhole(r)
	freed, err := r.EmptyQuarantine(f.t.Context())
	if err != nil || freed == 0 {
		f.t.Errorf("EmptyQuarantine = %d, %v", freed, err)
	}
	f.mustBeWhole(r)
}

// A damaged record of a restore point is put back from a copy of the repository, also by an open after a crash.
func TestHealPutsRecordsBack(t *testing.T) {
	rnd := rand.New(rand.NewPCG(20261122, 10))
	f := newFleet(t, rnd, 1, 3)
	dir := f.copy()
	good := f.open(f.copy())
	defer f.shut(good)
	r := f.open(dir)
	defer func() { f.shut(r) }() // the one that is open then
	records, err := filepath.Glob(filepath.Join(dir, "manifests", "*"))
	if err != nil || len(records) != 3 {
		t.Fatalf("%v, %v", records, err)
	}
	if err := flipAt(records[1], 300); err != nil {
		t.Fatal(err)
	}
	sweep, err := r.Sweep(t.Context(), SweepOptions{})
	if fault.KindOf(err) != fault.Corrupt || len(sweep.Problems) != 1 || !strings.Contains(sweep.Problems[0], filepath.Base(records[1])) {
		t.Fatalf("Sweep = %+v, %v", sweep, err)
	}
	if report, err := r.Heal(t.Context(), HealOptions{}); fault.KindOf(err) != fault.Corrupt || report.Remaining != 1 {
		t.Errorf("Heal from nowhere = %+v, %v", report, err)
	}
	report, err := r.Heal(t.Context(), HealOptions{From: []*Repository{good}})
	if err != nil || !slices.Equal(report.Records, []string{filepath.Base(records[1])}) {
		t.Fatalf("Heal = %+v, %v", report, err)
	}
	f.mustBeWhole(r)

	// A crash between the two renames: the record waits, and no file has its name.
	id := filepath.Base(records[2])
	if err := r.b.Rename(t.Context(), manifestName(id), waitingName(id)); err != nil {
		t.Fatal(err)
	}
	f.shut(r)
	r = f.open(dir)
	f.mustBeWhole(r)

	// The damaged one could not be put aside, so the good one waits; then the restore point is pruned.
	if err := flipAt(records[2], 300); err != nil {
		t.Fatal(err)
	}
	b := r.b
	r.b = blobtest.Fails(b, func(op, name string) error {
		if op == "rename" && name == manifestName(id) {
			return syscall.EIO
		}
		return nil
	})
	if _, err := r.Heal(t.Context(), HealOptions{From: []*Repository{good}}); !errors.Is(err, syscall.EIO) {
		t.Fatalf("Heal = %v", err)
	}
	r.b = b
	if _, err := b.Stat(t.Context(), waitingName(id)); err != nil {
		t.Fatal(err)
	}
	if err := r.Prune(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	f.shut(r)
	r = f.open(dir)
	if _, err := r.RestorePoint(t.Context(), id); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a restore point that was pruned is back: %v", err)
	}
}

// mending is a backend with redundancy: it puts files back from a copy.
type mending struct {
	blob.Store
	dir, good string
	mu        sync.Mutex
	repairs   []string
	err       error // of another part
}

func (m *mending) Repair(_ context.Context, name string) (bool, error) {
	p, err := os.ReadFile(filepath.Join(m.good, name))
	if err != nil {
		return false, err
	}
	if now, err := os.ReadFile(filepath.Join(m.dir, name)); err == nil && bytes.Equal(p, now) {
		return false, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.repairs = append(m.repairs, name)
	return true, errors.Join(m.err, os.WriteFile(filepath.Join(m.dir, name), p, 0o600))
}

// Damage that the backend can repair is repaired by whatever comes upon it, and nobody else hears of it.
func TestBackendRepairsWhatIsRead(t *testing.T) {
	rnd := rand.New(rand.NewPCG(20261122, 11))
	f := newFleet(t, rnd, 2, 2)
	for name, use := range map[string]func(r *Repository) error{
		"restore": func(r *Repository) error { f.readAll(r); return nil },
		"sweep":   func(r *Repository) error { _, err := r.Sweep(t.Context(), SweepOptions{}); return err },
		"verify":  func(r *Repository) error { f.mustBeWhole(r); return nil },
		"open":    func(*Repository) error { return nil },
	} {
		dir := f.copy()
		b, err := file.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		m := &mending{Store: b, dir: dir, good: f.dir}
		if name == "restore" { // what is repaired is read again, whatever else could not be
			m.err = fault.New(fault.Transient, "repair object", "", "one disk takes no writes")
		}
		for _, file := range packFiles(t, dir) {
			at := int64(140) // in a frame
			if name == "open" {
				at = 60 // in the salt
			}
			if err := flipAt(file, at); err != nil {
				t.Fatal(err)
			}
		}
		index := dir + ".index"
		if name == "open" {
			index = ""
		}
		r := f.openStore(m, index)
		if err := use(r); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(m.repairs) != len(packFiles(t, dir)) || r.idx.AnySuspect() {
			t.Errorf("%s: %d of %d packs were repaired; suspects %x", name, len(m.repairs), len(packFiles(t, dir)), r.idx.Suspects())
		}
		f.shut(r)
	}
}

func (f *fleet) readAll(r *Repository) {
	f.t.Helper()
	points, err := r.RestorePoints(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	for _, p := range points {
		if _, err := r.Document(f.t.Context(), p.ID, "domain.xml"); err != nil {
			f.t.Error(err)
		}
		g := &rig{t: f.t, repo: r}
		if !bytes.Equal(g.read(p.Images[0].Ref), f.disks[p.ID]) {
			f.t.Error(fmt.Errorf("restore point %s does not hold its disk", p.ID))
		}
	}
}

// A verification that finds damage names all restore points that it touches, not only its own.
func TestVerifyNamesWhatElseIsTouched(t *testing.T) {
	rnd := rand.New(rand.NewPCG(20261122, 12))
	f := newFleet(t, rnd, 3, 2)
	r := f.open(f.dir)
	defer f.shut(r)
	for _, p := range r.idx.Packs() {
		if p.Kind == pack.Data {
			if err := flipFrame(filepath.Join(f.dir, pack.Name(p.ID))); err != nil {
				t.Fatal(err)
			}
		}
	}
	points, err := r.RestorePoints(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range points {
		report, err := r.Verify(t.Context(), p.ID, nil)
		if fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("Verify = %+v, %v", report, err)
		}
		mine := slices.ContainsFunc(report.Touched, func(touched TouchedPoint) bool { return touched.RestorePoint == p.ID })
		if !mine || len(report.Touched) < 2 {
			t.Errorf("Verify of %s names %+v", p.ID, report.Touched)
		}
	}
}

// Packs that do not even say what is in them, so that an index built anew does not have them, are named and healed too.
func TestHealWithoutAnIndex(t *testing.T) {
	rnd := rand.New(rand.NewPCG(20261122, 13))
	f := newFleet(t, rnd, 2, 3)
	dir := f.copy()
	good := f.open(f.copy())
	defer f.shut(good)
	if err := os.RemoveAll(dir + ".index"); err != nil {
		t.Fatal(err)
	}
	files := packFiles(t, dir)
	want := []string{packName(files[0]), packName(files[len(files)/2])}
	for _, name := range []string{files[0], files[len(files)/2]} {
		if err := flipAt(name, 60); err != nil { // in the salt
			t.Fatal(err)
		}
	}
	r := f.open(dir)
	defer f.shut(r)
	sweep, err := r.Sweep(t.Context(), SweepOptions{})
	var found []string
	for _, d := range sweep.Damage {
		found = append(found, d.Pack)
	}
	slices.Sort(found)
	if fault.KindOf(err) != fault.Corrupt || !slices.Equal(found, want) {
		t.Fatalf("Sweep = %+v, %v; want damage of %v", sweep, err, want)
	}
	if diff := cmp.Diff(f.oracle(r), sweep.Touched); diff != "" {
		t.Errorf("touched (-cannot be read +named):\n%s", diff)
	}
	report, err := r.Heal(t.Context(), HealOptions{From: []*Repository{good}})
	if err != nil || !slices.Equal(report.Quarantined, want) {
		t.Fatalf("Heal = %+v, %v", report, err)
	}
	if after, err := r.Sweep(t.Context(), SweepOptions{}); err != nil || after.Proven != len(f.disks) {
		t.Errorf("Sweep after Heal = %+v, %v", after, err)
	}
	f.mustBeWhole(r)
}

// Known damage under an image asks for a full read of its disk, and no longer once it is healed.
func TestNeedsFullRead(t *testing.T) {
	rnd := rand.New(rand.NewPCG(20261122, 14))
	f := newFleet(t, rnd, 2, 2)
	for name, damage := range map[string]func(string) error{"flipped": flipFrame, "deleted": os.Remove} {
		dir := f.copy()
		good := f.open(f.copy())
		r := f.open(dir)
		points, err := r.RestorePoints(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		asked := func() (needed int) {
			for _, p := range points {
				full, reason, err := r.NeedsFullRead(t.Context(), p.Images[0].Ref)
				if err != nil || full != (reason != "") {
					t.Fatalf("NeedsFullRead = %v, %q, %v", full, reason, err)
				}
				if full {
					needed++
				}
			}
			return needed
		}
		if n := asked(); n != 0 {
			t.Errorf("%s: %d images need a full read before any damage", name, n)
		}
		for _, file := range packFiles(t, dir)[:2] {
			if err := damage(file); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := r.Sweep(t.Context(), SweepOptions{}); fault.KindOf(err) != fault.Corrupt {
			t.Fatalf("Sweep: %v", err)
		}
		if n := asked(); n == 0 {
			t.Errorf("%s: no image needs a full read", name)
		}
		if _, err := r.Heal(t.Context(), HealOptions{From: []*Repository{good}}); err != nil {
			t.Fatal(err)
		}
		if n := asked(); n != 0 {
			t.Errorf("%s: %d images need a full read after Heal", name, n)
		}
		f.shut(r)
		f.shut(good)
	}
}
