package crashfs

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// sector is what a disk writes at once.
const sector = 512

// Disk follows a recording operation by operation and knows at each what a power cut may leave.
type Disk struct {
	log     []op
	at      int
	files   map[int]*content
	durable map[string]int
	pending []op // changes of entries whose directory was not synced since
}

type content struct {
	data   []byte
	synced int
	lost   bool // an fsync failed: the kernel has forgotten that there is something to write
}

// Disk returns the disk under f before the first operation.
func (f *FS) Disk() *Disk {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &Disk{log: slices.Clone(f.log), files: map[int]*content{}, durable: map[string]int{"/": -1}}
	maps.Copy(d.durable, f.base)
	for ino, size := range f.sizes {
		d.files[ino] = &content{data: f.inodes[ino].data[:size:size], synced: size}
	}
	return d
}

// Step does one operation; false at the end.
func (d *Disk) Step() bool {
	if d.at == len(d.log) {
		return false
	}
	o := d.log[d.at]
	d.at++
	switch o.kind {
	case opCreate:
		d.files[o.ino] = &content{}
		d.pending = append(d.pending, o)
	case opWrite:
		c := d.files[o.ino]
		c.data = append(c.data, o.data...)
	case opSync:
		if c := d.files[o.ino]; !c.lost {
			c.synced = len(c.data)
		}
	case opLost:
		d.files[o.ino].lost = true
	case opLink, opUnlink, opMkdir:
		d.pending = append(d.pending, o)
	case opSyncDir:
		d.pending = slices.DeleteFunc(d.pending, func(p op) bool {
			if path.Dir(p.name) != o.name {
				return false
			}
			apply(d.durable, p)
			return true
		})
	}
	return true
}

// End does all operations that are left.
func (d *Disk) End() *Disk {
	for d.Step() {
	}
	return d
}

// At returns how many operations were done.
func (d *Disk) At() int { return d.at }

var opNames = [...]string{"create", "write", "sync", "link", "unlink", "mkdir", "syncdir", "failed sync"}

// Last describes the newest operations that were done, for messages.
func (d *Disk) Last(n int) string {
	var out []string
	for _, o := range d.log[max(0, d.at-n):d.at] {
		out = append(out, fmt.Sprintf("%s %s", opNames[o.kind], o.name))
	}
	return strings.Join(out, ", ")
}

func apply(entries map[string]int, o op) {
	if o.kind == opUnlink {
		delete(entries, o.name)
		return
	}
	entries[o.name] = o.ino
}

// Loss is what happens to what was not synced.
type Loss uint8

// The losses.
const (
	Everything Loss = iota // all of it is lost
	Nothing                // all of it is kept, as when only the process dies
	Some                   // a random subset is lost; tails of files are cut, zeroed or torn
)

// Crash returns a file system as a power cut now may leave it. The disk stays as it is. rnd is asked with Some only.
func (d *Disk) Crash(loss Loss, rnd *rand.Rand) *FS {
	f := New()
	entries := maps.Clone(d.durable)
	for _, o := range d.pending {
		if loss == Nothing || (loss == Some && rnd.IntN(2) == 0) {
			apply(entries, o)
		}
	}
	digest := fnv.New64a()
	numbers := map[int]int{}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		if name != "/" {
			if parent, ok := f.entries[path.Dir(name)]; !ok || parent >= 0 {
				continue // what it lies in is lost
			}
		}
		ino := entries[name]
		_, _ = digest.Write([]byte(name))
		if ino < 0 {
			f.entries[name] = -1
			continue
		}
		if _, ok := numbers[ino]; !ok {
			numbers[ino] = len(f.inodes)
			data, mark := d.files[ino].after(loss, rnd)
			f.inodes = append(f.inodes, &inode{data: data})
			_, _ = digest.Write(binary.AppendUvarint(nil, uint64(len(data))))
			_, _ = digest.Write(binary.AppendUvarint(nil, mark))
		}
		_, _ = digest.Write(binary.AppendUvarint(nil, uint64(numbers[ino])))
		f.entries[name] = numbers[ino]
	}
	f.base, f.sizes = maps.Clone(f.entries), map[int]int{}
	for ino, i := range f.inodes {
		f.sizes[ino] = len(i.data)
	}
	f.state = digest.Sum64()
	return f
}

// State is a digest of what a Crash left: two of one recording that have the same are the same.
func (f *FS) State() uint64 { return f.state }

// after returns what is left of a file, which shares memory with the recording, and a number for how it was torn.
func (c *content) after(loss Loss, rnd *rand.Rand) ([]byte, uint64) {
	tail := len(c.data) - c.synced
	switch {
	case loss == Everything || tail == 0:
		return c.data[:c.synced:c.synced], 0
	case loss == Nothing:
		return c.data[:len(c.data):len(c.data)], 0
	}
	end := c.synced + rnd.IntN(tail+1)
	how := rnd.IntN(3)
	if how == 0 || end == c.synced { // a prefix
		return c.data[:end:end], 0
	}
	out := slices.Clone(c.data[:end])
	if how == 1 {
		clear(out[c.synced:]) // the length reached the disk, the bytes did not
		return out, 1
	}
	seed := rnd.Uint64() | 2
	torn := rand.New(rand.NewPCG(seed, 0))
	for at := c.synced; at < end; at += sector {
		if torn.IntN(2) == 0 {
			clear(out[at:min(end, at+sector)])
		}
	}
	return out, seed
}
