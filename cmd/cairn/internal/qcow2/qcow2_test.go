package qcow2_test

import (
	"encoding/binary"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/qcow2"
	"github.com/cairn-backup/cairn/internal/fault"
)

var seed = flag.Uint64("seed", 20261121, "seed of the random images")

const cluster = qcow2.ClusterBytes

// span is a guest range that holds data.
type span struct{ off, n int64 }

// write makes both a qcow2 image and the raw image it must equal.
func write(t testing.TB, dir string, size int64, spans []span, r *rand.Rand) (image, raw string) {
	t.Helper()
	image, raw = filepath.Join(dir, "a.qcow2"), filepath.Join(dir, "a.raw")
	q, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	f, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	w, err := qcow2.New(q, size)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range spans {
		data := make([]byte, s.n)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		if _, err := f.WriteAt(data, s.off); err != nil {
			t.Fatal(err)
		}
		for off := s.off; len(data) > 0; {
			place, n, err := w.Map(off, int64(len(data)))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := q.WriteAt(data[:n], place); err != nil {
				t.Fatal(err)
			}
			off, data = off+n, data[n:]
		}
	}
	length, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Truncate(length); err != nil {
		t.Fatal(err)
	}
	return image, raw
}

func needQEMU(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed")
	}
}

func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func mustMatch(t testing.TB, image, raw string) {
	t.Helper()
	qemuImg(t, "check", "-f", "qcow2", image)
	qemuImg(t, "compare", "-f", "qcow2", "-F", "raw", image, raw)
	head, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.Stat(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := int64(binary.BigEndian.Uint64(head[24:])); got != want.Size() {
		t.Errorf("virtual size: got %d, want %d", got, want.Size())
	}
}

func TestAgainstQEMU(t *testing.T) {
	needQEMU(t)
	const l2 = cluster * cluster / 8
	tests := []struct {
		name  string
		size  int64
		spans []span
	}{
		{"empty disk of no bytes", 0, nil},
		{"nothing written", 10 << 20, nil},
		{"one sector", 512, []span{{0, 512}}},
		{"first and last cluster", 5 * cluster, []span{{0, cluster}, {4 * cluster, cluster}}},
		{"ends inside a cluster", 3*cluster + 1536, []span{{cluster, cluster}, {3 * cluster, 1536}}},
		{"across two L2 tables", 2 * l2, []span{{l2 - cluster, 2 * cluster}}},
		{"a hole of a whole L2 table", 3*l2 + cluster, []span{{0, cluster}, {3 * l2, cluster}}},
		{"a large thin disk", 1 << 40, []span{{0, cluster}, {1 << 39, 3 * cluster}, {1<<40 - cluster, cluster}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Logf("seed %d", *seed)
			image, raw := write(t, t.TempDir(), tt.size, tt.spans, rand.New(rand.NewPCG(*seed, 1)))
			mustMatch(t, image, raw)
		})
	}
}

// A file of more than 32768 clusters needs a second refcount block; the data clusters stay holes so that the test
// writes little.
func TestManyRefcountBlocks(t *testing.T) {
	needQEMU(t)
	image := filepath.Join(t.TempDir(), "a.qcow2")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 9 << 30
	w, err := qcow2.New(f, size)
	if err != nil {
		t.Fatal(err)
	}
	for off := int64(0); off < size; {
		_, n, err := w.Map(off, size-off)
		if err != nil {
			t.Fatal(err)
		}
		off += n
	}
	length, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(length); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, "check", "-f", "qcow2", image)
}

