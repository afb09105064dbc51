package pack

import (
	"encoding/binary"
	"sync"

	"github.com/cairn-backup/cairn/store/chunk"
)

func appendPrints(dst []byte, prints []chunk.Fingerprint) []byte {
	for i := range prints {
		dst = append(dst, prints[i][:]...)
	}
	return dst
}

// places finds entries by id. It is made when it is first asked: most directories never are.
type places struct {
	once   sync.Once
	slots  []uint32 // open addressing: slot + 1, 0 is free
	frames []uint16 // how many entries each frame has, at most 65535
}

// Find returns the slot of an object in the pack.
func (d *Directory) Find(id chunk.Hash) (slot int, ok bool) {
	d.places.once.Do(d.makePlaces)
	mask := uint32(len(d.places.slots) - 1)
	for at := binary.LittleEndian.Uint32(id[:]) & mask; ; at = (at + 1) & mask {
		s := d.places.slots[at]
		if s == 0 {
			return 0, false
		}
		if d.Entries[s-1].ID == id {
			return int(s - 1), true
		}
	}
}

// InFrame returns how many entries lie in a frame.
func (d *Directory) InFrame(number uint32) int {
	d.places.once.Do(d.makePlaces)
	return int(d.places.frames[number])
}

func (d *Directory) makePlaces() {
	d.places.slots = make([]uint32, tableSize(len(d.Entries)))
	d.places.frames = make([]uint16, len(d.Frames))
	mask := uint32(len(d.places.slots) - 1)
	for i := range d.Entries {
		at := binary.LittleEndian.Uint32(d.Entries[i].ID[:]) & mask
		for d.places.slots[at] != 0 {
			at = (at + 1) & mask
		}
		d.places.slots[at] = uint32(i + 1)
		if f := &d.places.frames[d.Entries[i].Frame]; *f < 1<<16-1 {
			*f++
		}
	}
}

// tableSize is a power of two that leaves a table of n at most half full.
func tableSize(n int) int {
	size := 4
	for size < 2*n {
		size *= 2
	}
	return size
}

// Blocks are the fingerprints of a data pack's blocks, and finds those that are physically in it.
type Blocks struct {
	dir    *Directory
	prints []chunk.Fingerprint
	table  []uint32 // open addressing: number of the block in the pack + 1, 0 is free
}

// NewBlocks takes what Prints returned.
func (r *Reader) NewBlocks(prints []chunk.Fingerprint) *Blocks {
	n := r.dir.Blocks
	b := &Blocks{dir: r.dir, prints: prints}
	present := 0
	for i := range r.dir.Entries {
		present += int(r.dir.Entries[i].Length) / chunk.BlockBytes
	}
	b.table = make([]uint32, tableSize(present))
	mask := uint32(len(b.table) - 1)
	for slot := range r.dir.Entries {
		for i := range n {
			if r.dir.Entries[slot].Present&(1<<i) == 0 {
				continue
			}
			f := prints[slot*n+i]
			at := binary.LittleEndian.Uint32(f[:]) & mask
			for b.table[at] != 0 && prints[b.table[at]-1] != f {
				at = (at + 1) & mask
			}
			if b.table[at] == 0 {
				b.table[at] = uint32(slot*n + i + 1)
			}
		}
	}
	return b
}

// Cost is about how much memory b takes.
func (b *Blocks) Cost() int64 { return int64(len(b.prints)*16 + len(b.table)*4) }

// Of returns the fingerprints of an entry's blocks.
func (b *Blocks) Of(slot int) []chunk.Fingerprint {
	return b.prints[slot*b.dir.Blocks : (slot+1)*b.dir.Blocks]
}

// Find returns where a block of this fingerprint is physically in the pack.
func (b *Blocks) Find(f chunk.Fingerprint) (Ref, bool) {
	mask := uint32(len(b.table) - 1)
	for at := binary.LittleEndian.Uint32(f[:]) & mask; ; at = (at + 1) & mask {
		n := b.table[at]
		if n == 0 {
			return Ref{}, false
		}
		if b.prints[n-1] == f {
			slot, block := int(n-1)/b.dir.Blocks, int(n-1)%b.dir.Blocks
			return Ref{Target: b.dir.Entries[slot].ID, Block: uint8(block)}, true
		}
	}
}
