package store

import (
	"context"

	"github.com/cairn-backup/cairn/store/blob"
)

// workKeys adds, rotates and removes keys, with backups in between. At each cut every key that was added and not asked
// to be removed opens the repository, and while one takes the place of another, one of the two.
func workKeys(l *life) {
	ctx := context.Background()
	keys := []Key{l.key, {secret: [32]byte{2}}, {secret: [32]byte{3}}, {secret: [32]byte{4}}}
	added := func(n int) { l.events = append(l.events, event{op: l.fs.Ops(), key: &keys[n]}) }
	leaving := func(n int) { l.events = append(l.events, event{op: l.fs.Ops(), key: &keys[n], begun: true}) }
	// rotate may be cut off when only the new key is left, before it was said to be there.
	rotate := func(b blob.Store, old, next int) {
		leaving(old)
		leaving(next)
		check(RotateKey(ctx, b, keys[old], keys[next]))
		added(next)
		l.key = keys[next]
	}
	l.open()
	disk := l.disk()
	p := l.backup(disk, nil)
	l.close()

	b, err := l.plant.open(l.fs, false)
	check(err)
	second, err := AddKey(ctx, b, keys[0], keys[1], "second")
	check(err)
	added(1)
	rotate(b, 0, 2)
	l.open() // keys change beside the owner
	q := l.backup(l.changed(disk, 2), &p)
	leaving(1)
	check(RemoveWrapping(ctx, l.b, keys[2], second.ID))
	rotate(l.b, 2, 3)
	l.backup(l.changed(disk, 2), &q)
	l.close()
}
