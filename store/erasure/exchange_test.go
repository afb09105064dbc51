package erasure

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// rot changes a byte of an object's shard on a disk.
func rot(fsys *crashfs.FS, disk int, object string, at int) error {
	for _, name := range fsys.Names(diskDir(disk)) {
		if !strings.Contains(name, "/"+path.Base(object)+"~") {
			continue
		}
		f, err := fsys.Open(name)
		if err != nil {
			return err
		}
		info, err := fsys.Stat(name)
		if err != nil {
			return err
		}
		p := make([]byte, info.Size())
		if _, err := f.ReadAt(p, 0); err != nil {
			return err
		}
		p[at] ^= 1
		if err := fsys.Remove(name); err != nil {
			return err
		}
		if f, err = fsys.Create(name); err != nil {
			return err
		}
		_, err = f.Write(p)
		return errors.Join(err, f.Sync(), fsys.SyncDir(path.Dir(name)))
	}
	return fmt.Errorf("disk %d has no shard of %s", disk, object)
}

// rotted are the objects of TestCrashWhileAShardIsExchanged, by name: what is wrong with the shard on disk 1 keeps none
// of the first from being read, and all of the other.
var rotted = map[string]int{"o/long": 3*unitBytes + 7, "o/short": 50}

// recordExchange is a mirror of which disk 1 rots and is repaired.
func recordExchange() (fsys *crashfs.FS, from int, err error) {
	ctx, l := context.Background(), Layout{1, 1}
	if fsys, err = newDisks(l); err != nil {
		return nil, 0, err
	}
	s, err := openDisks(fsys, l, nil)
	if err != nil {
		return nil, 0, err
	}
	release, err := s.Acquire(ctx)
	if err != nil {
		return nil, 0, err
	}
	for name, size := range rotted {
		err = errors.Join(err, blob.Put(ctx, s, name, content(9, size)), rot(fsys, 1, name, headerBytes+20))
	}
	if err != nil {
		return nil, 0, err
	}
	from = fsys.Ops()
	for name := range rotted {
		repaired, err := s.Repair(ctx, name)
		if err != nil || !repaired {
			return nil, 0, fmt.Errorf("repair %s: %v, %w", name, repaired, err)
		}
	}
	return fsys, from, s.release(release)
}

// outlives looks for the objects after a crash. With both disks nothing may be wrong; with disk 1 alone they may be
// damaged, as they were before the repair, but are not gone.
func outlives(fsys *crashfs.FS, alone, owner bool) (err error) {
	ctx := context.Background()
	s, err := openDisks(fsys, Layout{1, 1}, map[int]bool{0: alone})
	if err != nil {
		return err
	}
	if owner {
		release, err := s.Acquire(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.release(release)) }()
	} else {
		defer func() { err = errors.Join(err, s.Close()) }()
	}
	listed := 0
	for _, err := range s.List(ctx, "") {
		if err != nil {
			return err
		}
		listed++
	}
	for name, size := range rotted {
		if _, err := s.Stat(ctx, name); err != nil {
			return err
		}
		got, err := blob.Get(ctx, s, name, 1<<20)
		if alone && err != nil && fault.KindOf(err) == fault.Transient {
			continue // what is wrong on disk 1 disk 0 has
		}
		if err != nil || !bytes.Equal(got, content(9, size)) {
			return fmt.Errorf("%s: %d bytes, %w", name, len(got), err)
		}
	}
	if listed != len(rotted) {
		return fmt.Errorf("%d objects are listed, want %d", listed, len(rotted))
	}
	return nil
}

