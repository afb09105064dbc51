package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/internal/crashfs"
)

// model is a repository beside what it must hold. Sessions stay open across prunes, collects and crashes of others.
type model struct {
	t        *rapid.T
	fs       *crashfs.FS
	repo     *Repository
	points   map[string]RestorePoint
	disks    map[string][]byte
	sessions []*modelSession
	freed    int
}

type modelSession struct {
	s    *Session
	w    *ImageWriter
	disk []byte
	half int // what is written at the beginning; the rest when it is published
}

func newModel(t *rapid.T) *model {
	m := &model{t: t, fs: crashfs.New(), points: map[string]RestorePoint{}, disks: map[string][]byte{}}
	m.must(errors.Join(m.fs.Mkdir("/disk"), m.fs.SyncDir("/")))
	b, err := file.CreateFS(m.fs, "/disk/repo")
	m.must(err)
	m.must(Create(context.Background(), b, Key{}, CreateOptions{ChunkBytes: chunk.MinBytes}))
	m.open()
	t.Cleanup(func() { _ = m.repo.Close() })
	return m
}

func (m *model) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) open() {
	b, err := file.OpenFS(m.fs, "/disk/repo")
	m.must(err)
	m.repo, err = Open(context.Background(), b, Key{}, Options{})
	m.must(err)
}

// begin starts a session and writes a disk, made of few different blocks so that sessions have much in common.
func (m *model) begin(t *rapid.T) {
	if len(m.sessions) > 3 {
		t.Skip("enough sessions")
	}
	ctx := context.Background()
	s, err := m.repo.Begin(ctx, SessionOptions{Series: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "series")})
	m.must(err)
	ms := &modelSession{s: s}
	m.sessions = append(m.sessions, ms)
	var parent *ImageRef
	disk := make([]byte, 6*chunk.MinBytes)
	if ids := slices.Sorted(maps.Keys(m.points)); len(ids) > 0 && rapid.Bool().Draw(t, "incremental") {
		id := rapid.SampledFrom(ids).Draw(t, "parent")
		parent = &m.points[id].Images[0].Ref
		copy(disk, m.disks[id])
	}
	for range rapid.IntRange(0, 6).Draw(t, "blocks") {
		at := rapid.IntRange(0, len(disk)/chunk.BlockBytes-1).Draw(t, "at")
		seed := rapid.Uint64Range(0, 12).Draw(t, "content")
		fill(rand.New(rand.NewPCG(seed, 0)), disk[at*chunk.BlockBytes:(at+1)*chunk.BlockBytes])
	}
	w, err := s.NewImage(ctx, ImageOptions{SizeBytes: int64(len(disk)), Parent: parent})
	m.must(err)
	ms.w, ms.disk, ms.half = w, disk, rapid.IntRange(0, 6).Draw(t, "half")*chunk.MinBytes
	m.must(w.Write(ctx, 0, disk[:ms.half]))
}

func (m *model) take(t *rapid.T) *modelSession {
	if len(m.sessions) == 0 {
		t.Skip("no session")
	}
	i := rapid.IntRange(0, len(m.sessions)-1).Draw(t, "session")
	ms := m.sessions[i]
	m.sessions = slices.Delete(m.sessions, i, i+1)
	return ms
}

func (m *model) publish(t *rapid.T) {
	ms := m.take(t)
	ctx := context.Background()
	m.must(ms.w.Write(ctx, int64(ms.half), ms.disk[ms.half:]))
	ref, err := ms.w.Finish(ctx)
	m.must(err)
	p, err := ms.s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
	m.must(err)
	m.points[p.ID], m.disks[p.ID] = p, ms.disk
}

func (m *model) abort(t *rapid.T) { m.must(m.take(t).s.Abort(context.Background())) }

func (m *model) prune(t *rapid.T) {
	ids := slices.Sorted(maps.Keys(m.points))
	if len(ids) == 0 {
		t.Skip("no point")
	}
	id := rapid.SampledFrom(ids).Draw(t, "point")
	m.must(m.repo.Prune(context.Background(), id))
	delete(m.points, id)
	delete(m.disks, id)
}

func (m *model) collect(*rapid.T) {
	report, err := m.repo.Collect(context.Background(), CollectOptions{})
	m.must(err)
	m.freed += report.PacksFreed
}

