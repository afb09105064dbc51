package protect

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob/file"
)

const diskBytes = 64 << 10

// series is one VM with a repository and a catalog, and no platform.
type series struct {
	*backup
	t   *testing.T
	dir string
}

func newSeries(t *testing.T) *series {
	dir := t.TempDir()
	cat, err := catalog.Open(t.Context(), catalog.Options{Path: filepath.Join(dir, "catalog.db"), KeyFile: filepath.Join(dir, "catalog.key")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cat.Close() })
	key, err := store.NewKeyFile(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := file.Create(filepath.Join(dir, "repository"))
	if err == nil {
		err = store.Create(t.Context(), b, key, store.CreateOptions{Name: "main"})
	}
	if err != nil {
		t.Fatal(err)
	}
	repo, err := store.Open(t.Context(), b, key, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = repo.Close() })
	return &series{t: t, dir: dir, backup: &backup{
		Protector: &Protector{catalog: cat}, t: &jobs.Task{Task: catalog.Task{ID: "task_1"}}, repo: repo,
		spec: BackupSpec{RepositoryID: "repo_1"}, vm: catalog.VM{ID: "vm_1", PlatformID: "one"},
	}}
}

// point makes a restore point of a disk filled with one byte, from a freeze that answered with a checkpoint.
func (s *series) point(fill byte, checkpoint string) string {
	s.t.Helper()
	var err error
	if s.base, err = s.findBase(s.t.Context()); err != nil {
		s.t.Fatal(err)
	}
	s.info = hypervisors.FrozenInfo{VM: hypervisors.VM{Name: "one"}, Checkpoint: checkpoint}
	session, err := s.repo.Begin(s.t.Context(), store.SessionOptions{Series: s.series()})
	if err != nil {
		s.t.Fatal(err)
	}
	w, err := session.NewImage(s.t.Context(), store.ImageOptions{SizeBytes: diskBytes})
	if err == nil {
		err = w.Write(s.t.Context(), 0, bytes.Repeat([]byte{fill}, diskBytes))
	}
	if err != nil {
		s.t.Fatal(err)
	}
	ref, err := w.Finish(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	m := s.manifest()
	m.Images = []store.NamedImage{{Name: "vda", Ref: ref, Meta: encode(diskMeta{Mode: catalog.Full})}}
	p, err := session.Publish(s.t.Context(), m)
	if err != nil {
		s.t.Fatal(err)
	}
	row, err := pointRow(s.spec.RepositoryID, s.vm.ID, p)
	if err == nil {
		err = s.catalog.AddRestorePoint(s.t.Context(), row)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return p.ID
}

// A backup of a VM that is off keeps the checkpoint of the one before it. What is read since that checkpoint belongs
// on the disks as they were then: the image may have been put back meanwhile.
func TestBaseIsThePointTheCheckpointWasMadeWith(t *testing.T) {
	s := newSeries(t)
	tests := []struct {
		checkpoint string
		base       int // restore point the next backup builds on
	}{
		{"", -1}, {"a", 1}, {"a", 1}, {"a", 1}, {"b", 4}, {"b", 4}, {"", -1}, {"c", 7},
	}
	var points []string
	for i, test := range tests {
		points = append(points, s.point(byte(i+1), test.checkpoint))
		got, err := s.findBase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if test.base < 0 {
			if got.since != "" || got.reason == "" {
				t.Errorf("after %d: base = %+v, want none", i, got)
			}
			continue
		}
		want, err := s.repo.RestorePoint(t.Context(), points[test.base])
		if err != nil {
			t.Fatal(err)
		}
		if got.since != test.checkpoint || got.images["vda"] != want.Images[0].Ref {
			t.Errorf("after %d: base = %+v, want the disk of point %d", i, got, test.base)
		}
	}
}

func TestNoBaseWithoutThePointTheCheckpointWasMadeWith(t *testing.T) {
	s := newSeries(t)
	first := s.point(1, "a")
	s.point(2, "a")
	if err := s.catalog.SetVerified(t.Context(), first, bytes.ErrTooLarge); err != nil {
		t.Fatal(err)
	}
	if got, err := s.findBase(t.Context()); err != nil || got.since != "" || got.reason == "" {
		t.Errorf("with that point damaged: base = %+v, %v, want none", got, err)
	}
	if err := s.repo.Prune(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if got, err := s.findBase(t.Context()); err != nil || got.since != "" || got.reason == "" {
		t.Errorf("with that point pruned: base = %+v, %v, want none", got, err)
	}
}

// A disk whose image lies in a file of the repository in which damage was found is read whole, though no restore point
// was verified as damaged; the other disks are not.
func TestDiskWithDamageBelowItIsReadWhole(t *testing.T) {
	s := newSeries(t)
	s.point(1, "a")
	export := hypervisors.Export{SizeBytes: diskBytes, DirtyContext: "dirty"}
	vda := hypervisors.FrozenDiskInfo{Disk: hypervisors.Disk{ID: "vda"}, Export: export}
	got, err := s.findBase(t.Context())
	if err != nil || got.plan(vda).mode != catalog.Incremental {
		t.Fatalf("base = %+v, %v, want one to build on", got, err)
	}
	packs, err := filepath.Glob(filepath.Join(s.dir, "repository", "packs", "*", "*.pack"))
	if err != nil || len(packs) == 0 {
		t.Fatalf("%d packs, %v", len(packs), err)
	}
	for _, name := range packs {
		p, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		p[140] ^= 1 // in the first frame
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got, err = s.findBase(t.Context()); err != nil || got.plan(vda).mode != catalog.Incremental {
		t.Fatalf("before the damage is known: base = %+v, %v", got, err)
	}
	if _, err := s.repo.Sweep(t.Context(), store.SweepOptions{}); fault.KindOf(err) != fault.Corrupt {
		t.Fatalf("Sweep: %v, want corrupt", err)
	}
	got, err = s.findBase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if p := got.plan(vda); p.mode != catalog.Full || p.reason == "" || p.export.DirtyContext != "" {
		t.Errorf("plan = %+v, want full with a reason", p)
	}
}
