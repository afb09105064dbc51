package campaign

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/campaign/memory"
	"github.com/cairn-backup/cairn/store/campaign/workload"
	"github.com/cairn-backup/cairn/store/manifest"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// victim is a small repository in memory, and others that its files can be exchanged with.
type victim struct {
	m, twin, stranger *memory.Store // twin: another repository with the same key; stranger: with another one
	key               store.Key
	id                seal.ID
	points            int
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	dir := scratch(t)
	v := &victim{m: memory.New("victim"), twin: memory.New("twin"), stranger: memory.New("stranger")}
	var other store.Key
	var err, otherErr error
	v.key, err = workload.Key(filepath.Join(dir, "key"))
	other, otherErr = workload.Key(filepath.Join(dir, "other"))
	if err := errors.Join(err, otherErr); err != nil {
		t.Fatal(err)
	}
	for i, m := range []*memory.Store{v.m, v.twin, v.stranger} {
		key := v.key
		if m == v.stranger {
			key = other
		}
		id := furnish(t, m, key, uint64(i))
		if m == v.m {
			v.id = id
		}
	}
	v.points = len(v.m.Names("manifests/"))
	return v
}

// furnish makes a repository with two series and something of every class of files.
func furnish(t *testing.T, m *memory.Store, key store.Key, seed uint64) (id seal.ID) {
	t.Helper()
	ctx := t.Context()
	if err := store.Create(ctx, m, key, store.CreateOptions{Name: "victim", ChunkBytes: workload.ChunkBytes}); err != nil {
		t.Fatal(err)
	}
	r, err := store.Open(ctx, m, key, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	rnd := random(seed, 5)
	disk := make([]byte, 5*workload.ChunkBytes+100)
	for i := range disk[:3*workload.ChunkBytes] {
		disk[i] = byte(rnd.Uint32())
	}
	parent := map[string]*store.ImageRef{}
	for i := range 5 {
		series := []string{"a", "b"}[i%2]
		copy(disk[rnd.IntN(len(disk)-500):], disk[:500])
		p, err := workload.Backup(ctx, r, series, disk, parent[series])
		if err != nil {
			t.Fatal(err)
		}
		parent[series] = &p.Images[0].Ref
	}
	if _, err := hex.Decode(id[:], []byte(r.ID())); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	m.Set("trash/00112233445566778899aabbccddeeff.pack", m.Content(m.Names("packs/")[0]))
	m.Set("leases/01m80535s294v7sh9hh6568zdn", []byte(`{"format":1,"session":"01m80535s294v7sh9hh6568zdn","epoch":1}`))
	return id
}

// classes are the sorts of files: of those that matter, every change must be noticed; the others may hold anything.
var classes = map[string]bool{
	"config": true, "keys/": true, "packs/": true, "manifests/": true,
	"epochs/": false, "leases/": false, "trash/": false, "reserve": false,
}

// mutation is one thing done to one file, or two.
type mutation struct {
	what, class, name string
	matters           bool // it has to be noticed
}

// mutate does something to a clone.
func (v *victim) mutate(m *memory.Store, rnd *rand.Rand) mutation {
	class := pick(rnd, slices.Sorted(maps.Keys(classes)))
	if rnd.IntN(3) > 0 {
		class = pick(rnd, []string{"packs/", "manifests/", "keys/", "config"})
	}
	name := pick(rnd, m.Names(class))
	good := m.Content(name)
	mu := mutation{class: class, name: name, matters: classes[class]}
	bad := bytes.Clone(good)
	at := rnd.IntN(len(good))
	switch rnd.IntN(9) {
	case 0:
		mu.what = "bit flipped"
		bad[at] ^= 1 << rnd.IntN(8)
	case 1:
		mu.what = "cut short"
		bad = bad[:at]
	case 2:
		mu.what = "made longer"
		bad = append(bad, make([]byte, 1+rnd.IntN(600))...)
	case 3:
		mu.what = "zeroed in part"
		clear(bad[at:min(len(bad), at+1+rnd.IntN(4096))])
	case 4:
		mu.what = "exchanged with another"
		other := pick(rnd, append(m.Names("packs/"), m.Names("manifests/")...))
		mu.matters = mu.matters || other != name
		bad = bytes.Clone(m.Content(other))
		m.Set(other, bytes.Clone(good))
	case 5:
		mu.what = "replaced by an older one"
		bad = bytes.Clone(m.Content(pick(rnd, m.Names(class))))
	case 6:
		mu.what = "renamed"
		m.Set(name, nil)
		m.Set(otherName(name, rnd), good)
		return mu
	case 7:
		mu.what = "of another repository"
		other := pick(rnd, []*memory.Store{v.twin, v.stranger})
		bad = bytes.Clone(other.Content(pick(rnd, other.Names(class))))
	case 8:
		mu.what = "forged with another key"
		bad = v.forge(class, name, good)
	}
	m.Set(name, bad)
	if bytes.Equal(good, bad) || sameText(class, good, bad) {
		mu.matters = false
	}
	return mu
}

func pick[T any](rnd *rand.Rand, from []T) T { return from[rnd.IntN(len(from))] }

// sameText reports whether JSON differs only in how hex digits or names of members are spelled.
func sameText(class string, a, b []byte) bool {
	return (class == "config" || class == "keys/") && bytes.EqualFold(a, b)
}

// otherName changes one character of a name into another of its alphabet.
func otherName(name string, rnd *rand.Rand) string {
	p := []byte(name)
	for {
		at := rnd.IntN(len(p))
		digit := "0123456789abcdef"[rnd.IntN(16)]
		if p[at] == digit || !strings.ContainsRune("0123456789abcdef", rune(p[at])) && at < len(p)-1 {
			continue
		}
		p[at] = digit
		return string(p)
	}
}

// forge makes what somebody without the repository's keys would put in the place of a pack or a manifest: sealed for
// this very repository and name. Of other classes it is what was there with its last bytes changed.
func (v *victim) forge(class, name string, good []byte) []byte {
	keys := seal.NewKeySet(1)
	switch class {
	case "packs/":
		return forgePack(v.id, name, keys, good)
	case "manifests/":
		h, err := manifest.Encode(keys, seal.AES256GCM, v.id, seal.ID(good[32:48]), []byte(`{"format":1}`))
		if err != nil {
			panic(err)
		}
		return h
	}
	bad := bytes.Clone(good)
	for i := max(0, len(bad)-20); i < len(bad); i++ {
		bad[i] ^= 1
	}
	return bad
}

func forgePack(repository seal.ID, name string, keys *seal.KeySet, good []byte) []byte {
	id, err := pack.ParseName(name)
	if err != nil {
		panic(err)
	}
	h, err := pack.ParseHeader(good)
	if err != nil {
		panic(err)
	}
	coder, err := pack.NewCoder(pack.Standard)
	if err != nil {
		panic(err)
	}
	defer coder.Close()
	m := memory.New("forge")
	out, err := m.Create(context.Background(), name)
	if err != nil {
		panic(err)
	}
	head := pack.Header{Kind: h.Kind, Repository: repository, ID: id, KeyID: h.KeyID, Salt: seal.NewSalt()}
	w, err := pack.NewWriter(out, head, keys.Data, workload.ChunkBytes/4096, coder, pack.NewBufferPool(4096))
	if err == nil {
		_, err = w.Finish(context.Background())
	}
	if err != nil {
		panic(err)
	}
	return m.Content(name)
}

// inspect does what finds damage, and answers what did; nothing is "". Whatever it says, no wrong byte may be read.
func (v *victim) inspect(ctx context.Context, m *memory.Store) (found string, wrong error) {
	if report, err := store.Scrub(ctx, m); err != nil || len(report.Problems) > 0 {
		found += "scrub "
	}
	r, err := store.Open(ctx, m, v.key, store.Options{ReadOnly: true, Workers: 1})
	if err != nil {
		return found + "open ", nil
	}
	defer r.Close()
	points, err := r.RestorePoints(ctx)
	if err != nil || len(points) != v.points {
		found += "list "
	}
	if report, err := r.Check(ctx); err != nil || len(report.Problems) > 0 {
		found += "check "
	}
	for _, p := range points {
		_, err := r.Verify(ctx, p.ID, nil)
		if err != nil && !strings.Contains(found, "verify") {
			found += "verify "
		}
		reads := workload.Reads(ctx, r, p)
		if errors.Is(reads, workload.ErrWrong) || err == nil && reads != nil {
			return found, reads
		}
	}
	if wrappings, err := store.Wrappings(ctx, m); err != nil || slices.ContainsFunc(wrappings, func(w store.Wrapping) bool { return w.Problem != "" }) {
		found += "wrappings "
	}
	return found, nil
}

func TestCampaignRot(t *testing.T) {
	seed := seeded.Seed(t)
	v := newVictim(t)
	if found, wrong := v.inspect(t.Context(), v.m); found != "" || wrong != nil {
		t.Fatalf("before any mutation: %s, %v", found, wrong)
	}
	var mu sync.Mutex
	harmless, missed, wrongs, matter, kinds := 0, 0, 0, 0, map[string]int{}
	total := count(300, 2000, 50000)
	var wg sync.WaitGroup
	for worker := range 2 {
		wg.Go(func() {
			for i := worker; i < total; i += 2 {
				m := v.m.Clone()
				done := v.mutate(m, random(seed, uint64(1000+i)))
				found, wrong := v.inspect(t.Context(), m)
				mu.Lock()
				kinds[done.class+" "+done.what]++
				switch {
				case wrong != nil:
					wrongs++
					t.Errorf("%d: %s %s: wrong bytes are read: %v", i, done.name, done.what, wrong)
				case found == "" && done.matters:
					missed++
					t.Errorf("%d: %s %s: not detected", i, done.name, done.what)
				case !done.matters:
					harmless++
				}
				if done.matters {
					matter++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	report(t, "rot", total, total, missed+wrongs,
		fmt.Sprintf("must-detect=%d detected=%d harmless=%d sorts=%d", matter, matter-missed, harmless, len(kinds)))
}

// TestCampaignHarmlessFiles shows that what the campaign above calls harmless is: an owner opens, backs up, collects.
func TestCampaignHarmlessFiles(t *testing.T) {
	rnd := random(seeded.Seed(t), 6)
	v := newVictim(t)
	injected, lost := 0, 0
	for class, matters := range classes {
		if matters {
			continue
		}
		for range count(5, 15, 200) {
			m := v.m.Clone()
			for _, name := range m.Names(class) {
				p := make([]byte, rnd.IntN(2000)+1)
				for i := range p {
					p[i] = byte(rnd.Uint32())
				}
				m.Set(name, p)
			}
			injected++
			if err := v.owned(t.Context(), m); err != nil {
				lost++
				t.Errorf("with anything in %s: %v", class, err)
			}
		}
	}
	report(t, "rot-in-harmless-files", injected, injected, lost)
}

func (v *victim) owned(ctx context.Context, m *memory.Store) error {
	r, err := store.Open(ctx, m, v.key, store.Options{})
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := workload.Backup(ctx, r, "c", []byte("still at work"), nil); err != nil {
		return err
	}
	if _, err := r.Collect(ctx, store.CollectOptions{}); err != nil {
		return err
	}
	points, err := r.RestorePoints(ctx)
	if err != nil || len(points) != v.points+1 {
		return fmt.Errorf("%d restore points: %w", len(points), err)
	}
	for _, p := range points {
		if err := workload.Whole(ctx, r, p); err != nil {
			return err
		}
	}
	return nil
}

var _ blob.Store = (*memory.Store)(nil)

// refused answers whether an error is one that an admin can tell from success and from a bug.
func refused(err error) bool {
	kind := fault.KindOf(err)
	return err != nil && (kind == fault.Denied || kind == fault.Corrupt || kind == fault.NotFound)
}
