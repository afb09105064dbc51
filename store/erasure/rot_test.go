package erasure

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

func content(seed uint64, n int) []byte {
	p := make([]byte, n)
	rnd := rand.New(rand.NewPCG(seed, 2))
	for i := range p {
		p[i] = byte(rnd.Uint32())
	}
	return p
}

// shards returns the files of all shards on all disks.
func (d *made) shards(name string) (files []string) {
	d.t.Helper()
	for _, p := range d.paths {
		found, err := filepath.Glob(filepath.Join(p, leafOf(name), filepath.Base(name)+"~*"))
		if err != nil {
			d.t.Fatal(err)
		}
		files = append(files, found...)
	}
	return files
}

func (d *made) flip(file string, at int64, bits byte) {
	d.t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	var p [1]byte
	if _, err := f.ReadAt(p[:], at); err != nil {
		d.t.Fatal(err)
	}
	p[0] ^= bits
	if _, err := f.WriteAt(p[:], at); err != nil {
		d.t.Fatal(err)
	}
}

func mustRead(t *testing.T, s blob.Store, name string, want []byte) {
	t.Helper()
	got, err := blob.Get(context.Background(), s, name, 1<<30)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s: %v, or other bytes", name, err)
	}
}

func mustPut(t *testing.T, s blob.Store, name string, data []byte) {
	t.Helper()
	if err := blob.Put(context.Background(), s, name, data); err != nil {
		t.Fatal(err)
	}
}

func mustScrub(t *testing.T, s *Store) ScrubReport {
	t.Helper()
	report, err := s.Scrub(context.Background(), ScrubOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// Every single-byte change of every shard of a small object, kept whole or cut, is found and repaired.
func TestEveryByteOfSmallObject(t *testing.T) {
	d := newSet(t, Layout{2, 1})
	s := d.open()
	// One is kept whole on all members; the other is cut, which only larger objects are: so it is long, and its bytes
	// are changed at every place of header, trailer, hashes and the ends of units, and every 4099th between.
	for _, n := range []int{100, wholeLimit + 77} {
		name := fmt.Sprint("o/", n)
		data := content(uint64(n), n)
		mustPut(t, s, name, data)
		flips := 0
		for _, file := range d.shards(name) {
			good, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for at := range good {
				edge := at < headerBytes+2 || at > len(good)-trailerBytes-hashBytes-3 || n == 100
				if !edge && at%4099 != 0 {
					continue
				}
				d.flip(file, int64(at), byte(1<<(at%8)))
				flips++
				mustRead(t, s, name, data)
				if repaired, err := s.Repair(t.Context(), name); err != nil || !repaired {
					t.Fatalf("%s: byte %d changed: Repair = %v, %v", file, at, repaired, err)
				}
				if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, good) {
					t.Fatalf("%s: byte %d: not as it was after repair (%v)", file, at, err)
				}
			}
		}
		if repaired, err := s.Repair(t.Context(), name); err != nil || repaired {
			t.Errorf("Repair of what is good = %v, %v", repaired, err)
		}
		t.Logf("object of %d bytes: %d single bytes changed, all found and repaired", n, flips)
	}
}

// Random damage of all kinds in at most m shards of any unit row is read around and repaired; in more it is an error.
func TestRandomDamage(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 11))
	for _, l := range []Layout{{1, 1}, {2, 2}, {4, 2}} {
		t.Run(l.String(), func(t *testing.T) {
			d := newSet(t, l)
			s := d.open()
			objects := map[string][]byte{}
			for i, n := range []int{0, 7, wholeLimit, wholeLimit + 1, 700_000, 3_000_001} {
				name := fmt.Sprintf("dir%d/o%d", i%2, n)
				objects[name] = content(uint64(n), n)
				mustPut(t, s, name, objects[name])
			}
			kinds := map[string]int{}
			repairedShards := 0
			for range 25 {
				for name, data := range objects {
					files := d.shards(name)
					if len(files) != l.Members() {
						t.Fatalf("%d shards of %s", len(files), name)
					}
					rnd.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
					hurt := 1 + rnd.IntN(l.Parity)
					for i, file := range files[:hurt] {
						kinds[d.hurt(rnd, file, files[(i+1)%len(files)])]++
					}
					s.cache.clear()
					mustRead(t, s, name, data)
					repaired, err := s.Repair(t.Context(), name)
					if err != nil || !repaired {
						t.Fatalf("%s: Repair = %v, %v", name, repaired, err)
					}
					repairedShards += hurt
					mustRead(t, s, name, data)
				}
			}
			if report := mustScrub(t, s); report.Repaired > 0 || len(report.Damaged) > 0 {
				t.Errorf("Scrub after repairs: %+v", report)
			}
			t.Logf("%d shards damaged and repaired: %v", repairedShards, kinds)
			// Beyond parity: an error, never other bytes, and nothing is changed.
			name := "dir0/o700000"
			for _, file := range d.shards(name)[:l.Parity+1] {
				d.flip(file, headerBytes+5, 1)
			}
			_, err := blob.Get(t.Context(), s, name, 1<<30)
			meaning, advice := fault.Explanation(err)
			if fault.KindOf(err) != fault.Corrupt || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "member") && !strings.Contains(err.Error(), "d0") || meaning == "" || advice == "" {
				t.Errorf("read beyond parity: %v (%q, %q)", err, meaning, advice)
			}
			if repaired, err := s.Repair(t.Context(), name); repaired || fault.KindOf(err) != fault.Corrupt {
				t.Errorf("Repair beyond parity = %v, %v", repaired, err)
			}
			report := mustScrub(t, s)
			if len(report.Damaged) != 1 || !report.Damaged[0].Lost || report.Damaged[0].Name != name {
				t.Errorf("Scrub beyond parity: %+v", report.Damaged)
			}
		})
	}
}

