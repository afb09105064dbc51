package crashfs

import (
	"maps"
	"math/rand/v2"
	"path"
	"slices"
)

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
}

// Disk returns the disk under f before the first operation.
func (f *FS) Disk() *Disk {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := &Disk{log: slices.Clone(f.log), files: map[int]*content{}, durable: map[string]int{"/": -1}}
	maps.Copy(d.durable, f.base)
	for ino, size := range f.sizes {
		d.files[ino] = &content{data: slices.Clone(f.inodes[ino].data[:size]), synced: size}
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
		c := d.files[o.ino]
		c.synced = len(c.data)
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

// At returns how many operations were done.
func (d *Disk) At() int { return d.at }

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
	Some                   // a random subset is lost; tails of files are cut or zeroed
)

// Crash returns a file system as a power cut now may leave it.
func (d *Disk) Crash(loss Loss, rnd *rand.Rand) *FS {
	f := New()
	entries := maps.Clone(d.durable)
	for _, o := range d.pending {
		if loss == Nothing || (loss == Some && rnd.IntN(2) == 0) {
			apply(entries, o)
		}
	}
	numbers := map[int]int{}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		if name != "/" {
			if parent, ok := f.entries[path.Dir(name)]; !ok || parent >= 0 {
				continue // what it lies in is lost
			}
		}
		ino := entries[name]
		if ino < 0 {
			f.entries[name] = -1
			continue
		}
		if _, ok := numbers[ino]; !ok {
			numbers[ino] = len(f.inodes)
			f.inodes = append(f.inodes, &inode{data: d.files[ino].after(loss, rnd), first: name})
		}
		f.entries[name] = numbers[ino]
	}
	f.base, f.sizes = maps.Clone(f.entries), map[int]int{}
	for ino, i := range f.inodes {
		f.sizes[ino] = len(i.data)
	}
	return f
}

func (c *content) after(loss Loss, rnd *rand.Rand) []byte {
	tail := len(c.data) - c.synced
	switch {
	case loss == Everything:
		return slices.Clone(c.data[:c.synced])
	case loss == Nothing || tail == 0:
		return slices.Clone(c.data)
	}
	out := slices.Clone(c.data[:c.synced+rnd.IntN(tail+1)])
	if rnd.IntN(2) == 0 {
		clear(out[c.synced:]) // the length reached the disk, the bytes did not
	}
	return out
}
