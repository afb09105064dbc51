package pack

import (
	"slices"
	"testing"
)

// TestTiled moves what lies in a pack: frames and entries fill it, each byte once, or it is refused.
func TestTiled(t *testing.T) {
	good := func() *Directory {
		return &Directory{
			end:    HeaderBytes + 300,
			Frames: []FrameInfo{{Offset: HeaderBytes, Stored: 100, Plain: 60}, {Offset: HeaderBytes + 150, Stored: 150, Plain: 0}, {Offset: HeaderBytes + 100, Stored: 50, Plain: 40}},
			Entries: []Entry{
				{Frame: 0, Offset: 0, Length: 20}, {Frame: 0, Offset: 20, Length: 0}, {Frame: 0, Offset: 20, Length: 40},
				{Frame: 2, Offset: 0, Length: 40}, {Frame: 1},
			},
		}
	}
	if err := good().Tiled(60); err != nil {
		t.Errorf("a good pack: %v", err)
	}
	if err := (&Directory{end: HeaderBytes}).Tiled(0); err != nil {
		t.Errorf("an empty pack: %v", err)
	}
	tests := map[string]func(d *Directory){
		"a frame nobody needs":                 func(d *Directory) { d.Frames = append(d.Frames, FrameInfo{Offset: HeaderBytes, Stored: 100}) },
		"a frame twice":                        func(d *Directory) { d.Entries = append(d.Entries, Entry{Frame: 0}) },
		"a gap":                                func(d *Directory) { d.Frames[2].Offset++ },
		"frames that overlap":                  func(d *Directory) { d.Frames[2].Offset-- },
		"bytes at the end":                     func(d *Directory) { d.end++ },
		"a frame larger than its content":      func(d *Directory) { d.Frames[2].Plain++ },
		"entries that overlap":                 func(d *Directory) { d.Entries[2].Offset-- },
		"entries in another order":             func(d *Directory) { slices.Reverse(d.Entries) },
		"the last frame's entries are missing": func(d *Directory) { d.Entries = d.Entries[:4] },
	}
	for name, change := range tests {
		d := good()
		change(d)
		if err := d.Tiled(60); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if err := good().Tiled(59); err == nil {
		t.Error("a frame that is too large is taken")
	}
}

// TestOpenBounded opens a pack of two entries with limits.
func TestOpenBounded(t *testing.T) {
	m, _ := build(t, Zstd)
	for limit, ok := range map[int]bool{0: false, 1: false, 2: true, 3: true} {
		r, err := OpenBounded(t.Context(), m, testHead.Repository, testHead.ID, int64(len(m.p)), secrets, limit)
		if (err == nil) != ok {
			t.Errorf("at most %d: %v", limit, err)
		}
		if err == nil {
			if err := r.Directory().Tiled(16 << 10); err != nil {
				t.Error(err)
			}
		}
	}
}