// hurt damages a shard in one of many ways.
func (d *made) hurt(rnd *rand.Rand, file, other string) string {
	d.t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		d.t.Fatal(err)
	}
	kind := []string{"bit", "burst", "truncated", "longer", "removed", "empty", "zeros", "another shard", "units exchanged"}[rnd.IntN(9)]
	at := rnd.IntN(len(data))
	switch kind {
	case "bit":
		data[at] ^= 1 << rnd.IntN(8)
	case "burst":
		for i := at; i < min(len(data), at+5000); i++ {
			data[i] ^= byte(1 + rnd.IntN(255))
		}
	case "truncated":
		data = data[:at]
	case "longer":
		data = append(data, content(1, 1+rnd.IntN(100))...)
	case "removed":
		if err := os.Remove(file); err != nil {
			d.t.Fatal(err)
		}
		return kind
	case "empty":
		data = nil
	case "zeros":
		clear(data)
	case "another shard":
		if data, err = os.ReadFile(other); err != nil {
			d.t.Fatal(err)
		}
	case "units exchanged":
		step := unitBytes + hashBytes
		if len(data) < headerBytes+2*step {
			data[len(data)/2] ^= 0x80
			break
		}
		a, b := data[headerBytes:headerBytes+step], data[headerBytes+step:headerBytes+2*step]
		for i := range a {
			a[i], b[i] = b[i], a[i]
		}
	}
	// In place, as rot is: a file of another inode would not be read through files that are open.
	if err := os.WriteFile(file, data, 0o600); err != nil {
		d.t.Fatal(err)
	}
	return kind
}

// Damage in different shards of different units adds up to more shards than parity, and is repaired all the same.
func TestScatteredRot(t *testing.T) {
	d := newSet(t, Layout{4, 2})
	s := d.open()
	data := content(5, 4<<20)
	mustPut(t, s, "p/x", data)
	for i, file := range d.shards("p/x") {
		d.flip(file, unitAt(int64(i))+99, 4) // unit i of shard on disk i
	}
	mustRead(t, s, "p/x", data)
	if repaired, err := s.Repair(t.Context(), "p/x"); err != nil || !repaired {
		t.Fatalf("Repair = %v, %v", repaired, err)
	}
	for _, gone := range [][]int{{0, 1}, {2, 3}, {4, 5}} {
		paths := slices.Clone(d.paths)
		paths = slices.Delete(paths, gone[0], gone[1]+1)
		mustRead(t, d.openWith(Options{}, paths...), "p/x", data)
	}
}

// Shards of two writes of one name never mix, even if a disk is put back as it was before.
func TestWritesNeverMix(t *testing.T) {
	d := newSet(t, Layout{2, 1})
	s := d.open()
	first, second := content(1, 400_000), content(2, 400_000)
	mustPut(t, s, "a/x", first)
	saved := t.TempDir()
	if err := os.CopyFS(saved, os.DirFS(d.paths[0])); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "a/x"); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, "a/x", second)
	if err := os.RemoveAll(d.paths[0]); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(d.paths[0], os.DirFS(saved)); err != nil {
		t.Fatal(err)
	}
	again := d.open()
	mustRead(t, again, "a/x", second)
	defer d.own(again)()
	mustScrub(t, again)
	mustRead(t, again, "a/x", second)
	mustRead(t, d.openWith(Options{}, d.paths[0], d.paths[2]), "a/x", second)
}

// takesNoWrites is a disk that can only be read.
type takesNoWrites struct{ blob.Store }

func (b takesNoWrites) Create(_ context.Context, name string) (blob.Writer, error) {
	return nil, fault.New(fault.Conflict, "create object", name, "read-only file system")
}

// Two shards are damaged, and the first of their disks takes no writes: the other one is repaired, and said to be.
func TestRepairDoesWhatItCan(t *testing.T) {
	d := newSet(t, Layout{2, 2})
	s := d.open()
	data := content(9, 300_000)
	mustPut(t, s, "p/x", data)
	files := d.shards("p/x")
	d.flip(files[0], headerBytes+9, 1)
	d.flip(files[1], headerBytes+9, 1)
	_, groups := s.snapshot()
	groups[0].members[0].b = takesNoWrites{groups[0].members[0].b}
	s.cache.clear()
	repaired, err := s.Repair(t.Context(), "p/x")
	if !repaired || err == nil || !strings.Contains(err.Error(), "d0") {
		t.Errorf("Repair = %v, %v, want true and an error of d0", repaired, err)
	}
	groups[0].members[0].b = groups[0].members[0].b.(takesNoWrites).Store
	report, err := s.Scrub(t.Context(), ScrubOptions{NoRepair: true}, nil)
	if err != nil || len(report.Damaged) != 1 || strings.Contains(report.Damaged[0].Cause, "d1") {
		t.Errorf("Scrub = %+v, %v, want damage on d0 only", report, err)
	}
}
