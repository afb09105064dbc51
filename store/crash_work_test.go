package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

const (
	crashChunks = 8        // of a disk
	crashPack   = 40 << 10 // a pack is full with the first frame or the second
)

// event is something the writer of a crash workload was told at a point of the recording.
type event struct {
	op    int
	id    string
	disk  []byte // acknowledged; nil: its removal was asked for
	begun bool   // removal asked for, not yet acknowledged

	key    *Key // not of a restore point: this key opens the repository now; begun: its removal was asked for
	rotten bool // not of a restore point: something was damaged from here on; otherwise, without an id, all is healed
}

// life is a repository on a recording file system, and what its users were told.
type life struct {
	fs      *crashfs.FS
	plant   plant
	key     Key // that opens it at the end of what was lived
	first   Key // that it was created with
	rnd     *rand.Rand
	b       blob.Store
	r       *Repository
	events  []event
	indexes []keptIndex
	scratch string      // where indexes are kept; "": none is
	copied  *crashfs.FS // what damage can be healed from
	opened  []*Repository
}

// keptIndex is an index directory as it was when a process had ended.
type keptIndex struct{ dir string }

func newLife(seed uint64, p plant, scratch string) *life {
	l := &life{fs: crashfs.New(), plant: p, key: Key{secret: [32]byte{1}}, rnd: rand.New(rand.NewPCG(seed, 1)), scratch: scratch}
	l.fs.Lie, l.first = p.lie, l.key
	return l
}

// record lives a workload. An error is one that the program noticed itself.
func (l *life) record(work func(*life)) (err error) {
	defer l.end()
	defer caught(&err)
	check(l.fs.Mkdir("/disk"), l.fs.SyncDir("/"))
	l.create()
	work(l)
	return nil
}

func (l *life) create() {
	b, err := l.plant.open(l.fs, true)
	check(err)
	check(Create(context.Background(), b, l.key, CreateOptions{ChunkBytes: chunk.MinBytes}))
	l.events = append(l.events, event{op: l.fs.Ops(), key: &l.first})
}

func (l *life) open() {
	l.b, l.r = l.another()
}

func (l *life) another() (blob.Store, *Repository) {
	b, err := l.plant.open(l.fs, false)
	check(err)
	o := Options{packBytes: crashPack, Workers: 1}
	if l.scratch != "" {
		o.IndexDir = filepath.Join(l.scratch, "index")
	}
	r, err := Open(context.Background(), b, l.key, o)
	check(err)
	l.opened = append(l.opened, r)
	return b, r
}

// end closes what a life that was broken off has left open.
func (l *life) end() {
	for _, r := range l.opened {
		_ = r.Close() // nothing, if it is
	}
}

func (l *life) close() {
	check(l.r.Close(), l.b.Close())
	if l.scratch != "" {
		to := filepath.Join(l.scratch, fmt.Sprintf("index-%d", len(l.indexes)))
		check(os.CopyFS(to, os.DirFS(filepath.Join(l.scratch, "index"))))
		l.indexes = append(l.indexes, keptIndex{to})
	}
}

func (l *life) acked(p RestorePoint, disk []byte) {
	l.events = append(l.events, event{op: l.fs.Ops(), id: p.ID, disk: bytes.Clone(disk)})
}

func (l *life) backup(disk []byte, parent *RestorePoint) RestorePoint {
	var ref *ImageRef
	if parent != nil {
		ref = &parent.Images[0].Ref
	}
	p, err := crashBackup(context.Background(), l.r, disk, ref)
	check(err)
	l.acked(p, disk)
	return p
}

func (l *life) prune(p RestorePoint) {
	l.events = append(l.events, event{op: l.fs.Ops(), id: p.ID, begun: true})
	check(l.r.Prune(context.Background(), p.ID))
	l.events = append(l.events, event{op: l.fs.Ops(), id: p.ID})
}

func (l *life) collect() CollectReport {
	report, err := l.plant.runCollect(context.Background(), l.r)
	check(err)
	return report
}

// disk returns a disk of random, of compressible and of zero chunks.
func (l *life) disk() []byte {
	disk := make([]byte, crashChunks*chunk.MinBytes)
	for at := 0; at < len(disk); at += chunk.MinBytes {
		switch p := disk[at : at+chunk.MinBytes]; l.rnd.IntN(4) {
		case 0:
		case 1:
			copy(p, bytes.Repeat(fmt.Appendf(nil, "%d of %d;", at, l.rnd.Uint32()), 900))
		default:
			fill(l.rnd, p)
		}
	}
	fill(l.rnd, disk[:chunk.MinBytes])
	return disk
}

// changed returns the disk with some blocks written over.
func (l *life) changed(disk []byte, blocks int) []byte {
	out := bytes.Clone(disk)
	for range blocks {
		at := l.rnd.IntN(len(out) / chunk.BlockBytes)
		fill(l.rnd, out[at*chunk.BlockBytes:(at+1)*chunk.BlockBytes])
	}
	return out
}

