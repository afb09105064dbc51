package store

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/blobtest"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/tree"
)

// fleet is a repository with the restore points of several machines, in many small packs, and copies of it.
type fleet struct {
	t     *testing.T
	dir   string // the repository, its index beside it
	key   Key
	disks map[string][]byte // by restore point
}

const fleetPack = 192 << 10

// newFleet makes machines that share content, each with a full backup and incrementals that refer to older blocks.
func newFleet(t *testing.T, rnd *rand.Rand, machines, days int) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: filepath.Join(t.TempDir(), "fleet"), disks: map[string][]byte{}}
	b, err := file.Create(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	if f.key, err = NewKeyFile(filepath.Join(t.TempDir(), "key")); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), b, f.key, CreateOptions{Name: "fleet"}); err != nil {
		t.Fatal(err)
	}
	r := f.open(f.dir)
	f.fill(r, rnd, machines, days)
	f.shut(r)
	return f
}

func (f *fleet) fill(r *Repository, rnd *rand.Rand, machines, days int) {
	f.t.Helper()
	common := make([]byte, 6*testChunk)
	fill(rnd, common)
	for m := range machines {
		disk := append(bytes.Clone(common), make([]byte, 9*testChunk+777)...)
		fill(rnd, disk[8*testChunk:])
		var parent *ImageRef
		for day := range days {
			before := bytes.Clone(disk)
			if day > 0 {
				for range 5 {
					at := rnd.IntN(len(disk)/4096) * 4096
					fill(rnd, disk[at:at+4096])
				}
			}
			p := f.backup(r, fmt.Sprintf("vm%d", m), disk, before, parent)
			f.disks[p.ID] = bytes.Clone(disk)
			parent = &p.Images[0].Ref
		}
	}
}

