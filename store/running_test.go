package store

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
)

// TestCloseEndsWhatRuns closes while a stream, a verification and a sweep are at work and an image is open: they end
// with an error or were done before, and whatever comes later is told that the repository is closed.
func TestCloseEndsWhatRuns(t *testing.T) {
	m := newMemRepo(t)
	r := m.repo
	image, err := r.OpenImage(t.Context(), m.point.Images[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	streaming, goOn := make(chan struct{}), make(chan struct{})
	var first sync.Once
	wg.Go(func() {
		_ = image.Stream(t.Context(), 2, func(int64, []byte) error {
			first.Do(func() {
				close(streaming)
				<-goOn
			})
			return nil
		})
	})
	<-streaming
	for name, call := range map[string]func(){
		"verify": func() { _, _ = r.Verify(t.Context(), m.point.ID, nil) },
		"sweep":  func() { _, _ = r.Sweep(t.Context(), SweepOptions{}) },
		"space":  func() { _, _ = r.Space(t.Context()) },
	} {
		t.Log("beside:", name)
		wg.Go(call)
	}
	inside, leave, err := r.enter(t.Context(), "wait to be cancelled")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		<-inside.Done()
		leave()
	})
	closed := make(chan error, 1)
	go func() { closed <- r.Close() }()
	for { // until Close has begun
		if _, leave, err := r.enter(t.Context(), "wait"); err != nil {
			break
		} else {
			leave()
		}
	}
	select {
	case err := <-closed:
		t.Errorf("Close did not wait for the stream: %v", err)
	default:
	}
	close(goOn)
	if err := <-closed; err != nil {
		t.Error(err)
	}
	wg.Wait()
	for name, call := range map[string]func() error{
		"read":   func() error { _, err := image.ReadAt(make([]byte, 100), 0); return err },
		"stream": func() error { return image.Stream(t.Context(), 1, func(int64, []byte) error { return nil }) },
		"open":   func() error { _, err := r.OpenImage(t.Context(), m.point.Images[0].Ref); return err },
		"extents": func() error {
			for _, err := range image.Extents(t.Context()) {
				return err
			}
			return nil
		},
		"verify":  func() error { _, err := r.Verify(t.Context(), m.point.ID, nil); return err },
		"sweep":   func() error { _, err := r.Sweep(t.Context(), SweepOptions{}); return err },
		"space":   func() error { _, err := r.Space(t.Context()); return err },
		"collect": func() error { _, err := r.Collect(t.Context(), CollectOptions{}); return err },
		"prune":   func() error { return r.Prune(t.Context(), m.point.ID) },
		"heal":    func() error { _, err := r.Heal(t.Context(), HealOptions{}); return err },
		"check":   func() error { _, err := r.Check(t.Context()); return err },
		"begin":   func() error { _, err := r.Begin(t.Context(), SessionOptions{Series: "vm"}); return err },
	} {
		if err := call(); fault.KindOf(err) != fault.Conflict {
			t.Errorf("%s after Close = %v", name, err)
		}
	}
	if err := image.Close(); err != nil {
		t.Error(err)
	}
}

// TestCloseBesideReads closes while many read on.
func TestCloseBesideReads(t *testing.T) {
	m := newMemRepo(t)
	image, err := m.repo.OpenImage(t.Context(), m.point.Images[0].Ref)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	begun := make(chan struct{}, 4)
	for seed := range uint64(4) {
		wg.Go(func() {
			rnd, p := rand.New(rand.NewPCG(7, seed)), make([]byte, chunk.MinBytes)
			for n := 0; ; n++ {
				if n == 20 {
					begun <- struct{}{}
				}
				if _, err := image.ReadAt(p, rnd.Int64N(image.Size()-int64(len(p)))); err != nil {
					if kind := fault.KindOf(err); kind != fault.Conflict && kind != fault.Canceled {
						t.Errorf("seed %d: %v", seed, err)
					}
					return
				}
			}
		})
	}
	for range 4 {
		<-begun
	}
	if err := m.repo.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}
