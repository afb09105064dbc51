package store

import (
	"bytes"
	"errors"

	"github.com/cairn-backup/cairn/store/chunk"
)

// workCompact leaves packs of which little is needed, some of it blocks that later chunks refer to, and has collects
// rewrite them: in one process, and in the next one, which knows of the first only what is stored.
func workCompact(l *life) {
	rewritten := 0
	var points []RestorePoint
	disk := l.disk()
	for range 2 {
		l.open()
		var parent *RestorePoint
		for day := range 3 {
			disk = l.changed(disk, 4)
			if day == 1 { // most of what the first day stored is written over; a chunk keeps blocks in it
				disk = bytes.Clone(disk)
				fill(l.rnd, disk[3*chunk.MinBytes:])
			}
			p := l.backup(disk, parent)
			points, parent = append(points, p), &p
		}
		for _, p := range points[:len(points)-1] {
			l.prune(p)
		}
		points = points[len(points)-1:]
		rewritten += l.collect().PacksCompacted
		l.close()
	}
	if rewritten == 0 {
		check(errors.New("the workload rewrote nothing"))
	}
}
