package hypervisors_test

import (
	"errors"
	"iter"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

const kib = int64(1) << 10

// list turns a slice into what a frozen disk yields.
func list(extents ...hypervisors.Extent) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		for _, e := range extents {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// cover makes extents of lengths in turn, each in the state before its length.
func cover(pairs ...int64) (out []hypervisors.Extent, size int64) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, hypervisors.Extent{Offset: size, Length: pairs[i+1], State: hypervisors.ExtentState(pairs[i])})
		size += pairs[i+1]
	}
	return out, size
}

func collect(t *testing.T, m hypervisors.ExtentMap) []hypervisors.Extent {
	t.Helper()
	var out []hypervisors.Extent
	for e, err := range m.Extents() {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func TestExtentMap(t *testing.T) {
	const data, zero, same = int64(hypervisors.Data), int64(hypervisors.Zero), int64(hypervisors.Unchanged)
	tests := map[string]struct{ in, want []int64 }{
		"empty disk":                 {nil, nil},
		"one state":                  {[]int64{same, 1 << 40}, []int64{same, 1 << 40}},
		"a byte":                     {[]int64{zero, 1}, []int64{zero, 1}},
		"grains":                     {[]int64{data, 64 * kib, zero, 128 * kib, same, 64 * kib}, []int64{data, 64 * kib, zero, 128 * kib, same, 64 * kib}},
		"end within a grain":         {[]int64{same, 64 * kib, zero, 512}, []int64{same, 64 * kib, zero, 512}},
		"two states in a grain":      {[]int64{same, 60 * kib, zero, 68 * kib}, []int64{data, 64 * kib, zero, 64 * kib}},
		"a hole in a grain":          {[]int64{zero, 70 * kib, data, 1, zero, 186*kib - 1}, []int64{zero, 64 * kib, data, 64 * kib, zero, 128 * kib}},
		"neighbours in one state":    {[]int64{same, 1 << 30, same, 5 << 30, data, 64 * kib}, []int64{same, 6 << 30, data, 64 * kib}},
		"across the blocks of a map": {[]int64{zero, 300 << 20, data, 300 << 20, same, 1 << 40}, []int64{zero, 300 << 20, data, 300 << 20, same, 1 << 40}},
	}
	for name, tt := range tests {
		in, size := cover(tt.in...)
		want, _ := cover(tt.want...)
		m, err := hypervisors.NewExtentMap(size, list(in...))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(want, collect(t, m)); diff != "" || m.Size() != size {
			t.Errorf("%s: size %d, want %d; extents (-want +got):\n%s", name, m.Size(), size, diff)
		}
	}
}

func TestExtentMapRefusesBadExtents(t *testing.T) {
	broken := errors.New("broken")
	for name, in := range map[string]iter.Seq2[hypervisors.Extent, error]{
		"gap":           list(hypervisors.Extent{Offset: 1, Length: 99}),
		"overlap":       list(hypervisors.Extent{Length: 60}, hypervisors.Extent{Offset: 50, Length: 50}),
		"too long":      list(hypervisors.Extent{Length: 101}),
		"too short":     list(hypervisors.Extent{Length: 99}),
		"empty":         list(hypervisors.Extent{Length: 0}),
		"unknown state": list(hypervisors.Extent{Length: 100, State: 3}),
	} {
		if m, err := hypervisors.NewExtentMap(100, in); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, %v; want an Invalid error", name, m, err)
		}
	}
	_, err := hypervisors.NewExtentMap(100, func(yield func(hypervisors.Extent, error) bool) { yield(hypervisors.Extent{}, broken) })
	if !errors.Is(err, broken) {
		t.Errorf("error of the extents: %v", err)
	}
	if _, err := hypervisors.NewExtentMap(-1, list()); fault.KindOf(err) != fault.Invalid {
		t.Errorf("negative size: %v", err)
	}
}

// scattered yields extents in random states whose lengths are up to the longest number of 64 KiB, the same ones each time.
func scattered(seed uint64, size int64, longest int64, states int) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		r := rand.New(rand.NewPCG(seed, 0))
		for off := int64(0); off < size; {
			n := min((1+r.Int64N(longest))*64*kib, size-off)
			if !yield(hypervisors.Extent{Offset: off, Length: n, State: hypervisors.ExtentState(r.IntN(states) * 2 / (states - 1))}, nil) {
				return
			}
			off += n
		}
	}
}