func TestRandomSparseImages(t *testing.T) {
	needQEMU(t)
	t.Logf("seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, 2))
	for range 12 {
		size := 512 * (1 + r.Int64N(200*cluster/512))
		var spans []span
		for off := int64(0); off < size; off += cluster * (1 + r.Int64N(4)) {
			if n := min(cluster*(1+r.Int64N(3)), size-off); r.IntN(3) > 0 {
				spans = append(spans, span{off, n})
				off += n &^ (cluster - 1)
			}
		}
		image, raw := write(t, t.TempDir(), size, spans, r)
		mustMatch(t, image, raw)
	}
}

// Property: whatever is mapped, no two clusters of the file are given out twice, and none lies in the tables.
func TestMapGivesEachClusterOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := 512 * rapid.Int64Range(1, (3<<30)/512).Draw(t, "sectors")
		w, err := qcow2.New(discard{}, size)
		if err != nil {
			t.Fatal(err)
		}
		used := map[int64]bool{0: true, 1: true}
		var last, given int64
		for off := int64(0); off < size; {
			off += cluster * rapid.Int64Range(0, 9000).Draw(t, "skip")
			n := min(cluster*rapid.Int64Range(1, 9000).Draw(t, "take"), size-off)
			for n > 0 {
				place, length, err := w.Map(off, n)
				if err != nil {
					t.Fatal(err)
				}
				if length <= 0 || length > n || place%cluster != 0 || place <= last {
					t.Fatalf("Map(%d, %d) = %d, %d after place %d", off, n, place, length, last)
				}
				for c := place / cluster; c < (place+length+cluster-1)/cluster; c++ {
					if used[c] {
						t.Fatalf("cluster %d given out twice", c)
					}
					used[c], last = true, c*cluster
					given++
				}
				off, n = off+length, n-length
			}
		}
		total, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		// header, L1, at most one L2 table per 512 MiB, refcount blocks and table.
		if overhead := total/cluster - given; overhead > 2+(size>>29)+1+(total>>31)+1+1 {
			t.Errorf("%d clusters of overhead for %d bytes", overhead, size)
		}
	})
}

func TestRefusals(t *testing.T) {
	tests := []struct {
		name   string
		size   int64
		ranges []span
	}{
		{"negative size", -1, nil},
		{"too large", qcow2.MaxSize + 1, nil},
		{"not on a cluster", 4 * cluster, []span{{512, cluster}}},
		{"length inside the disk not whole clusters", 4 * cluster, []span{{0, 512}}},
		{"beyond the end", 4 * cluster, []span{{3 * cluster, 2 * cluster}}},
		{"empty", 4 * cluster, []span{{0, 0}}},
		{"descending", 4 * cluster, []span{{cluster, cluster}, {0, cluster}}},
		{"twice", 4 * cluster, []span{{cluster, cluster}, {cluster, cluster}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w, err := qcow2.New(discard{}, tt.size)
			for i := 0; err == nil && i < len(tt.ranges); i++ {
				_, _, err = w.Map(tt.ranges[i].off, tt.ranges[i].n)
			}
			if err == nil || fault.KindOf(err) != fault.Invalid {
				t.Errorf("got %v, want an Invalid error", err)
			}
		})
	}
}

// Every write that fails makes the image fail: an export never reports success over a full disk.
func TestWriteErrorsAreReturned(t *testing.T) {
	run := func(f io.WriterAt) error {
		w, err := qcow2.New(f, 2<<30)
		if err != nil {
			return err
		}
		for _, off := range []int64{0, 1 << 30} {
			if _, _, err := w.Map(off, cluster); err != nil {
				return err
			}
		}
		_, err = w.Finish()
		return err
	}
	count := &failAt{n: -1}
	if err := run(count); err != nil {
		t.Fatal(err)
	}
	for i := range count.calls {
		if err := run(&failAt{n: i}); fault.KindOf(err) != fault.Transient || err == nil {
			t.Errorf("write %d of %d failed: got %v, want a Transient error", i, count.calls, err)
		}
	}
}

// FuzzMap feeds ranges of any kind: the writer either refuses or stays consistent, and never panics.
func FuzzMap(f *testing.F) {
	f.Add(int64(1<<20), []byte{0, 1, 3, 2})
	f.Add(int64(512), []byte{0, 0})
	f.Fuzz(func(t *testing.T, size int64, steps []byte) {
		if size > 1<<40 {
			t.Skip()
		}
		w, err := qcow2.New(discard{}, size)
		if err != nil {
			return
		}
		for pair := range slices.Chunk(steps, 2) {
			if len(pair) == 2 {
				place, n, err := w.Map(int64(pair[0])*cluster/2, int64(pair[1])*512)
				if err == nil && (n <= 0 || place < 2*cluster) {
					t.Fatalf("placed %d bytes at %d", n, place)
				}
			}
		}
		if _, err := w.Finish(); err != nil {
			t.Fatal(err)
		}
	})
}

type discard struct{}

func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

type failAt struct{ n, calls int }

func (f *failAt) WriteAt(p []byte, _ int64) (int, error) {
	f.calls++
	if f.calls-1 == f.n {
		return 0, fault.New(fault.Transient, "write", "", "no space left on device")
	}
	return len(p), nil
}