func (f *fleet) backup(r *Repository, series string, disk, before []byte, parent *ImageRef) RestorePoint {
	f.t.Helper()
	ctx := context.Background()
	s, err := r.Begin(ctx, SessionOptions{Series: series, Writer: "test"})
	if err != nil {
		f.t.Fatal(err)
	}
	g := &rig{t: f.t, repo: r}
	ref, _ := g.write(s, disk, before, parent)
	p, err := s.Publish(ctx, Manifest{
		Time: time.Now().UTC(), Images: []NamedImage{{Name: "vda", Ref: ref}},
		Documents: []Document{{Name: "domain.xml", Data: []byte("<domain>" + series + "</domain>")}},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return p
}

// open opens the repository in a directory, with the index beside it.
func (f *fleet) open(dir string) *Repository {
	f.t.Helper()
	b, err := file.Open(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.openStore(b, dir+".index")
}

// openCounting opens the repository in a directory and counts what is read of its packs.
func (f *fleet) openCounting(dir string) (*Repository, *counting) {
	f.t.Helper()
	b, err := file.Open(dir)
	if err != nil {
		f.t.Fatal(err)
	}
	c := &counting{}
	return f.openStore(c.of(b), dir+".index"), c
}

func (f *fleet) openStore(b blob.Store, index string) *Repository {
	f.t.Helper()
	r, err := Open(context.Background(), b, f.key, Options{IndexDir: index, packBytes: fleetPack})
	if err != nil {
		f.t.Fatal(err)
	}
	return r
}

func (f *fleet) shut(r *Repository) {
	f.t.Helper()
	if err := r.Close(); err != nil {
		f.t.Error(err)
	}
}

// copy copies the repository, with its index, to a new directory.
func (f *fleet) copy() string {
	f.t.Helper()
	to := filepath.Join(f.t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(f.dir)); err != nil {
		f.t.Fatal(err)
	}
	if err := os.CopyFS(to+".index", os.DirFS(f.dir+".index")); err != nil {
		f.t.Fatal(err)
	}
	return to
}

func packFiles(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "packs", "*", "*.pack"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%d packs, %v", len(names), err)
	}
	slices.Sort(names)
	return names
}

// packName is the name that reports give a pack file.
func packName(path string) string {
	return "packs/" + filepath.Base(filepath.Dir(path)) + "/" + filepath.Base(path)
}

// oracle reads every chunk of every restore point by itself: what fails is touched.
func (f *fleet) oracle(r *Repository) []TouchedPoint {
	f.t.Helper()
	ctx := context.Background()
	points, err := r.RestorePoints(ctx)
	if err != nil && fault.KindOf(err) != fault.Corrupt {
		f.t.Fatal(err)
	}
	slices.SortFunc(points, func(a, b RestorePoint) int {
		return strings.Compare(a.Series+a.Time.Format("150405.000000000")+a.ID, b.Series+b.Time.Format("150405.000000000")+b.ID)
	})
	var out []TouchedPoint
	for _, p := range points {
		t := TouchedPoint{RestorePoint: p.ID, Series: p.Series, Time: p.Time}
		if _, err := r.Document(ctx, p.ID, "domain.xml"); err != nil {
			t.Documents = []string{"domain.xml"}
		}
		if im := f.oracleImage(r, p.Images[0], f.disks[p.ID]); im.Bytes > 0 {
			t.Images = []TouchedImage{im}
		}
		if len(t.Images)+len(t.Documents) > 0 {
			out = append(out, t)
		}
	}
	return out
}

func (f *fleet) oracleImage(r *Repository, im NamedImage, disk []byte) TouchedImage {
	f.t.Helper()
	l := &rangeList{out: TouchedImage{Name: im.Name, Ranges: []Range{}}, head: tree.Head{Size: im.Ref.SizeBytes, ChunkBytes: testChunk}}
	i, err := r.OpenImage(context.Background(), im.Ref)
	if err != nil {
		l.add(0, l.head.Size)
		l.end()
		return l.out
	}
	defer i.Close()
	// Zero chunks of a leaf that cannot be read are not known to be zero, so the leaf is read as a whole.
	for off := int64(0); off < l.head.Size; off += testChunk {
		p := make([]byte, min(testChunk, l.head.Size-off))
		if _, err := i.ReadAt(p, off); err != nil && err != io.EOF {
			l.add(off, int64(len(p)))
		} else if !bytes.Equal(p, disk[off:off+int64(len(p))]) {
			f.t.Fatalf("offset %d of %s reads as something else", off, im.Name)
		}
	}
	l.end()
	return l.out
}

// mustBeWhole verifies every restore point and compares its disk.
func (f *fleet) mustBeWhole(r *Repository) {
	f.t.Helper()
	points, err := r.RestorePoints(context.Background())
	if err != nil || len(points) != len(f.disks) {
		f.t.Fatalf("%d of %d restore points, %v", len(points), len(f.disks), err)
	}
	for _, p := range points {
		if report, err := r.Verify(context.Background(), p.ID, nil); err != nil {
			f.t.Fatalf("Verify = %+v, %v", report, err)
		}
		g := &rig{t: f.t, repo: r}
		if !bytes.Equal(g.read(p.Images[0].Ref), f.disks[p.ID]) {
			f.t.Fatalf("restore point %s does not hold its disk", p.ID)
		}
	}
}

// part is what one read asks for.
type part struct{ off, n int64 }

// counting counts what is read of packs.
type counting struct {
	mu    sync.Mutex
	bytes int64
	reads map[string]map[part]int // by name
}

// of returns a backend whose reads are counted.
func (c *counting) of(b blob.Store) blob.Store {
	return &blobtest.Faulty{Store: b, Do: func(_ context.Context, x blobtest.Call) error {
		if x.Op != "read" || !strings.HasPrefix(x.Name, "packs/") {
			return nil
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.bytes += int64(x.Bytes)
		if c.reads == nil {
			c.reads = map[string]map[part]int{}
		}
		if c.reads[x.Name] == nil {
			c.reads[x.Name] = map[part]int{}
		}
		c.reads[x.Name][part{x.Off, int64(x.Bytes)}]++
		return nil
	}}
}

// take returns what was counted and begins again.
func (c *counting) take() (bytes int64, reads map[string]map[part]int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	bytes, reads = c.bytes, c.reads
	c.bytes, c.reads = 0, nil
	return bytes, reads
}