// crash is a power cut: the sessions are gone, a random part of what was not synced too.
func (m *model) crash(t *rapid.T) {
	d := m.fs.Disk()
	for d.Step() {
	}
	seed := rapid.Uint64().Draw(t, "loss")
	_ = m.repo.Close() // what it still does, it does to the disk as it was
	m.fs = d.Crash(crashfs.Some, rand.New(rand.NewPCG(seed, 0)))
	m.sessions = nil
	m.open()
}

func (m *model) check(t *rapid.T) {
	points, err := m.repo.RestorePoints(context.Background())
	m.must(err)
	if len(points) != len(m.points) {
		t.Fatalf("%d restore points, want %d", len(points), len(m.points))
	}
	for id, p := range m.points {
		m.must(sameDisk(context.Background(), m.repo, p, m.disks[id]))
	}
}

func TestAgainstModel(t *testing.T) {
	checks(t, effort(50, 50, 50))
	freed := 0
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		t.Repeat(map[string]func(*rapid.T){
			"begin": m.begin, "begin2": m.begin, "publish": m.publish, "publish2": m.publish, "abort": m.abort,
			"prune": m.prune, "collect": m.collect, "crash": m.crash, "": m.check,
		})
		freed += m.freed
	})
	if freed == 0 {
		t.Error("no collect freed anything")
	}
	t.Logf("%d packs freed", freed)
}

// TestEverythingAtOnce is for the race detector: sessions, collects, prunes, readers and verifications side by side.
func TestEverythingAtOnce(t *testing.T) {
	g := newRig(t)
	ctx := t.Context()
	var mu sync.Mutex
	points, disks := map[string]RestorePoint{}, map[string][]byte{}
	var wg, others sync.WaitGroup
	stop := make(chan struct{})
	for writer := range 3 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(writer), 11))
			disk := make([]byte, 40*testChunk)
			var last *RestorePoint
			for round := range 4 {
				before := bytes.Clone(disk)
				for range 5 {
					at := rnd.IntN(40)
					fill(rand.New(rand.NewPCG(uint64(rnd.IntN(30)), 3)), disk[at*testChunk:at*testChunk+8192])
				}
				p, err := sharedBackup(ctx, g.repo, disk, before, last)
				if err != nil {
					t.Errorf("writer %d, round %d: %v", writer, round, err)
					return
				}
				mu.Lock()
				points[p.ID], disks[p.ID] = p, bytes.Clone(disk)
				mu.Unlock()
				if last != nil {
					mu.Lock()
					delete(points, last.ID)
					mu.Unlock()
					if err := g.repo.Prune(ctx, last.ID); err != nil {
						t.Error(err)
					}
				}
				last = &p
			}
		})
	}
	for _, job := range []func() error{
		func() error { return second(g.repo.Collect(ctx, CollectOptions{})) },
		func() error { return second(g.repo.Usage(ctx)) },
		func() error { return second(g.repo.RestorePoints(ctx)) },
	} {
		others.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := job(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	others.Wait()
	for id, p := range points {
		g.mustHoldDisk(p, disks[id])
	}
	g.reopen()
	for id, p := range points {
		g.mustHoldDisk(p, disks[id])
	}
}

func (g *rig) mustHoldDisk(p RestorePoint, disk []byte) {
	g.t.Helper()
	if err := sameDisk(context.Background(), g.repo, p, disk); err != nil {
		g.t.Error(err)
	}
}

// sharedBackup writes with two goroutines.
func sharedBackup(ctx context.Context, r *Repository, disk, before []byte, last *RestorePoint) (RestorePoint, error) {
	s, err := r.Begin(ctx, SessionOptions{Series: fmt.Sprintf("vm%p", &disk[0])})
	if err != nil {
		return RestorePoint{}, err
	}
	o := ImageOptions{SizeBytes: int64(len(disk))}
	if last != nil {
		o.Parent = &last.Images[0].Ref
	}
	w, err := s.NewImage(ctx, o)
	if err != nil {
		return RestorePoint{}, err
	}
	var wg sync.WaitGroup
	errs := make([]error, 2)
	for half := range 2 {
		wg.Go(func() {
			for at := half * testChunk; at < len(disk) && errs[half] == nil; at += 2 * testChunk {
				p := disk[at : at+testChunk]
				if last != nil && bytes.Equal(p, before[at:at+testChunk]) {
					continue
				}
				errs[half] = w.Write(ctx, int64(at), p)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return RestorePoint{}, err
	}
	ref, err := w.Finish(ctx)
	if err != nil {
		return RestorePoint{}, err
	}
	return s.Publish(ctx, Manifest{Images: []NamedImage{{Name: "a", Ref: ref}}})
}
