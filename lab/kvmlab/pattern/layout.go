// Package pattern is the content that lab guests write to their disks, and the check of it.
//
// It does no VM handling and opens no devices; guests use it on block devices, tests on images. Its invariant: at
// every instant at which a group of disks can be frozen, Check accepts their content, and it accepts nothing that a
// crash between ordered writes could not have left.
//
// A group of disks is written in rounds. Round r writes a few runs of blocks at places that follow from (group, disk,
// r), flushes all disks, and only then writes r into the superblock of each disk in turn, flushing after each one. So
// with the smallest superblock at r, every block of the rounds up to r is there, blocks of round r+1 may be there,
// and nothing later is.
package pattern

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// Geometry of the content.
const (
	BlockBytes   = 4096
	RunBlocks    = 4        // blocks written in one piece
	RunsPerRound = 4        // pieces per disk and round
	clusterBytes = 64 << 10 // runs lie in clusters that are spread over the whole disk
	superBytes   = clusterBytes
	clusterRuns  = clusterBytes / (BlockBytes * RunBlocks)
	// RoundBytes is what a round writes to each disk, superblock aside.
	RoundBytes = RunsPerRound * RunBlocks * BlockBytes
)

// ID names a group of disks that are written together.
type ID [16]byte

// Layout says where on a disk the writer writes.
type Layout struct {
	clusters int64 // number of clusters in the area
	stride   int64 // distance of two of them in bytes
}

// NewLayout spreads an area of areaBytes evenly over a disk.
func NewLayout(diskBytes, areaBytes int64) (Layout, error) {
	room := (diskBytes - superBytes) / clusterBytes
	n := min(areaBytes/clusterBytes, room)
	if n < RunsPerRound {
		return Layout{}, fmt.Errorf("a disk of %d bytes is too small for an area of %d bytes", diskBytes, areaBytes)
	}
	return Layout{clusters: n, stride: room / n * clusterBytes}, nil
}

// AreaBytes returns how many bytes of the disk are ever written, superblocks aside.
func (l Layout) AreaBytes() int64 { return l.clusters * clusterBytes }

// Contains says whether the writer ever writes to the 64 KiB cluster at offset.
func (l Layout) Contains(offset int64) bool {
	if offset < superBytes {
		return true
	}
	offset -= superBytes
	return offset%l.stride < clusterBytes && offset/l.stride < l.clusters
}

// runs is the number of places at which a run can be written.
func (l Layout) runs() int64 { return l.clusters * clusterRuns }

// offset returns where run i lies on the disk.
func (l Layout) offset(i int64) int64 {
	return superBytes + i/clusterRuns*l.stride + i%clusterRuns*BlockBytes*RunBlocks
}

// roundRuns returns the runs that a round writes to a disk, all different.
func (l Layout) roundRuns(id ID, disk uint32, round uint64) [RunsPerRound]int64 {
	var out [RunsPerRound]int64
	state := mix(binary.LittleEndian.Uint64(id[:8]) ^ mix(round) ^ uint64(disk)<<32)
	for i := range out {
		for again := true; again; {
			state = mix(state)
			out[i] = int64(state % uint64(l.runs()))
			again = false
			for _, before := range out[:i] {
				again = again || before == out[i]
			}
		}
	}
	return out
}

// mix is the splitmix64 step.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

const (
	dataMagic  = "CAIRNBLK"
	superMagic = "CAIRNSUP"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// block is the head of every written block: magic, crc of the rest, disk, group, round, offset. The payload follows
// from the head, so that a block cannot be right in parts.
type block struct {
	id     ID
	disk   uint32
	round  uint64
	offset int64
}

func (b block) encode(p []byte) {
	copy(p, dataMagic)
	binary.LittleEndian.PutUint32(p[12:], b.disk)
	copy(p[16:], b.id[:])
	binary.LittleEndian.PutUint64(p[32:], b.round)
	binary.LittleEndian.PutUint64(p[40:], uint64(b.offset))
	state := mix(b.round ^ uint64(b.offset)<<20)
	for i := 48; i < BlockBytes; i += 8 {
		state = state*6364136223846793005 + 1442695040888963407
		binary.LittleEndian.PutUint64(p[i:], state)
	}
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p[12:BlockBytes], castagnoli))
}

func decodeBlock(p []byte) (block, error) {
	if string(p[:8]) != dataMagic {
		return block{}, fmt.Errorf("no block of the pattern (begins with %x)", p[:8])
	}
	if got, want := crc32.Checksum(p[12:BlockBytes], castagnoli), binary.LittleEndian.Uint32(p[8:]); got != want {
		return block{}, fmt.Errorf("checksum %08x, want %08x", got, want)
	}
	return block{
		id: ID(p[16:32]), disk: binary.LittleEndian.Uint32(p[12:]),
		round: binary.LittleEndian.Uint64(p[32:]), offset: int64(binary.LittleEndian.Uint64(p[40:])),
	}, nil
}

// super is a superblock. Two copies take turns, so that a torn write leaves the other one.
type super struct {
	id    ID
	disk  uint32 // place in the group
	disks uint32 // size of the group
	size  int64
	area  int64
	round uint64
}

func (s super) encode(p []byte) {
	clear(p[:BlockBytes])
	copy(p, superMagic)
	copy(p[16:], s.id[:])
	binary.LittleEndian.PutUint32(p[32:], s.disk)
	binary.LittleEndian.PutUint32(p[36:], s.disks)
	binary.LittleEndian.PutUint64(p[40:], uint64(s.size))
	binary.LittleEndian.PutUint64(p[48:], uint64(s.area))
	binary.LittleEndian.PutUint64(p[56:], s.round)
	binary.LittleEndian.PutUint32(p[8:], crc32.Checksum(p[12:BlockBytes], castagnoli))
}

func decodeSuper(p []byte) (super, bool) {
	if string(p[:8]) != superMagic || crc32.Checksum(p[12:BlockBytes], castagnoli) != binary.LittleEndian.Uint32(p[8:]) {
		return super{}, false
	}
	return super{
		id: ID(p[16:32]), disk: binary.LittleEndian.Uint32(p[32:]), disks: binary.LittleEndian.Uint32(p[36:]),
		size: int64(binary.LittleEndian.Uint64(p[40:])), area: int64(binary.LittleEndian.Uint64(p[48:])),
		round: binary.LittleEndian.Uint64(p[56:]),
	}, true
}
