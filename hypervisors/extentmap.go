package hypervisors

import (
	"encoding/binary"
	"iter"

	"github.com/cairn-backup/cairn/internal/fault"
)

// ExtentMap holds a frozen disk's extents in a form that can be sent with a task: a hot-plugged disk cannot say itself
// which of its ranges changed or are zeros.
//
// It has at most MaxExtentMap bytes whatever the disk's size. A grain, at least 64 KiB, is Zero or Unchanged only as a
// whole; where too many small changes lie scattered over a large disk, grains are made larger. So a map may call
// Data what is not, never the other way round.
//
// Its bytes: version (1), the grain's binary logarithm, the disk's size as a uvarint, and for every 4096 grains one
// block: a byte that says how it is written, then its grains.
type ExtentMap []byte

// MaxExtentMap bounds an ExtentMap. Changes in every other 64 KiB of 1 TiB fit.
const MaxExtentMap = 2<<20 + 8<<10

const (
	mapVersion  = 1
	smallGrain  = 16      // 64 KiB
	largeGrain  = 40      // more is no disk
	blockGrains = 1 << 12 // grains in a block
	maxGrains   = 1 << 28 // bounds the memory while a map is made: two bits each
)

// How a block is written. The first three are the states themselves: all of the block is in that state.
const (
	blockRuns      = 3 // uvarints, each (grains-1)<<2 | state
	blockUnchanged = 4 // one bit a grain: 1 is Data, 0 Unchanged
	blockZero      = 5 // one bit a grain: 1 is Data, 0 Zero
	blockStates    = 6 // two bits a grain
)

// NewExtentMap makes a map of a disk's extents, which must cover it from 0 to size.
func NewExtentMap(size int64, extents iter.Seq2[Extent, error]) (ExtentMap, error) {
	shift := smallGrain
	for size>>shift > maxGrains {
		shift++
	}
	m, err := encodeMap(size, shift, extents)
	for ; err == nil && len(m) > MaxExtentMap; m, err = encodeMap(size, shift, m.Extents()) {
		shift++
	}
	return m, err
}

// Size is the disk's size in bytes, 0 for a map that cannot be read.
func (m ExtentMap) Size() int64 {
	size, _, _, _ := m.header()
	return size
}

// Extents yields the extents; neighbours in the same state are one. A map that cannot be read yields an error.
func (m ExtentMap) Extents() iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		var last Extent // not yielded yet, for it may go on
		for e, err := range m.runs() {
			if err == nil && last.Length > 0 && last.State == e.State {
				last.Length += e.Length
				continue
			}
			if last.Length > 0 && !yield(last, nil) {
				return
			}
			if err != nil {
				yield(Extent{}, err)
				return
			}
			last = e
		}
		if last.Length > 0 {
			yield(last, nil)
		}
	}
}

func badMap(format string, args ...any) error {
	return fault.New(fault.Invalid, "read extent map", "", format, args...)
}

func (m ExtentMap) header() (size int64, shift int, rest []byte, err error) {
	if len(m) < 3 || m[0] != mapVersion {
		return 0, 0, nil, badMap("no map of version %d", mapVersion)
	}
	shift = int(m[1])
	n, used := binary.Uvarint(m[2:])
	if used <= 0 || n > 1<<62 || shift < smallGrain || shift > largeGrain {
		return 0, 0, nil, badMap("size %d with grains of 2^%d bytes", n, shift)
	}
	return int64(n), shift, m[2+used:], nil
}

// runs yields the map's runs of grains as they are written.
func (m ExtentMap) runs() iter.Seq2[Extent, error] {
	return func(yield func(Extent, error) bool) {
		size, shift, rest, err := m.header()
		off := int64(0)
		for err == nil && off < size {
			grains := int(min(blockGrains, (size-off+1<<shift-1)>>shift))
			var block []run
			if block, rest, err = decodeBlock(rest, grains); err != nil {
				break
			}
			for _, r := range block {
				n := min(int64(r.grains)<<shift, size-off)
				if !yield(Extent{Offset: off, Length: n, State: r.state}, nil) {
					return
				}
				off += n
			}
		}
		if err == nil && len(rest) > 0 {
			err = badMap("%d bytes follow it", len(rest))
		}
		if err != nil {
			yield(Extent{}, err)
		}
	}
}

// run is a number of grains in one state.
type run struct {
	grains int
	state  ExtentState
}

