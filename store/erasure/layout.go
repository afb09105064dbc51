package erasure

import (
	"fmt"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Layout says how an object is cut: Data shards that hold it and Parity shards computed from them. Any Data of them are
// enough to read it. 1+1 is a mirror.
type Layout struct {
	Data   int `json:"data"`
	Parity int `json:"parity"`
}

// Members is how many members a group of this layout has.
func (l Layout) Members() int { return l.Data + l.Parity }

// String returns the usual short form, "4+2".
func (l Layout) String() string { return fmt.Sprintf("%d+%d", l.Data, l.Parity) }

func (l Layout) check() error {
	if l.Data < 1 || l.Parity < 1 || l.Members() > maxMembers {
		return fault.New(fault.Invalid, "plan erasure set", l.String(), "not a possible layout").Explain(
			"A set needs at least one data and one parity member per group, and at most 64 in all.",
			"Usual layouts are 1+1 (a mirror), 4+2 and 8+2.")
	}
	return nil
}

const (
	maxMembers = 64
	maxObject  = 1 << 46 // 64 TiB; larger sizes are not believed
	unitBytes  = 64 << 10
	chunkBytes = 256 << 10 // of one shard in one stripe; a multiple of unitBytes
	wholeLimit = 64 << 10  // objects up to this size are kept whole on every member
)

// geometry is where the bytes of one object lie. Stripes of k chunks go over the data shards; the last stripe is shorter,
// its chunks are all as long as the longest of them and the last ones padded with zeros.
type geometry struct {
	k, n int
	size int64
}

func (g geometry) stripe() int64 { return int64(g.k) * chunkBytes }

// tail returns the length of each chunk of the last, shorter stripe; 0: there is none.
func (g geometry) tail() int64 {
	return (g.size%g.stripe() + int64(g.k) - 1) / int64(g.k)
}

// shardBytes is the length of every shard's content.
func (g geometry) shardBytes() int64 { return g.size/g.stripe()*chunkBytes + g.tail() }

func (g geometry) units() int64 { return (g.shardBytes() + unitBytes - 1) / unitBytes }

// unitLen is the length of unit u, from 0.
func (g geometry) unitLen(u int64) int { return int(min(unitBytes, g.shardBytes()-u*unitBytes)) }

// runBytes is the length of count units from first, with their hashes.
func (g geometry) runBytes(first int64, count int) int {
	end := min((first+int64(count))*unitBytes, g.shardBytes())
	return int(end-first*unitBytes) + count*hashBytes
}

// unitAt is where unit u begins in a shard's file.
func unitAt(u int64) int64 { return headerBytes + u*(unitBytes+hashBytes) }

// fileBytes is the length of a shard's file.
func (g geometry) fileBytes() int64 {
	return headerBytes + g.shardBytes() + g.units()*hashBytes + trailerBytes
}

// place tells which data shard holds the byte at off, where in the shard, and how many bytes follow there.
func (g geometry) place(off int64) (shard int, at, run int64) {
	stripe, in := off/g.stripe(), off%g.stripe()
	chunk := int64(chunkBytes)
	if stripe == g.size/g.stripe() {
		chunk = g.tail()
	}
	return int(in / chunk), stripe*chunkBytes + in%chunk, min(chunk-in%chunk, g.size-off)
}
