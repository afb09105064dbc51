package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// event is something the writer of the crash workload was told at a point of the recording.
type event struct {
	op    int
	id    string
	disk  []byte // acknowledged; nil: its removal was asked for
	begun bool   // removal asked for, not yet acknowledged
}

// crashWork is a life of a small repository: backups, incrementals, prunes, collects, reopened in between.
func crashWork(fsys *crashfs.FS, key Key, rnd *rand.Rand) (events []event, err error) {
	ctx := context.Background()
	b, err := file.CreateFS(fsys, "/disk/repo")
	if err != nil {
		return nil, err
	}
	if err := Create(ctx, b, key, CreateOptions{ChunkBytes: chunk.MinBytes}); err != nil {
		return nil, err
	}
	events = append(events, event{op: fsys.Ops()})
	disk := make([]byte, 24*chunk.MinBytes)
	fill(rnd, disk[:16*chunk.MinBytes])
	var points []RestorePoint
	for life := range 2 {
		r, err := Open(ctx, b, key, Options{})
		if err != nil {
			return nil, err
		}
		for range 2 {
			var parent *ImageRef
			if len(points) > 0 {
				parent = &points[len(points)-1].Images[0].Ref
			}
			for range 3 {
				at := rnd.IntN(len(disk) / chunk.BlockBytes)
				fill(rnd, disk[at*chunk.BlockBytes:(at+1)*chunk.BlockBytes])
			}
			p, err := crashBackup(ctx, r, disk, parent)
			if err != nil {
				return nil, err
			}
			points = append(points, p)
			events = append(events, event{op: fsys.Ops(), id: p.ID, disk: bytes.Clone(disk)})
		}
		doomed := points[0].ID
		points = points[1:]
		events = append(events, event{op: fsys.Ops(), id: doomed, begun: true})
		if err := r.Prune(ctx, doomed); err != nil {
			return nil, err
		}
		events = append(events, event{op: fsys.Ops(), id: doomed})
		if life == 1 { // a disk with nothing in common, so that the collect has something to free
			fill(rnd, disk)
			p, err := crashBackup(ctx, r, disk, nil)
			if err != nil {
				return nil, err
			}
			events = append(events, event{op: fsys.Ops(), id: p.ID, disk: bytes.Clone(disk)})
			for _, old := range points {
				events = append(events, event{op: fsys.Ops(), id: old.ID, begun: true})
				if err := r.Prune(ctx, old.ID); err != nil {
					return nil, err
				}
			}
		}
		report, err := r.Collect(ctx, CollectOptions{})
		if err != nil {
			return nil, err
		}
		if life == 1 && report.PacksFreed == 0 {
			return nil, errors.New("the workload freed nothing")
		}
		if err := r.Close(); err != nil {
			return nil, err
		}
	}
	return events, nil
}

func crashBackup(ctx context.Context, r *Repository, disk []byte, parent *ImageRef) (RestorePoint, error) {
	s, err := r.Begin(ctx, SessionOptions{Series: "vm"})
	if err != nil {
		return RestorePoint{}, err
	}
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
	if err != nil {
		return RestorePoint{}, err
	}
	if err := w.Write(ctx, 0, disk); err != nil {
		return RestorePoint{}, err
	}
	ref, err := w.Finish(ctx)
	if err != nil {
		return RestorePoint{}, err
	}
	return s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}, Documents: []Document{{Name: "d", Data: disk[:9]}}})
}

// expect is what must and what may be there after a cut.
type expect struct {
	must    map[string][]byte // acknowledged, removal not asked for
	created bool              // Create has returned
}

func expectAt(events []event, op int) expect {
	e := expect{must: map[string][]byte{}}
	for _, ev := range events {
		if ev.op > op {
			break
		}
		e.created = true
		if ev.disk != nil {
			e.must[ev.id] = ev.disk
		} else {
			delete(e.must, ev.id)
		}
	}
	return e
}

// judge opens what a crash left and answers what is wrong with it.
func judge(fsys *crashfs.FS, key Key, want expect, deep bool) error {
	ctx := context.Background()
	b, err := file.OpenFS(fsys, "/disk/repo")
	var r *Repository
	if err == nil {
		r, err = Open(ctx, b, key, Options{})
	}
	if err != nil {
		if !want.created {
			return nil // Create had not returned
		}
		return fmt.Errorf("does not open: %w", err)
	}
	defer r.Close()
	points, err := r.RestorePoints(ctx)
	if err != nil {
		return fmt.Errorf("torn manifest: %w", err)
	}
	there := map[string]RestorePoint{}
	for _, p := range points {
		there[p.ID] = p
		if _, err := r.Verify(ctx, p.ID, nil); err != nil {
			return fmt.Errorf("torn restore point: %w", err)
		}
	}
	for id, disk := range want.must {
		p, ok := there[id]
		if !ok {
			return fmt.Errorf("acknowledged restore point %s is lost", id)
		}
		if err := sameDisk(ctx, r, p, disk); err != nil {
			return err
		}
	}
	if !deep {
		return nil
	}
	// Life goes on: a backup on what is left, then a collect, harm nothing.
	disk := bytes.Repeat([]byte("life goes on "), 10000)
	p, err := crashBackup(ctx, r, disk, nil)
	if err != nil {
		return fmt.Errorf("next backup: %w", err)
	}
	if _, err := r.Collect(ctx, CollectOptions{}); err != nil {
		return fmt.Errorf("next collect: %w", err)
	}
	for id := range want.must {
		if _, err := r.Verify(ctx, id, nil); err != nil {
			return fmt.Errorf("after the next collect: %w", err)
		}
	}
	return sameDisk(ctx, r, p, disk)
}

