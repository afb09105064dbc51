package pack

import (
	"bytes"
	"context"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
)

func FuzzParseHeader(f *testing.F) {
	boundary.Add(f, AppendHeader(nil, testHead), boundary.Binary(AppendHeader(nil, testHead)))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 1, func() {
			h, err := ParseHeader(p)
			if err == nil && !bytes.Equal(AppendHeader(nil, h), p[:HeaderBytes]) {
				t.Errorf("%x is read as what is written %x", p[:HeaderBytes], AppendHeader(nil, h))
			}
		})
	})
}

func FuzzParseTrailer(f *testing.F) {
	m, _ := build(f, Zstd)
	size := int64(len(m.p))
	good := m.p[size-TrailerBytes:]
	for p := range boundary.Binary(good) {
		for _, size := range []int64{0, TrailerBytes, size, 1<<31 - 1, 1<<63 - 1} {
			f.Add(p, size)
		}
	}
	f.Fuzz(func(t *testing.T, p []byte, size int64) {
		if size < 0 {
			return // no object has
		}
		r, err := parseTrailer(p, size)
		if err != nil {
			return
		}
		if r.directory > uint64(size) || int64(r.directory)+int64(r.dirLen)+int64(r.printsLen) != size-TrailerBytes {
			t.Errorf("in a pack of %d bytes: %+v", size, r)
		}
		if !bytes.Equal(appendTrailer(nil, r), p) {
			t.Errorf("%x is read as what is written %x", p, appendTrailer(nil, r))
		}
	})
}

// FuzzDirectoryBoundaries sets every field of a directory to every boundary value.
func FuzzDirectoryBoundaries(f *testing.F) {
	m, _ := build(f, Zstd)
	r, err := Open(context.Background(), m, testHead.Repository, testHead.ID, int64(len(m.p)), secrets)
	if err != nil {
		f.Fatal(err)
	}
	d := r.Directory()
	base := appendDirectory(nil, d.Blocks, d.Frames, d.Entries)
	boundary.Add(f, base, boundary.Binary(base))
	f.Fuzz(func(t *testing.T, p []byte) {
		boundary.Bounded(t, len(p), 40, func() {
			d, err := parseDirectory(p, 1<<20)
			if err != nil {
				return
			}
			for _, e := range d.Entries {
				if uint64(e.Offset)+uint64(e.Length) > uint64(d.Frames[e.Frame].Plain) {
					t.Errorf("entry beyond its frame: %+v", e)
				}
				for _, r := range e.Refs {
					if int(r.Block) >= d.Blocks {
						t.Errorf("reference beyond a chunk: %+v", e)
					}
				}
			}
			for _, fr := range d.Frames {
				if uint64(fr.Offset)+uint64(fr.Stored) > 1<<20 || fr.Plain > MaxFrame {
					t.Errorf("frame beyond the pack: %+v", fr)
				}
			}
		})
	})
}

func FuzzParseName(f *testing.F) {
	f.Add(Name(testHead.ID))
	f.Add("packs/13/13caa8be0faf9c1f414f9e04748897a7.pack")
	f.Add("packs/13/14caa8be0faf9c1f414f9e04748897a7.pack")
	f.Add("packs/../13caa8be0faf9c1f414f9e04748897a7.pack")
	f.Fuzz(func(t *testing.T, name string) {
		if id, err := ParseName(name); err == nil && Name(id) != name {
			t.Errorf("%q is read as %q", name, Name(id))
		}
	})
}
