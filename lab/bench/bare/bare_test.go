package bare_test

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/lab/bench/bare"
	"github.com/cairn-backup/cairn/lab/bench/images"
)

func TestRestoreUndoesWrite(t *testing.T) {
	const size = 5<<20 + 4096
	for _, codec := range []string{"zstd", "s2"} {
		t.Run(codec, func(t *testing.T) {
			dir := t.TempDir()
			image, out, back := filepath.Join(dir, "image"), filepath.Join(dir, "out"), filepath.Join(dir, "back")
			f, err := os.Create(image)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			rng := rand.New(rand.NewPCG(1, 2))
			noise := make([]byte, 700<<10)
			for i := range noise {
				noise[i] = byte(rng.Uint32())
			}
			text := make([]byte, 900<<10)
			for i := range text {
				text[i] = "cairn "[i%6]
			}
			for off, p := range map[int64][]byte{4096: noise, 2 << 20: text, size - 4096: noise[:4096]} {
				if _, err := f.WriteAt(p, off); err != nil {
					t.Fatal(err)
				}
			}
			if err := bare.Write(t.Context(), image, out, codec); err != nil {
				t.Fatal(err)
			}
			if err := bare.Restore(t.Context(), out, back, codec); err != nil {
				t.Fatal(err)
			}
			if err := images.Same(image, back); err != nil {
				t.Error(err)
			}
			info, err := os.Stat(out)
			if err != nil || info.Size() > 900<<10 {
				t.Errorf("output has %d bytes, error %v", info.Size(), err)
			}
		})
	}
}
