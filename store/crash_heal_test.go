package store

import (
	"context"
	"errors"
	"path"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// workHeal has packs and the record of a restore point rot, and be healed from a copy. At each cut from the damage on, a
// heal by the next process brings everything back, and after the one that was acknowledged nothing is missing.
func workHeal(l *life) {
	ctx := context.Background()
	l.open()
	disk := l.disk()
	p := l.backup(disk, nil)
	q := l.backup(l.changed(disk, 4), &p)
	l.close()
	whole := l.fs.Disk()
	l.copied = whole.End().Crash(crashfs.Nothing, nil)

	l.events = append(l.events, event{op: l.fs.Ops(), rotten: true})
	packs := 0
	for _, name := range l.fs.Names("/disk/repo/packs") {
		if path.Ext(name) != ".pack" {
			continue
		}
		packs++
		l.rot(name, packs%3)
	}
	l.rot("/disk/repo/"+manifestName(q.ID), 0)
	l.open()
	b, err := l.plant.open(l.copied, false)
	check(err)
	from, err := Open(ctx, b, l.key, Options{ReadOnly: true, Workers: 1})
	check(err)
	if _, err := l.r.Sweep(ctx, SweepOptions{}); fault.KindOf(err) != fault.Corrupt {
		check(errors.New("the damage was not found"), err)
	}
	report, err := l.r.Heal(ctx, HealOptions{From: []*Repository{from}})
	check(err, from.Close())
	if len(report.Quarantined) == 0 || len(report.Healed) == 0 || len(report.Records) != 1 {
		check(errors.New("the workload healed nothing"))
	}
	l.events = append(l.events, event{op: l.fs.Ops()})
	l.backup(l.changed(disk, 2), &q)
	_, err = l.r.EmptyQuarantine(ctx)
	check(err)
	l.prune(p)
	l.collect()
	l.close()
}

// rot changes an object: a byte in the middle (0), or cuts it short (1). 2 leaves it as it is. One moment it is whole, the
// next it is damaged: nothing in between is the program's doing.
func (l *life) rot(name string, how int) {
	if how == 2 {
		return
	}
	info, err := l.fs.Stat(name)
	check(err)
	f, err := l.fs.Open(name)
	check(err)
	p := make([]byte, info.Size())
	_, err = f.ReadAt(p, 0)
	check(err, f.Close())
	if p[len(p)/2] ^= 1; how == 1 {
		p = p[:len(p)/2]
	}
	const beside = "/disk/rot"
	f, err = l.fs.Create(beside)
	check(err)
	_, err = f.Write(p)
	check(err, f.Sync(), f.Close(), l.fs.SyncDir("/disk"), l.fs.Rename(beside, name), l.fs.SyncDir(path.Dir(name)), l.fs.SyncDir("/disk"))
}
