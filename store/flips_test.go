package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/store/campaign/memory"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
)

// flipRig is a repository in memory with an incremental restore point.
type flipRig struct {
	m     *memory.Store
	r     *Repository
	point RestorePoint
}

func newFlipRig(t *testing.T) *flipRig {
	t.Helper()
	f := &flipRig{m: memory.New("flips")}
	ctx := t.Context()
	if err := Create(ctx, f.m, Key{}, CreateOptions{ChunkBytes: chunk.MinBytes}); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.r, err = Open(ctx, f.m, Key{}, Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.r.Close(); err != nil {
			t.Error(err)
		}
	})
	disk := make([]byte, 6*chunk.MinBytes)
	fill(rand.New(rand.NewPCG(6, 6)), disk)
	first, err := crashBackup(ctx, f.r, disk, nil)
	if err != nil {
		t.Fatal(err)
	}
	copy(disk[5000:], "changed")
	if f.point, err = crashBackup(ctx, f.r, disk, &first.Images[0].Ref); err != nil {
		t.Fatal(err)
	}
	return f
}

// pack returns the name and content of the pack of a kind that has fewest bytes: the incremental's.
func (f *flipRig) pack(t *testing.T, kind pack.Kind) (string, []byte, *pack.Reader) {
	t.Helper()
	best := ""
	for _, name := range f.m.Names(pack.Folder) {
		p := f.m.Content(name)
		h, err := pack.ParseHeader(p)
		if err != nil {
			t.Fatal(err)
		}
		if h.Kind == kind && (best == "" || len(p) < len(f.m.Content(best))) {
			best = name
		}
	}
	rd, err := f.open(t.Context(), best)
	if err != nil {
		t.Fatal(err)
	}
	return best, f.m.Content(best), rd
}

func (f *flipRig) open(ctx context.Context, name string) (*pack.Reader, error) {
	id, err := pack.ParseName(name)
	if err != nil {
		return nil, err
	}
	return f.r.openPack(ctx, id, int64(len(f.m.Content(name))))
}

// describe reads all of a pack that is not frames, and its stored-bytes hash.
func (f *flipRig) describe(ctx context.Context, name string) error {
	rd, err := f.open(ctx, name)
	if err == nil {
		_, err = rd.Prints(ctx)
	}
	return err
}

// TestCampaignFlips flips every bit of a manifest, a pack's header, a pack's directory, fingerprints and trailer, and
// a frame of tree nodes.
func TestCampaignFlips(t *testing.T) {
	f := newFlipRig(t)
	ctx := t.Context()
	data, dataBytes, dataReader := f.pack(t, pack.Data)
	meta, metaBytes, metaReader := f.pack(t, pack.Meta)
	end := func(rd *pack.Reader) (n int) {
		for _, fr := range rd.Directory().Frames {
			n = max(n, int(fr.Offset+fr.Stored))
		}
		return n
	}
	bufs := f.r.bufs.Get().(*pack.Buffers)
	node := metaReader.Directory().Frames[0]
	manifest := manifestName(f.point.ID)
	tests := []struct {
		class, name string
		from, to    int
		read        func() error // must fail
	}{
		{"manifest", manifest, 0, len(f.m.Content(manifest)), func() error {
			_, err := f.r.loadPoint(ctx, f.point.ID)
			return err
		}},
		{"pack header", data, 0, pack.HeaderBytes, func() error { return f.describe(ctx, data) }},
		{"directory and fingerprints", data, end(dataReader), len(dataBytes) - pack.TrailerBytes, func() error { return f.describe(ctx, data) }},
		{"trailer", data, len(dataBytes) - pack.TrailerBytes, len(dataBytes), func() error {
			return errors.Join(f.describe(ctx, data), pack.Scrub(ctx, f.m, data, int64(len(dataBytes))))
		}},
		{"directory of a meta pack", meta, end(metaReader), len(metaBytes) - pack.TrailerBytes, func() error { return f.describe(ctx, meta) }},
		{"frame of tree nodes", meta, int(node.Offset), int(node.Offset + node.Stored), func() error {
			rd, err := f.open(ctx, meta)
			if err == nil {
				_, err = rd.Frame(ctx, 0, f.r.coder(), bufs)
			}
			return err
		}},
	}
	total := 0
	for _, tt := range tests {
		good := f.m.Content(tt.name)
		if err := tt.read(); err != nil {
			t.Fatalf("%s before any flip: %v", tt.class, err)
		}
		flips, missed := 0, 0
		for at := tt.from; at < tt.to; at++ {
			for bit := range 8 {
				bad := bytes.Clone(good)
				bad[at] ^= 1 << bit
				f.m.Set(tt.name, bad)
				flips++
				if err := tt.read(); err == nil {
					missed++
					t.Errorf("%s: a flip of bit %d of byte %d is not detected", tt.class, bit, at)
				}
			}
		}
		f.m.Set(tt.name, good)
		if flips == 0 {
			t.Errorf("%s: nothing to flip", tt.class)
		}
		total += flips
		summary(t, "flips-"+strings.ReplaceAll(tt.class, " ", "-"), "injected", flips, "fired", flips, "lost", missed)
	}
	if total < 10000 {
		t.Errorf("only %d flips", total)
	}
	if _, err := f.r.Verify(ctx, f.point.ID, nil); err != nil {
		t.Errorf("with everything put back: %v", err)
	}
}