func decodeBlock(p []byte, grains int) ([]run, []byte, error) {
	if len(p) == 0 {
		return nil, nil, badMap("it is cut short")
	}
	how, p := p[0], p[1:]
	var out []run
	add := func(n int, s ExtentState) {
		if l := len(out); l > 0 && out[l-1].state == s {
			out[l-1].grains += n
		} else {
			out = append(out, run{n, s})
		}
	}
	bits := func(width int, state func(b byte) ExtentState) ([]run, []byte, error) {
		n := (grains*width + 7) / 8
		if len(p) < n {
			return nil, nil, badMap("it is cut short")
		}
		for i := range grains {
			s := state(p[i*width/8] >> (i * width % 8) & (1<<width - 1))
			if s > Unchanged {
				return nil, nil, badMap("a grain is in state %d", s)
			}
			add(1, s)
		}
		return out, p[n:], nil
	}
	switch how {
	case byte(Data), byte(Zero), byte(Unchanged):
		return []run{{grains, ExtentState(how)}}, p, nil
	case blockRuns:
		for left := grains; left > 0; {
			v, used := binary.Uvarint(p)
			if used <= 0 || v>>2 >= uint64(left) || ExtentState(v&3) > Unchanged {
				return nil, nil, badMap("a run of %d grains where %d are left", v>>2, left)
			}
			p = p[used:]
			add(int(v>>2)+1, ExtentState(v&3))
			left -= int(v>>2) + 1
		}
		return out, p, nil
	case blockUnchanged:
		return bits(1, func(b byte) ExtentState { return Unchanged * ExtentState(1-b) })
	case blockZero:
		return bits(1, func(b byte) ExtentState { return Zero * ExtentState(1-b) })
	case blockStates:
		return bits(2, func(b byte) ExtentState { return ExtentState(b) })
	}
	return nil, nil, badMap("a block is written in way %d", how)
}

// encodeMap writes extents in grains of one size.
func encodeMap(size int64, shift int, extents iter.Seq2[Extent, error]) (ExtentMap, error) {
	m := binary.AppendUvarint(ExtentMap{mapVersion, byte(shift)}, uint64(size))
	if size < 0 || size > 1<<62 || shift > largeGrain {
		return nil, badMap("a disk of %d bytes", size)
	}
	block := make([]ExtentState, 0, blockGrains)
	end := int64(0)   // of the extents so far
	begun := false    // the grain in which end lies has a state
	var s ExtentState // of that grain
	put := func(n int64, state ExtentState) {
		for ; n > 0; n-- {
			for ; len(block) == 0 && n > blockGrains; n -= blockGrains {
				m = append(m, byte(state))
			}
			if block = append(block, state); len(block) == blockGrains {
				m, block = appendBlock(m, block), block[:0]
			}
		}
	}
	for e, err := range extents {
		if err != nil {
			return nil, err
		}
		if e.Offset != end || e.Length <= 0 || e.Length > size-end || e.State > Unchanged {
			return nil, badMap("extent %+v after %d of %d bytes", e, end, size)
		}
		for n := e.Length; n > 0; {
			if whole := n >> shift; !begun && whole > 0 {
				put(whole, e.State)
				end, n = end+whole<<shift, n-whole<<shift
				continue
			}
			part := min(n, 1<<shift-end&(1<<shift-1))
			if !begun {
				s = e.State
			} else if s != e.State {
				s = Data
			}
			end, n, begun = end+part, n-part, true
			if end&(1<<shift-1) == 0 {
				put(1, s)
				begun = false
			}
		}
	}
	if end != size {
		return nil, badMap("the extents end at %d of %d", end, size)
	}
	if begun {
		put(1, s)
	}
	if len(block) > 0 {
		m = appendBlock(m, block)
	}
	return m, nil
}

// appendBlock writes a block in the shortest way.
func appendBlock(m ExtentMap, block []ExtentState) ExtentMap {
	var has [Unchanged + 1]bool
	start := len(m)
	m = append(m, blockRuns)
	runs := 0
	for i := 0; i < len(block); runs++ {
		n := 1
		for i+n < len(block) && block[i+n] == block[i] {
			n++
		}
		has[block[i]] = true
		m = binary.AppendUvarint(m, uint64(n-1)<<2|uint64(block[i]))
		i += n
	}
	if runs == 1 {
		return append(m[:start], byte(block[0]))
	}
	how, width := byte(blockStates), 2
	if !has[Zero] {
		how, width = blockUnchanged, 1
	} else if !has[Unchanged] {
		how, width = blockZero, 1
	}
	n := (len(block)*width + 7) / 8
	if len(m)-start <= 1+n {
		return m
	}
	m = append(append(m[:start], how), make([]byte, n)...)
	p := m[len(m)-n:]
	for i, s := range block {
		v := byte(s)
		if width == 1 {
			v = 0
			if s == Data {
				v = 1
			}
		}
		p[i*width/8] |= v << (i * width % 8)
	}
	return m
}