// touched returns the disk with a block of each chunk written over: what is kept of it is kept by references only.
func (l *life) touched(disk []byte) []byte {
	out := bytes.Clone(disk)
	for at := 0; at < len(out); at += chunk.MinBytes {
		fill(l.rnd, out[at:at+chunk.BlockBytes])
	}
	return out
}

// crashWorks are the lives that are cut off.
func crashWorks() []crashWork {
	return []crashWork{
		{"days", workDays}, {"sessions", workSessions}, {"owners", workOwners}, {"trash", workTrash}, {"aborts", workAborts},
		{"compact", workCompact}, {"keys", workKeys}, {"heal", workHeal},
		{"kills", workKills},
	}
}

type crashWork struct {
	name string
	run  func(*life)
}

// workDays makes backups day by day, removes old ones and collects, over three processes.
func workDays(l *life) {
	var points []RestorePoint
	disk := l.disk()
	for day := range 3 {
		l.open()
		for range 2 {
			var parent *RestorePoint
			if len(points) > 0 {
				parent = &points[len(points)-1]
			}
			disk = l.changed(disk, 3)
			points = append(points, l.backup(disk, parent))
		}
		_, err := l.r.Verify(context.Background(), points[0].ID, nil)
		check(err)
		l.prune(points[0])
		points = points[1:]
		if day == 2 { // a disk with nothing in common, so that the collect has something to free
			disk = l.disk()
			last := l.backup(disk, nil)
			for _, p := range points {
				l.prune(p)
			}
			points = []RestorePoint{last}
		}
		if report := l.collect(); day == 2 && report.PacksFreed == 0 {
			check(errors.New("the workload freed nothing"))
		}
		l.close()
	}
}

// workSessions has two sessions write the same chunks at once, on a parent that is pruned, with collects in between.
func workSessions(l *life) {
	ctx := context.Background()
	l.open()
	base := l.disk()
	p := l.backup(base, nil)
	next, common := l.changed(base, 5), l.disk()
	a, err := l.r.Begin(ctx, SessionOptions{Series: "vm"})
	check(err)
	b, err := l.r.Begin(ctx, SessionOptions{Series: "other"})
	check(err)
	aw, err := a.NewImage(ctx, ImageOptions{SizeBytes: int64(len(next)), Parent: &p.Images[0].Ref})
	check(err)
	bw, err := b.NewImage(ctx, ImageOptions{SizeBytes: int64(len(common))})
	check(err)
	ax, err := a.NewImage(ctx, ImageOptions{SizeBytes: int64(len(common))})
	check(err)
	l.prune(p)
	half := len(common) / 2
	check(aw.Write(ctx, 0, next[:half]), bw.Write(ctx, 0, common[:half]), ax.Write(ctx, 0, common[:half]))
	l.collect()
	check(ax.Write(ctx, int64(half), common[half:]), bw.Write(ctx, int64(half), common[half:]), aw.Write(ctx, int64(half), next[half:]))
	bref, err := bw.Finish(ctx)
	check(err)
	l.collect()
	q, err := b.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: bref}}})
	check(err)
	l.acked(q, common)
	l.prune(q)
	l.collect()
	aref, err := aw.Finish(ctx)
	check(err)
	axref, err := ax.Finish(ctx)
	check(err)
	s, err := a.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: aref}, {Name: "b", Ref: axref}}})
	check(err)
	l.acked(s, next)
	l.collect()
	l.close()
	l.open()
	last := l.touched(next)
	l.backup(last, &s)
	l.prune(s)
	l.collect()
	l.close()
}

// workOwners has a second process take the repository over while the first is still at work.
func workOwners(l *life) {
	ctx := context.Background()
	l.open()
	base := l.disk()
	p := l.backup(base, nil)
	doomed := l.backup(l.disk(), nil)
	late, err := l.r.Begin(ctx, SessionOptions{Series: "vm"})
	check(err)
	w, err := late.NewImage(ctx, ImageOptions{SizeBytes: int64(len(base)), Parent: &p.Images[0].Ref})
	check(err)
	check(w.Write(ctx, 0, l.changed(base, 4)))
	ref, err := w.Finish(ctx)
	check(err)

	l.prune(doomed) // its packs are free from now on
	first, firstStore := l.r, l.b
	l.fs.Unlock("/disk/repo/lock")
	scratch := l.scratch
	l.scratch = "" // the first still has the index
	l.open()
	l.scratch = scratch
	// The second comes to rely on what the first thinks is free.
	q := l.backup(l.changed(base, 3), &p)
	again, err := l.r.Begin(ctx, SessionOptions{Series: "other"})
	check(err)
	kept := l.disk()
	aw, err := again.NewImage(ctx, ImageOptions{SizeBytes: int64(len(kept))})
	check(err)
	check(aw.Write(ctx, 0, kept))
	aref, err := aw.Finish(ctx)
	check(err)

	_, lateErr := late.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
	_, collectErr := l.plant.runCollect(ctx, first)
	for name, err := range map[string]error{"publish": lateErr, "prune": first.Prune(ctx, q.ID), "collect": collectErr} {
		// A publish may already fail because the second removed its temporary files.
		if err == nil || (fault.KindOf(err) != fault.Conflict && name != "publish") {
			check(fmt.Errorf("%s of an owner that was overtaken: %w", name, errors.Join(err, errors.New("not refused"))))
		}
	}
	s, err := again.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: aref}}})
	check(err)
	l.acked(s, kept)
	l.collect()
	check(first.Close(), firstStore.Close())
	check(l.r.Close(), l.b.Close())
	l.open()
	l.prune(p)
	l.collect()
	l.close()
}

