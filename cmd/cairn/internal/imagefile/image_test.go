package imagefile_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/imagefile"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

var seed = flag.Uint64("seed", 20261121, "seed of the random images")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// image is a source in memory whose extents are chunks of any size.
type image struct {
	data    []byte
	chunk   int
	failAt  int64 // ReadAt of this offset fails; -1 never
	failExt bool
}

func (i image) Size() int64 { return int64(len(i.data)) }

func (i image) ReadAt(p []byte, off int64) (int, error) {
	if i.failAt >= off && i.failAt < off+int64(len(p)) {
		return 0, fault.New(fault.Corrupt, "read chunk", "", "pack 7 is damaged")
	}
	return bytes.NewReader(i.data).ReadAt(p, off)
}

func (i image) Extents(context.Context) iter.Seq2[store.Extent, error] {
	return func(yield func(store.Extent, error) bool) {
		off := 0
		for c := range slices.Chunk(i.data, i.chunk) {
			zero := bytes.Count(c, []byte{0}) == len(c)
			if !yield(store.Extent{Offset: int64(off), Length: int64(len(c)), Zero: zero}, nil) {
				return
			}
			off += len(c)
		}
		if i.failExt {
			yield(store.Extent{}, fault.New(fault.Corrupt, "read tree", "", "node missing"))
		}
	}
}

func random(r *rand.Rand, size, chunk int) image {
	data := make([]byte, size)
	for off := 0; off < size; off += 4096 * (1 + r.IntN(60)) {
		n := min(4096*(1+r.IntN(40)), size-off)
		for i := range n {
			data[off+i] = byte(r.Uint32())
		}
		off += n
	}
	return image{data: data, chunk: chunk, failAt: -1}
}

func TestWrite(t *testing.T) {
	t.Logf("seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, 3))
	sizes := []int{0, 512, 65536, 3<<20 + 512, 9 << 20}
	for _, format := range []imagefile.Format{imagefile.Raw, imagefile.QCOW2} {
		for _, size := range sizes {
			for _, chunk := range []int{16 << 10, 64 << 10, 256 << 10} {
				src := random(r, size, chunk)
				path := filepath.Join(t.TempDir(), "disk")
				var high atomic.Int64
				res, err := imagefile.Write(t.Context(), path, src, imagefile.Options{Format: format, Workers: 3, Progress: func(done, total int64) {
					if done > total {
						t.Errorf("progress %d of %d", done, total)
					}
					for old := high.Load(); old < done && !high.CompareAndSwap(old, done); old = high.Load() {
					}
				}})
				if err != nil {
					t.Fatal(err)
				}
				if high.Load() != res.DataBytes {
					t.Errorf("progress ended at %d, %d were written", high.Load(), res.DataBytes)
				}
				if got := readBack(t, path, format); !bytes.Equal(got, src.data) {
					t.Errorf("%s of %d bytes in chunks of %d: content differs", format, size, chunk)
				}
				leftovers(t, filepath.Dir(path), "disk")
			}
		}
	}
}

// readBack reads the content with QEMU's own reader where the format is QEMU's.
func readBack(t *testing.T, path string, format imagefile.Format) []byte {
	t.Helper()
	if format == imagefile.QCOW2 {
		if _, err := exec.LookPath("qemu-img"); err != nil {
			t.Skip("qemu-img is not installed")
		}
		raw := path + ".raw"
		defer os.Remove(raw)
		for _, args := range [][]string{{"check", "-f", "qcow2", path}, {"convert", "-f", "qcow2", "-O", "raw", path, raw}} {
			if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
				t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
			}
		}
		path = raw
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestRawKeepsHoles(t *testing.T) {
	data := make([]byte, 8<<20)
	for i := range 4096 {
		data[1<<20+i], data[5<<20+8192+i] = 1, 2
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if _, err := imagefile.Write(t.Context(), path, image{data: data, chunk: 65536, failAt: -1}, imagefile.Options{Format: imagefile.Raw}); err != nil {
		t.Fatal(err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if used := st.Blocks * 512; used > 64<<10 {
		t.Errorf("file takes %d bytes for 8192 bytes of data", used)
	}
}

func TestFailures(t *testing.T) {
	r := rand.New(rand.NewPCG(*seed, 4))
	good := random(r, 4<<20, 65536)
	badRead, badTree := good, good
	badRead.failAt = int64(bytes.IndexFunc(good.data[2<<20:], func(r rune) bool { return r != 0 })) + 2<<20
	badTree.failExt = true
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name string
		ctx  context.Context
		src  image
		want fault.Kind
	}{
		{"a damaged chunk", t.Context(), badRead, fault.Corrupt},
		{"a damaged tree", t.Context(), badTree, fault.Corrupt},
		{"cancelled", cancelled, good, fault.Canceled},
	}
	for _, tt := range tests {
		for _, format := range []imagefile.Format{imagefile.Raw, imagefile.QCOW2} {
			t.Run(tt.name+" "+string(format), func(t *testing.T) {
				dir := t.TempDir()
				_, err := imagefile.Write(tt.ctx, filepath.Join(dir, "disk"), cancelAware{tt.src, tt.ctx}, imagefile.Options{Format: format, Workers: 2})
				if err == nil || fault.KindOf(err) != tt.want {
					t.Errorf("got %v, want kind %v", err, tt.want)
				}
				leftovers(t, dir)
			})
		}
	}
}

// cancelAware stops as the repository's reader does: a cancelled context ends the extents with its error.
type cancelAware struct {
	image
	ctx context.Context
}

func (c cancelAware) Extents(ctx context.Context) iter.Seq2[store.Extent, error] {
	if err := ctx.Err(); err != nil {
		return func(yield func(store.Extent, error) bool) { yield(store.Extent{}, err) }
	}
	return c.image.Extents(ctx)
}

func TestNeverOverwrites(t *testing.T) {
	src := random(rand.New(rand.NewPCG(*seed, 5)), 1<<20, 65536)
	dir := t.TempDir()
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := imagefile.Write(t.Context(), path, src, imagefile.Options{Format: imagefile.Raw})
	if fault.KindOf(err) != fault.Exists {
		t.Errorf("got %v, want Exists", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "precious" {
		t.Errorf("the file was changed to %q", got)
	}
	if _, err := imagefile.Write(t.Context(), path, src, imagefile.Options{Format: imagefile.Raw, Force: true}); err != nil {
		t.Errorf("with force: %v", err)
	}
	if got, _ := os.ReadFile(path); !bytes.Equal(got, src.data) {
		t.Error("with force: content differs")
	}
	leftovers(t, dir, "disk.raw")
	for _, target := range []string{dir, os.DevNull} {
		if _, err := imagefile.Write(t.Context(), target, src, imagefile.Options{Format: imagefile.Raw, Force: true}); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: got %v, want Invalid", target, err)
		}
	}
	if err := imagefile.WriteBytes(filepath.Join(dir, "none", "a.xml"), nil, false); fault.KindOf(err) != fault.NotFound {
		t.Errorf("missing directory: got %v, want NotFound", err)
	}
}

// A file that somebody else makes while ours is written is not replaced.
func TestFileThatAppearsMeanwhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "domain.xml")
	f, err := imagefile.Create(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, "ours"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Commit(); fault.KindOf(err) != fault.Exists {
		t.Errorf("got %v, want Exists", err)
	}
	if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if got, _ := os.ReadFile(path); string(got) != "theirs" {
		t.Errorf("the file was changed to %q", got)
	}
	leftovers(t, filepath.Dir(path), "domain.xml")
}

func leftovers(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("in the directory: %v, want %v", got, want)
	}
}
