package transfer

import (
	"errors"
	"iter"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	d = hypervisors.Data
	z = hypervisors.Zero
	u = hypervisors.Unchanged
)

func ext(off, n int64, s hypervisors.ExtentState) hypervisors.Extent {
	return hypervisors.Extent{Offset: off, Length: n, State: s}
}

func yielding(list []hypervisors.Extent, err error) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		for _, e := range list {
			if !yield(e, nil) {
				return
			}
		}
		if err != nil {
			yield(hypervisors.Extent{}, err)
		}
	}
}

func TestSegments(t *testing.T) {
	tests := []struct {
		name string
		in   []hypervisors.Extent
		want []hypervisors.Extent
	}{
		{"data is cut at multiples of the limit", []hypervisors.Extent{ext(0, 20, u), ext(20, 180, d)},
			[]hypervisors.Extent{ext(0, 20, u), ext(20, 20, d), ext(40, 40, d), ext(80, 40, d), ext(120, 40, d), ext(160, 40, d)}},
		{"holes are not cut", []hypervisors.Extent{ext(0, 200, z)}, []hypervisors.Extent{ext(0, 200, z)}},
		{"a dirty byte makes a chunk", []hypervisors.Extent{ext(0, 55, u), ext(55, 1, d), ext(56, 144, u)},
			[]hypervisors.Extent{ext(0, 50, u), ext(50, 10, d), ext(60, 140, u)}},
		{"partly unchanged, partly zero is data", []hypervisors.Extent{ext(0, 55, u), ext(55, 145, z)},
			[]hypervisors.Extent{ext(0, 50, u), ext(50, 10, d), ext(60, 140, z)}},
		{"neighbours join", []hypervisors.Extent{ext(0, 5, d), ext(5, 5, z), ext(10, 10, d), ext(20, 180, u)},
			[]hypervisors.Extent{ext(0, 20, d), ext(20, 180, u)}},
		{"zero in pieces is zero", []hypervisors.Extent{ext(0, 5, z), ext(5, 15, z), ext(20, 180, u)},
			[]hypervisors.Extent{ext(0, 20, z), ext(20, 180, u)}},
	}
	for _, tt := range tests {
		var got []hypervisors.Extent
		for e, err := range segments(yielding(tt.in, nil), 200, 10, 40) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestExtentsThatBreakTheirContract(t *testing.T) {
	broken := errors.New("broken")
	tests := map[string]struct {
		in  []hypervisors.Extent
		err error
	}{
		"gap":         {[]hypervisors.Extent{ext(0, 50, d), ext(60, 140, d)}, nil},
		"overlap":     {[]hypervisors.Extent{ext(0, 50, d), ext(40, 160, d)}, nil},
		"empty":       {[]hypervisors.Extent{ext(0, 0, d), ext(0, 200, d)}, nil},
		"too long":    {[]hypervisors.Extent{ext(0, 201, d)}, nil},
		"too short":   {[]hypervisors.Extent{ext(0, 199, d)}, nil},
		"none":        {nil, nil},
		"wraps":       {[]hypervisors.Extent{ext(0, 100, d), ext(100, 1<<63-1, d)}, nil},
		"their error": {[]hypervisors.Extent{ext(0, 100, d)}, broken},
	}
	for name, tt := range tests {
		var last error
		for _, err := range segments(yielding(tt.in, tt.err), 200, 10, 40) {
			last = err
		}
		if last == nil || tt.err != nil && !errors.Is(last, tt.err) || tt.err == nil && fault.KindOf(last) != fault.Internal {
			t.Errorf("%s: error %v", name, last)
		}
	}
}

// TestSegmentsAgainstBytes compares segments with the states of single bytes.
func TestSegmentsAgainstBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		chunk := int64(rapid.SampledFrom([]int{1, 4, 16}).Draw(t, "chunk"))
		limit := chunk * int64(rapid.IntRange(1, 5).Draw(t, "chunks"))
		var in []hypervisors.Extent
		var state []hypervisors.ExtentState
		for _, n := range rapid.SliceOfN(rapid.IntRange(1, 60), 0, 30).Draw(t, "lengths") {
			s := rapid.SampledFrom([]hypervisors.ExtentState{d, z, u}).Draw(t, "state")
			in = append(in, ext(int64(len(state)), int64(n), s))
			for range n {
				state = append(state, s)
			}
		}
		size := int64(len(state))
		want := make([]hypervisors.ExtentState, size)
		for i := range want {
			lo := int64(i) / chunk * chunk
			want[i] = state[lo]
			for _, s := range state[lo:min(size, lo+chunk)] {
				if s != state[lo] {
					want[i] = d
				}
			}
		}
		at := int64(0)
		for e, err := range segments(yielding(in, nil), size, chunk, limit) {
			if err != nil {
				t.Fatal(err)
			}
			end := e.Offset + e.Length
			if e.Offset != at || e.Length <= 0 || e.Offset%chunk != 0 || end%chunk != 0 && end != size {
				t.Fatalf("segment %+v after %d", e, at)
			}
			if e.State == d && e.Offset/limit != (end-1)/limit {
				t.Fatalf("segment %+v crosses a multiple of %d", e, limit)
			}
			for _, s := range want[e.Offset:end] {
				if s != e.State {
					t.Fatalf("segment %+v, want state %d in it", e, s)
				}
			}
			at = end
		}
		if at != size {
			t.Fatalf("segments end at %d of %d", at, size)
		}
	})
}
