package erasure

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/store"
)

// repo is a repository on a set.
type repo struct {
	t   *testing.T
	s   *Store
	r   *store.Repository
	key store.Key
}

func openRepo(t *testing.T, s *Store, key store.Key) *repo {
	t.Helper()
	r, err := store.Open(context.Background(), s, key, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return &repo{t, s, r, key}
}

func (r *repo) close() {
	r.t.Helper()
	if err := r.r.Close(); err != nil {
		r.t.Fatal(err)
	}
	if err := r.s.Close(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *repo) backup(disk []byte) store.RestorePoint {
	r.t.Helper()
	ctx := context.Background()
	s, err := r.r.Begin(ctx, store.SessionOptions{Series: "vm"})
	if err != nil {
		r.t.Fatal(err)
	}
	w, err := s.NewImage(ctx, store.ImageOptions{SizeBytes: int64(len(disk))})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := w.Write(ctx, 0, disk); err != nil {
		r.t.Fatal(err)
	}
	ref, err := w.Finish(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := s.Publish(ctx, store.Manifest{Images: []store.NamedImage{{Name: "a", Ref: ref}}})
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *repo) holds(p store.RestorePoint, disk []byte) {
	r.t.Helper()
	if report, err := r.r.Verify(context.Background(), p.ID, nil); err != nil || len(report.Damage) > 0 {
		r.t.Fatalf("Verify %s = %+v, %v", p.ID, report, err)
	}
	im, err := r.r.OpenImage(context.Background(), p.Images[0].Ref)
	if err != nil {
		r.t.Fatal(err)
	}
	defer im.Close()
	got, err := io.ReadAll(io.NewSectionReader(im, 0, im.Size()))
	if err != nil || !bytes.Equal(got, disk) {
		r.t.Fatalf("restore of %s: %v, or other bytes", p.ID, err)
	}
}

// TestRepositoryOnASet: a whole life of a repository on 4+2 of which two members are lost, replaced, filled, and then
// two others are lost.
func TestRepositoryOnASet(t *testing.T) {
	ctx := t.Context()
	d := newSet(t, Layout{4, 2})
	key, err := store.NewKeyFile(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	s := d.open()
	if err := store.Create(ctx, s, key, store.CreateOptions{Name: "set"}); err != nil {
		t.Fatal(err)
	}
	r := openRepo(t, s, key)
	first, second, third := content(1, 12<<20), content(2, 6<<20), content(3, 6<<20)
	p1, p2 := r.backup(first), r.backup(second)
	for _, gone := range d.paths[1:3] { // while it is open
		if err := os.RemoveAll(gone); err != nil {
			t.Fatal(err)
		}
	}
	r.holds(p1, first)
	p3 := r.backup(third)
	r.holds(p3, third)
	r.close()

	s = d.openWith(Options{}, d.paths...)
	r = openRepo(t, s, key)
	r.holds(p1, first)
	if err := r.r.Prune(ctx, p2.ID); err != nil {
		t.Fatal(err)
	}
	if report, err := r.r.Collect(ctx, store.CollectOptions{}); err != nil || report.PacksFreed == 0 {
		t.Fatalf("Collect = %+v, %v", report, err)
	}
	h, err := s.Health(ctx)
	if err != nil || h.CanLose != 0 || h.Groups[0].Members[1].State != Missing || h.Groups[0].Members[0].State != Online {
		t.Fatalf("Health = %+v, %v", h, err)
	}
	p4 := r.backup(second)

	for i, id := range []string{"d1", "d2"} {
		path := filepath.Join(memoryDir(t), "new")
		fresh, err := s.Replace(ctx, id, Member{Path: path, ID: fmt.Sprint("n", i)})
		if err != nil {
			t.Fatal(err)
		}
		var last Progress
		if err := s.Rebuild(ctx, fresh, func(p Progress) { last = p }); err != nil {
			t.Fatal(err)
		}
		if last.Bytes != last.BytesTotal || last.Repaired == 0 || last.Objects != last.ObjectsTotal {
			t.Errorf("Rebuild ended with %+v", last)
		}
		d.paths[1+i] = path
	}
	report := mustScrub(t, s)
	if report.Repaired > 0 || len(report.Damaged) > 0 {
		t.Errorf("Scrub after Rebuild: %+v", report)
	}
	if h, err = s.Health(ctx); err != nil || h.CanLose != 2 || h.Groups[0].BelowFull > 0 {
		t.Errorf("Health after Rebuild: %+v, %v", h, err)
	}
	r.close()

	r = openRepo(t, d.openWith(Options{}, d.paths[1], d.paths[2], d.paths[5], d.paths[4]), key)
	defer r.close()
	for p, disk := range map[string][]byte{p1.ID: first, p3.ID: third, p4.ID: second} {
		point, err := r.r.RestorePoint(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		r.holds(point, disk)
	}
	if check, err := r.r.Check(ctx); err != nil || len(check.Problems) > 0 {
		t.Errorf("Check = %+v, %v", check, err)
	}
}