// workTrash has collects that fail half-way: at the unlinking, and at the putting aside for want of room.
func workTrash(l *life) {
	ctx := context.Background()
	l.open()
	kept := l.backup(l.disk(), nil)
	for _, fail := range []func(op, name string) error{
		func(op, name string) error {
			if op == "remove" && inFolder(name, "trash") {
				return syscall.EIO
			}
			return nil
		},
		func(op, name string) error {
			if op == "rename" || op == "link" || op == "mkdir" || (op == "remove" && inFolder(name, "packs")) {
				return syscall.ENOSPC
			}
			return nil
		},
	} {
		doomed := l.backup(l.disk(), nil)
		l.prune(doomed)
		l.fs.Fail = fail
		_, err := l.r.Collect(ctx, CollectOptions{})
		l.fs.Fail = nil
		if err == nil {
			check(errors.New("a collect that could not unlink was silent"))
		}
		l.backup(l.disk(), &kept)
		l.close()
		l.open()
	}
	l.collect()
	l.close()
}

// workAborts gives sessions up: with packs that are finished, which the next one finds; by Close; and not at all.
func workAborts(l *life) {
	ctx := context.Background()
	l.open()
	disk := l.disk()
	begin := func() (*Session, *ImageWriter) {
		s, err := l.r.Begin(ctx, SessionOptions{Series: "vm"})
		check(err)
		w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk))})
		check(err)
		check(w.Write(ctx, 0, disk))
		return s, w
	}
	s, w := begin()
	_, err := w.Finish(ctx)
	check(err, s.Abort(ctx))
	other, _ := begin() // relies on packs of the aborted one
	l.collect()
	p := l.backup(disk, nil)
	check(other.Abort(ctx))
	l.collect()
	begin() // ended by Close
	l.close()
	l.open()
	disk = l.changed(disk, 4)
	begin()
	q := l.backup(disk, &p)
	l.prune(p)
	l.collect()
	l.close()
	l.open()
	l.backup(l.changed(disk, 1), &q)
	l.collect()
	l.close()
}

// workKills has processes die in the middle of a backup, of a prune and of a collect. What they did not sync is there
// for the next one, until the power goes.
func workKills(l *life) {
	ctx := context.Background()
	l.open()
	disk := l.disk()
	last := l.backup(disk, nil)
	for range 6 {
		// New content each time, and the same again in the next process: it relies on what the dead one left.
		next := l.disk()
		old := last
		l.killed(func() {
			p, err := crashBackup(ctx, l.r, next, nil)
			if err != nil {
				return
			}
			l.acked(p, next)
			last = p
			l.events = append(l.events, event{op: l.fs.Ops(), id: old.ID, begun: true})
			if l.r.Prune(ctx, old.ID) != nil {
				return
			}
			l.events = append(l.events, event{op: l.fs.Ops(), id: old.ID})
			_, _ = l.plant.runCollect(ctx, l.r)
		})
		last = l.backup(next, nil)
	}
	l.collect()
	l.close()
}

// killed ends the process at some operation of what f does, and starts the next one. Every second time that is where a
// pack is visible and its entry not durable yet.
func (l *life) killed(f func()) {
	calls, end, visible := 0, l.rnd.IntN(70), l.rnd.IntN(2) == 0
	if visible {
		end = l.rnd.IntN(3)
	}
	l.fs.Fail = func(op, name string) error {
		switch {
		case op == "read" || op == "stat" || op == "open" || op == "readdir":
		case calls > end:
			return syscall.EIO
		case !visible:
			calls++
		case op == "syncdir" && inFolder(name, "packs") && !strings.HasSuffix(name, "/packs"):
			if calls++; calls > end {
				return syscall.EIO
			}
		}
		return nil
	}
	f()
	l.fs.Fail = func(string, string) error { return syscall.EIO }
	_ = l.r.Close()
	l.fs.Fail = nil
	l.fs.Unlock("/disk/repo/lock")
	if l.scratch != "" {
		check(os.RemoveAll(filepath.Join(l.scratch, "index"))) // it would not have been closed
	}
	l.open()
}
