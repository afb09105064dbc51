package transfer

import (
	"context"
	"iter"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// disk returns a frozen disk's extents; with everything, what is unchanged becomes data.
func disk(ctx context.Context, d hypervisors.FrozenDisk, everything bool) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		for e, err := range d.Extents(ctx) {
			if everything && e.State == hypervisors.Unchanged {
				e.State = hypervisors.Data
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// image returns an image's extents in a disk's words.
func image(ctx context.Context, i ImageSource) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		for e, err := range i.Extents(ctx) {
			out := hypervisors.Extent{Offset: e.Offset, Length: e.Length}
			if e.Zero {
				out.State = hypervisors.Zero
			}
			if !yield(out, err) || err != nil {
				return
			}
		}
	}
}

// segments turns extents into segments of whole chunks. A chunk is zero or unchanged only as a whole; any other chunk
// is data. Data segments have at most limit bytes and do not cross a multiple of it; the others are as long as they
// are. Extents that break their contract (gaps, overlaps, not up to size) are an error.
func segments(extents iter.Seq2[hypervisors.Extent, error], size, chunk, limit int64) iter.Seq2[hypervisors.Extent, error] {
	return func(yield func(hypervisors.Extent, error) bool) {
		var run hypervisors.Extent // chunks in one state, not yielded yet
		emit := func(off, n int64, s hypervisors.ExtentState) bool {
			if run.Length > 0 && run.State == s {
				run.Length += n
				return true
			}
			ok := split(run, limit, yield)
			run = hypervisors.Extent{Offset: off, Length: n, State: s}
			return ok
		}
		covered := int64(0) // by extents
		var mixed hypervisors.Extent
		for e, err := range extents {
			if err == nil && (e.Offset != covered || e.Length <= 0 || e.Length > size-covered) {
				err = fault.New(fault.Internal, "read extents", "", "%d bytes at %d after %d of %d", e.Length, e.Offset, covered, size)
			}
			if err != nil {
				yield(hypervisors.Extent{}, err)
				return
			}
			covered += e.Length
			for e.Length > 0 {
				n := min(e.Length, chunk-mixed.Length)
				if mixed.Length == 0 && e.Length >= chunk { // whole chunks
					n = e.Length - e.Length%chunk
					if !emit(e.Offset, n, e.State) {
						return
					}
				} else {
					mixed = mix(mixed, e, n)
					if mixed.Length == chunk {
						if !emit(mixed.Offset, chunk, mixed.State) {
							return
						}
						mixed = hypervisors.Extent{}
					}
				}
				e.Offset, e.Length = e.Offset+n, e.Length-n
			}
		}
		if covered != size {
			yield(hypervisors.Extent{}, fault.New(fault.Internal, "read extents", "", "they end at %d of %d", covered, size))
			return
		}
		if mixed.Length > 0 && !emit(mixed.Offset, mixed.Length, mixed.State) {
			return
		}
		split(run, limit, yield)
	}
}

// mix adds n bytes of e to a chunk that is not complete yet.
func mix(chunk, e hypervisors.Extent, n int64) hypervisors.Extent {
	if chunk.Length == 0 {
		return hypervisors.Extent{Offset: e.Offset, Length: n, State: e.State}
	}
	chunk.Length += n
	if chunk.State != e.State {
		chunk.State = hypervisors.Data
	}
	return chunk
}

// split yields a run, data in pieces up to the next multiple of limit.
func split(run hypervisors.Extent, limit int64, yield func(hypervisors.Extent, error) bool) bool {
	for run.Length > 0 {
		n := run.Length
		if run.State == hypervisors.Data {
			n = min(n, limit-run.Offset%limit)
		}
		if !yield(hypervisors.Extent{Offset: run.Offset, Length: n, State: run.State}, nil) {
			return false
		}
		run.Offset, run.Length = run.Offset+n, run.Length-n
	}
	return true
}
