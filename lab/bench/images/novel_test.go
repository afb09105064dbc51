package images

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestNovel has two machines of a kind and one of another, whose disks consist of blocks of one letter each.
func TestNovel(t *testing.T) {
	dir, scratch := t.TempDir(), t.TempDir()
	set := Set{Name: "letters"}
	disk := func(blocks string) []byte {
		p := make([]byte, 2*GrainBytes)
		for i, letter := range []byte(blocks) {
			if letter != '.' {
				copy(p[i*blockBytes:], bytes.Repeat([]byte{letter}, blockBytes))
			}
		}
		return p
	}
	machine := func(name string, k Kind, days ...string) {
		set.Machines = append(set.Machines, Machine{Name: name, Kind: k, Days: len(days)})
		err := os.MkdirAll(filepath.Join(dir, name), 0o755)
		for i, blocks := range days {
			image := First(dir, name)
			if i > 0 {
				image = filepath.Join(scratch, "day.img")
			}
			err = errors.Join(err, os.WriteFile(image, disk(blocks), 0o644))
			if i == 0 {
				continue
			}
			before := filepath.Join(scratch, "before.img")
			err = errors.Join(err, Build(t.Context(), dir, name, i, before))
			c, compareErr := Compare(before, image)
			err = errors.Join(err, compareErr, c.Save(Record(dir, name, i+1)), SaveDelta(image, Delta(dir, name, i+1), c), os.Remove(before), os.Remove(image))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	machine("a", Quiet, "ABC", "AXC.Y", "ZXC.Y")
	machine("b", Quiet, "DEF.G", "DXB.H")
	machine("c", Scattered, "KLM", "KYQ")
	p, err := json.Marshal(set)
	if err = errors.Join(err, os.WriteFile(filepath.Join(dir, "set.json"), p, 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		kind Kind
		day  int
		want string
	}{
		{Quiet, 2, "XYH"},
		{Scattered, 2, "YQ"},
		{Quiet, 3, "Z"},
	} {
		out := filepath.Join(scratch, "novel")
		n, err := Novel(t.Context(), dir, tc.kind, tc.day, scratch, out)
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		var letters []byte
		for at := 0; at < len(got); at += blockBytes {
			letters = append(letters, got[at])
		}
		if string(letters) != tc.want || n != int64(len(got)) {
			t.Errorf("new on day %d of %s machines: %q, %d bytes, want %q", tc.day, tc.kind, letters, n, tc.want)
		}
	}
}