// mends ends what was begun and reports what is left of it.
func mends(fsys *crashfs.FS) error {
	s, err := openDisks(fsys, Layout{1, 1}, nil)
	if err != nil {
		return err
	}
	release, err := s.Acquire(context.Background())
	if err != nil {
		return err
	}
	report, err := s.Scrub(context.Background(), ScrubOptions{}, nil)
	if err != nil || len(report.Damaged) > 0 {
		return fmt.Errorf("scrub: %+v, %w", report.Damaged, err)
	}
	if err := s.release(release); err != nil {
		return err
	}
	for _, name := range append(fsys.Names(diskDir(0)), fsys.Names(diskDir(1))...) {
		if strings.Contains(name, "/"+pendingFolder+"/") || strings.HasSuffix(name, asideSuffix) {
			return fmt.Errorf("left behind: %s", name)
		}
	}
	for name, size := range rotted { // alone, too
		s, err := openDisks(fsys, Layout{1, 1}, map[int]bool{0: true})
		if err != nil {
			return err
		}
		got, err := blob.Get(context.Background(), s, name, 1<<20)
		if err = errors.Join(err, s.Close()); err != nil || !bytes.Equal(got, content(9, size)) {
			return fmt.Errorf("%s after the scrub, from disk 1 alone: %w", name, err)
		}
	}
	return nil
}

// unnamed reports whether a shard of disk 1 has not its right name.
func unnamed(fsys *crashfs.FS) bool {
	named := map[string]bool{}
	for _, name := range fsys.Names(diskDir(1)) {
		if p, ok := parsePart(strings.TrimPrefix(name, diskDir(1)+"/")); ok && !p.aside {
			named[p.name] = true
		}
	}
	return len(named) < len(rotted)
}

// TestCrashWhileAShardIsExchanged cuts the power after every operation of a repair, then takes the other half away.
func TestCrashWhileAShardIsExchanged(t *testing.T) {
	fsys, from, err := recordExchange()
	if err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(20261122, 11))
	states, between := 0, 0
	for disk := fsys.Disk(); ; {
		for _, loss := range []crashfs.Loss{crashfs.Some, crashfs.Everything, crashfs.Nothing} {
			if disk.At() < from {
				break
			}
			states++
			if unnamed(disk.Crash(crashfs.Nothing, rnd)) {
				between++
			}
			for _, owner := range []bool{false, true} {
				for _, alone := range []bool{false, true} {
					if err := outlives(disk.Crash(loss, rnd), alone, owner); err != nil {
						t.Fatalf("cut after operation %d (%s), loss %d; alone %v, owner %v: %v", disk.At(), disk.Last(3), loss, alone, owner, err)
					}
				}
			}
			if err := mends(disk.Crash(loss, rnd)); err != nil {
				t.Fatalf("cut after operation %d (%s), loss %d: %v", disk.At(), disk.Last(3), loss, err)
			}
		}
		if !disk.Step() {
			break
		}
	}
	if between < 6 {
		t.Errorf("of %d states only %d are between the loss of a name and its return", states, between)
	}
	t.Logf("%d crash states, each read with both halves and with the one that is repaired, by a reader and by an owner", states)
	campaign(t, "erasure-crash-while-exchanged", states, 0)
}

// What an exchange left behind goes with its object, and does not keep the old name of one that is renamed.
func TestWhatWasPutAsideGoesWithTheObject(t *testing.T) {
	d := newSet(t, Layout{2, 1})
	s := d.open()
	for _, name := range []string{"o/deleted", "o/renamed"} {
		mustPut(t, s, name, content(3, 200_000))
		shard := d.shards(name)[0]
		must(t, os.Link(shard, shard+asideSuffix))
	}
	must(t, s.Delete(t.Context(), "o/deleted"))
	must(t, s.Rename(t.Context(), "o/renamed", "p/renamed"))
	must(t, s.Close())
	for _, owner := range []bool{false, true} {
		s := d.open()
		if owner {
			d.own(s)
		}
		for _, name := range []string{"o/deleted", "o/renamed"} {
			if _, err := s.Stat(t.Context(), name); err == nil || fault.KindOf(err) != fault.NotFound {
				t.Errorf("%s, owner %v: %v, want not found", name, owner, err)
			}
		}
		mustRead(t, s, "p/renamed", content(3, 200_000))
	}
	if left := append(d.shards("o/deleted"), d.shards("o/renamed")...); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
}