func sameDisk(ctx context.Context, r *Repository, p RestorePoint, disk []byte) error {
	i, err := r.OpenImage(ctx, p.Images[0].Ref)
	if err != nil {
		return err
	}
	defer i.Close()
	got := make([]byte, len(disk))
	if _, err := i.ReadAt(got, 0); err != nil || i.Size() != int64(len(disk)) || !bytes.Equal(got, disk) {
		return fmt.Errorf("restore point %s does not hold its disk (%v)", p.ID, err)
	}
	return nil
}

// crashSeed is CAIRN_SEED, or always the same one.
func crashSeed(t *testing.T) uint64 {
	seed := uint64(20261121)
	if s := os.Getenv("CAIRN_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("seed %d (CAIRN_SEED=%d go test -run %s)", seed, seed, t.Name())
	return seed
}

// crashCampaign cuts after every operation and stops at the first state that is wrong.
func crashCampaign(t *testing.T, seed uint64, some int, lie func(name string, isDir bool, last string) bool) (states int, wrong error) {
	t.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	key := Key{secret: [32]byte{1}}
	fsys := crashfs.New()
	if err := fsys.Mkdir("/disk"); err != nil {
		t.Fatal(err)
	}
	if err := fsys.SyncDir("/"); err != nil {
		t.Fatal(err)
	}
	fsys.Lie = lie
	events, err := crashWork(fsys, key, rnd)
	if err != nil {
		t.Fatal(err)
	}
	for disk := fsys.Disk(); ; {
		want := expectAt(events, disk.At())
		for n := range 2 + some {
			if raceEnabled && disk.At()%20 != 0 {
				continue
			}
			loss := crashfs.Loss(min(n, 2))
			if loss == crashfs.Nothing && disk.At()%4 != 0 {
				continue // the live state changes little from one operation to the next
			}
			states++
			if err := judge(disk.Crash(loss, rnd), key, want, states%8 == 0); err != nil {
				return states, fmt.Errorf("cut after operation %d, loss %d: %w", disk.At(), loss, err)
			}
		}
		if !disk.Step() {
			return states, nil
		}
	}
}

func TestCrashAtEveryOperation(t *testing.T) {
	some := 2
	if testing.Short() {
		some = 1
	}
	states, err := crashCampaign(t, crashSeed(t), some, nil)
	if err != nil {
		t.Errorf("after %d states: %v", states, err)
	}
	t.Logf("%d crash states, each opened and verified", states)
}

// TestCrashHarnessFindsBugs shows that the campaign can fail: each bug is one that programs like this have had.
func TestCrashHarnessFindsBugs(t *testing.T) {
	in := func(folder string) func(string) bool {
		return func(name string) bool { return strings.Contains(name+"/", "/repo/"+folder+"/") }
	}
	bugs := []struct {
		name string
		lie  func(name string, isDir bool, last string) bool
	}{
		{"no fsync of files", func(_ string, isDir bool, _ string) bool { return !isDir }},
		{"no fsync of directories", func(_ string, isDir bool, _ string) bool { return isDir }},
		{"no fsync of the packs' folders", func(name string, isDir bool, _ string) bool { return isDir && in("packs")(name) }},
		{"acknowledged before the manifest's entry is durable", func(name string, isDir bool, _ string) bool { return isDir && in("manifests")(name) }},
		{"new folders not durable in their parent", func(name string, isDir bool, last string) bool {
			return isDir && strings.HasSuffix(name, "/repo/packs") && !strings.HasSuffix(last, ".pack")
		}},
		{"packs deleted before the manifest's removal is durable", func(name string, isDir bool, last string) bool {
			return isDir && in("manifests")(name) && strings.HasPrefix(last, "-")
		}},
	}
	if raceEnabled {
		t.Skip("one goroutine; run without -race")
	}
	for _, bug := range bugs {
		t.Run(bug.name, func(t *testing.T) {
			states, err := crashCampaign(t, crashSeed(t), 1, bug.lie)
			if err == nil {
				t.Fatalf("not found in %d states", states)
			}
			t.Logf("found after %d states: %v", states, err)
		})
	}
}
