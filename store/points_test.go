package store

import (
	"context"
	"iter"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/store/blob"
)

// afterList is a backend that calls a function once, when a listing of manifests has ended and before it is used.
type afterList struct {
	blob.Store
	do func()
}

func (b *afterList) List(ctx context.Context, prefix string) iter.Seq2[blob.Info, error] {
	return func(yield func(blob.Info, error) bool) {
		for info, err := range b.Store.List(ctx, prefix) {
			if !yield(info, err) {
				return
			}
		}
		if do := b.do; do != nil && strings.HasPrefix(prefix, manifestFolder) {
			b.do = nil
			do()
		}
	}
}

func TestPointPublishedDuringAListingIsKept(t *testing.T) {
	g := newRig(t)
	rnd := rand.New(rand.NewPCG(1, 1))
	disk := make([]byte, 4*testChunk)
	fill(rnd, disk)
	for name, list := range map[string]func() error{
		"listing":    func() error { return second(g.repo.RestorePoints(t.Context())) },
		"collecting": func() error { return second(g.repo.Collect(t.Context(), CollectOptions{})) },
	} {
		t.Run(name, func(t *testing.T) {
			fill(rnd, disk[:testChunk])
			var p RestorePoint
			old := g.repo.b
			defer func() { g.repo.b = old }()
			g.repo.b = &afterList{old, func() { p = g.backup(disk, nil, nil) }}
			if err := list(); err != nil {
				t.Fatal(err)
			}
			g.repo.mu.Lock()
			known := g.repo.points[p.ID] != nil
			g.repo.mu.Unlock()
			if !known {
				t.Error("the point that was published meanwhile is forgotten")
			}
			if _, err := g.repo.Collect(t.Context(), CollectOptions{}); err != nil {
				t.Error(err)
			}
			g.mustHold(p, disk)
		})
	}
}