// TestExtentMapStaysSmall makes maps of disks with changes all over, and looks that nothing is lost.
func TestExtentMapStaysSmall(t *testing.T) {
	for _, tt := range []struct {
		name    string
		size    int64
		longest int64
		states  int
		exact   bool
	}{
		{"1 TiB, two states everywhere", 1 << 40, 5, 2, true},
		{"1 TiB, three states everywhere", 1 << 40, 5, 3, false},
		{"1 TiB, long runs in three states", 1 << 40, 1000, 3, true},
		{"odd size", 1<<36 + 513, 30, 3, true},
	} {
		const seed = 1
		m, err := hypervisors.NewExtentMap(tt.size, scattered(seed, tt.size, tt.longest, tt.states))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		t.Logf("%s: %d bytes", tt.name, len(m))
		if len(m) > hypervisors.MaxExtentMap {
			t.Errorf("%s: %d bytes, want at most %d", tt.name, len(m), hypervisors.MaxExtentMap)
		}
		next, stop := iter.Pull2(m.Extents())
		var got hypervisors.Extent
		var more int64 // to be read than must be
		for want := range scattered(seed, tt.size, tt.longest, tt.states) {
			for at, end := want.Offset, want.Offset+want.Length; at < end; {
				if at == got.Offset+got.Length {
					var ok bool
					if got, err, ok = next(); !ok || err != nil || got.Offset != at {
						t.Fatalf("%s: extent %+v, %v, at %d", tt.name, got, err, at)
					}
				}
				n := min(end, got.Offset+got.Length) - at
				if got.State != want.State {
					if got.State != hypervisors.Data {
						t.Fatalf("%s: %+v became %+v", tt.name, want, got)
					}
					more += n
				}
				at += n
			}
		}
		if _, _, ok := next(); ok || tt.exact != (more == 0) {
			t.Errorf("%s: it goes on: %v; %d bytes more to be read", tt.name, ok, more)
		}
		stop()
	}
}

func TestExtentMapOfLargeDisks(t *testing.T) {
	for _, size := range []int64{1 << 50, 1 << 62} {
		in, _ := cover(int64(hypervisors.Zero), size/2, int64(hypervisors.Data), size/2)
		m, err := hypervisors.NewExtentMap(size, list(in...))
		if err != nil || len(m) > hypervisors.MaxExtentMap {
			t.Errorf("%d bytes: a map of %d bytes, %v", size, len(m), err)
			continue
		}
		if diff := cmp.Diff(in, collect(t, m)); diff != "" {
			t.Errorf("%d bytes (-want +got):\n%s", size, diff)
		}
	}
	if m, err := hypervisors.NewExtentMap(1<<62+1, list()); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a disk larger than any: %v, %v", m, err)
	}
}

// FuzzExtentMap feeds maps from nowhere: they are read without gaps up to their size, or they are an error.
func FuzzExtentMap(f *testing.F) {
	for _, states := range []int{2, 3} {
		m, err := hypervisors.NewExtentMap(700<<20+1, scattered(3, 700<<20+1, 40, states))
		if err != nil {
			f.Fatal(err)
		}
		for seed := range boundary.Binary(m[:12]) {
			f.Add([]byte(seed))
		}
		f.Add([]byte(m))
		f.Add([]byte(m[:len(m)-1]))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		m := hypervisors.ExtentMap(p)
		var all []hypervisors.Extent
		end := int64(0)
		for e, err := range m.Extents() {
			if err != nil {
				if fault.KindOf(err) != fault.Invalid {
					t.Errorf("%v is not Invalid", err)
				}
				return
			}
			if e.Offset != end || e.Length <= 0 || e.Length > m.Size()-end || e.State > hypervisors.Unchanged {
				t.Fatalf("extent %+v after %d of %d", e, end, m.Size())
			}
			end += e.Length
			all = append(all, e)
		}
		if end != m.Size() {
			t.Fatalf("extents end at %d of %d", end, m.Size())
		}
		if len(p) < 3 || p[1] != 16 || len(p) > hypervisors.MaxExtentMap {
			return
		}
		again, err := hypervisors.NewExtentMap(end, list(all...))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(all, collect(t, again)); diff != "" {
			t.Errorf("read and written again (-want +got):\n%s", diff)
		}
	})
}
