package erasure

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// BenchmarkPut and BenchmarkRead are of packs of 32 MiB, in memory, so that what they show is the CPU's part.
func benchStores(b *testing.B, run func(b *testing.B, s blob.Store)) {
	b.Run("directory", func(b *testing.B) {
		s, err := file.Create(filepath.Join(memoryDir(b), "r"))
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		run(b, s)
	})
	for _, l := range []Layout{{1, 1}, {4, 2}, {8, 2}} {
		for _, gone := range []int{0, l.Parity} {
			b.Run(fmt.Sprintf("%v-gone%d", l, gone), func(b *testing.B) {
				dir := memoryDir(b)
				var members []Member
				for i := range l.Members() {
					members = append(members, Member{Path: filepath.Join(dir, fmt.Sprint(i))})
				}
				if _, err := Create(context.Background(), members, l, CreateOptions{}); err != nil {
					b.Fatal(err)
				}
				s, err := Open(context.Background(), members[gone:], Options{})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				run(b, s)
			})
		}
	}
}

func BenchmarkPut(b *testing.B) {
	data := content(1, 32<<20)
	benchStores(b, func(b *testing.B, s blob.Store) {
		b.SetBytes(int64(len(data)))
		for i := 0; b.Loop(); i++ {
			name := fmt.Sprintf("packs/%d", i)
			if err := blob.Put(b.Context(), s, name, data); err != nil {
				b.Fatal(err)
			}
			if err := s.Delete(b.Context(), name); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	data := content(1, 32<<20)
	benchStores(b, func(b *testing.B, s blob.Store) {
		if err := blob.Put(b.Context(), s, "packs/x", data); err != nil {
			b.Fatal(err)
		}
		p := make([]byte, 256<<10)
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			for off := 0; off < len(data); off += len(p) {
				if err := s.ReadAt(b.Context(), "packs/x", p, int64(off)); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}
