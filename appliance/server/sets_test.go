package server

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/store/erasure"
)

// disks names n directories for members.
func (b *bench) disks(prefix string, n int) (out []httpapi.NewMember) {
	for i := range n {
		out = append(out, httpapi.NewMember{Path: filepath.Join(b.root, fmt.Sprint(prefix, i))})
	}
	return out
}

// newSetBench is a bench whose repository is a set of 4+2.
func newSetBench(t *testing.T) *bench {
	t.Helper()
	b := newBench(t)
	repo, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "set", Set: &httpapi.NewSet{
		Layout: erasure.Layout{Data: 4, Parity: 2}, Members: b.disks("disk", 6),
	}})
	if err != nil {
		t.Fatal(err)
	}
	b.repo = repo.ID
	if s := repo.Set; repo.Status != catalog.HealthOK || s == nil || s.CanLose != 2 || len(s.Members) != 6 || s.Members[0].Place == "" || repo.Usage.FreeBytes == 0 {
		t.Fatalf("repository = %s, %+v, %+v", repo.Status, repo.LastError, repo.Set)
	}
	return b
}

func (b *bench) rename(from, to string) {
	b.t.Helper()
	if err := os.Rename(filepath.Join(b.root, from), filepath.Join(b.root, to)); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) restart(between func()) {
	b.t.Helper()
	if err := b.Close(b.t.Context()); err != nil {
		b.t.Fatal(err)
	}
	between()
	b.start()
}

func (b *bench) member(path string) httpapi.MemberInfo {
	b.t.Helper()
	for _, m := range b.info().Set.Members {
		if m.Place == filepath.Join(b.root, path) {
			return m
		}
	}
	b.t.Fatalf("no member lies in %s", path)
	return httpapi.MemberInfo{}
}

func TestSetLosesTwoMembers(t *testing.T) {
	b := newSetBench(t)
	point := b.backup()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	b.restart(func() { b.rename("disk1", "away1"); b.rename("disk4", "away4") })
	info := b.info()
	if s := info.Set; info.Status != catalog.HealthProblem || s == nil || s.CanLose != 0 || s.Below == 0 || info.Usage.RestorePoints != 1 {
		t.Fatalf("repository = %s, %+v, %+v", info.Status, info.LastError, info.Set)
	}
	if e := info.LastError; !strings.Contains(e.What, "disk1") || !strings.Contains(e.What, "disk4") || e.Meaning == "" || e.Advice == "" {
		t.Errorf("the problem does not name what is away: %+v", e)
	}
	b.restoresTo(point.ID, "without-two", disk0, disk1)
	second := b.backup()
	if second.Kind != catalog.Incremental {
		t.Errorf("the backup without two members is %s", second.Kind)
	}
	// One disk is replaced, the other comes back.
	lost := b.member("disk1")
	fresh := filepath.Join(b.root, "fresh")
	task := b.ended(b.StartRebuild(t.Context(), httpapi.Start{}, b.repo, lost.ID, fresh))
	if task.State != catalog.Succeeded || task.Result.Repaired.Shards == 0 {
		t.Fatalf("rebuild = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	b.restart(func() { b.rename("away4", "disk4") })
	task = b.ended(b.StartScrub(t.Context(), httpapi.Start{}, b.repo, 0))
	if task.State != catalog.Succeeded || task.Result.Repaired.Objects == 0 {
		t.Fatalf("scrub = %s, %+v, %+v", task.State, task.Error, task.Result)
	}
	info = b.info()
	if info.Status != catalog.HealthOK || info.Set.CanLose != 2 || b.member("fresh").ID == lost.ID {
		t.Errorf("repository = %s, %+v, %+v", info.Status, info.LastError, info.Set)
	}
	for _, m := range info.Members {
		if m.ID == lost.ID || strings.HasSuffix(m.Path, "disk1") || m.ID == "" {
			t.Errorf("the catalog has member %+v", m)
		}
	}
	b.restoresTo(second.ID, "whole", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}

func TestSetMembersGoWhileItIsOpen(t *testing.T) {
	b := newSetBench(t)
	point := b.backup()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	unmount := func(disk string) { // leaves an empty directory
		b.rename(disk, "off-"+disk)
		if err := os.Mkdir(filepath.Join(b.root, disk), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(disk string) {
		if err := os.RemoveAll(filepath.Join(b.root, disk)); err != nil {
			t.Fatal(err)
		}
		b.rename("off-"+disk, disk)
	}
	unmount("disk0")
	unmount("disk1")
	if info := b.info(); info.Status != catalog.HealthProblem || info.Set == nil || info.Set.CanLose != 0 {
		t.Errorf("without two members: %s, %+v, %+v", info.Status, info.LastError, info.Set)
	}
	b.restoresTo(point.ID, "without-two", disk0, disk1)
	unmount("disk2")
	if info := b.info(); info.Status != catalog.HealthProblem || info.LastError.Kind != "transient" {
		t.Errorf("without three members: %s, %+v, %+v", info.Status, info.LastError, info.Set)
	}
	for _, disk := range []string{"disk0", "disk1", "disk2"} {
		mount(disk)
	}
	if task := b.ended(b.StartScrub(t.Context(), httpapi.Start{}, b.repo, 0)); task.State != catalog.Succeeded {
		t.Errorf("scrub = %s, %+v, %v", task.State, task.Error, task.Warnings)
	}
	if info := b.info(); info.Set == nil || info.Set.CanLose != 2 {
		t.Errorf("with all members: %s, %+v, %+v", info.Status, info.LastError, info.Set)
	}
	b.restoresTo(point.ID, "whole", disk0, disk1)
	b.restoresTo(b.backup().ID, "next", disk0, disk1)
}

func TestSetRotsAndIsScrubbed(t *testing.T) {
	b := newSetBench(t)
	point := b.backup()
	rotten := 0
	for _, disk := range []string{"disk0", "disk3"} {
		err := filepath.WalkDir(filepath.Join(b.root, disk), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.Contains(path, "/packs/") {
				return err
			}
			p, err := os.ReadFile(path)
			if err != nil || len(p) < 300 {
				return err
			}
			p[len(p)/2] ^= 1
			rotten++
			return os.WriteFile(path, p, 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if rotten < 2 {
		t.Fatalf("%d shards are rotten", rotten)
	}
	task := b.ended(b.StartScrub(t.Context(), httpapi.Start{}, b.repo, 0))
	if task.State != catalog.Succeeded || task.Result.Repaired.Shards != rotten || task.Result.Repaired.Damaged != 0 {
		t.Errorf("scrub = %s, %+v, %+v, want %d shards repaired", task.State, task.Error, task.Result, rotten)
	}
	if task = b.ended(b.StartScrub(t.Context(), httpapi.Start{}, b.repo, 0)); task.Result.Repaired.Shards != 0 {
		t.Errorf("the second scrub repaired %+v", task.Result.Repaired)
	}
	if task := b.sweep(httpapi.SweepRequest{}); task.State != catalog.Succeeded || b.point(point.ID).VerifyResult != catalog.VerifyGood {
		t.Errorf("verify = %s, %+v", task.State, task.Error)
	}
}

func TestSetGrows(t *testing.T) {
	b := newSetBench(t)
	first := b.backup()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	if _, err := b.GrowRepository(t.Context(), b.repo, b.disks("more", 5), false); kindOf(err) != "invalid" {
		t.Errorf("growing by 5: %v, want invalid", err)
	}
	info, err := b.GrowRepository(t.Context(), b.repo, b.disks("more", 6), false)
	if err != nil || info.Set.Groups != 2 || len(info.Set.Members) != 12 || len(info.Members) != 12 || info.Status != catalog.HealthOK {
		t.Fatalf("grown = %+v, %v", info.Set, err)
	}
	if _, err := b.GrowRepository(t.Context(), b.repo, b.disks("more", 6), false); kindOf(err) != "exists" {
		t.Errorf("growing by what is in it: %v, want exists", err)
	}
	b.restart(func() {})
	if info := b.info(); info.Status != catalog.HealthOK || info.Set.Groups != 2 || len(info.Members) != 12 {
		t.Errorf("after a restart: %s, %+v", info.Status, info.LastError)
	}
	b.write("disk0", 1<<20, 0)
	b.restoresTo(first.ID, "old", disk0, disk1)
	b.restoresTo(b.backup().ID, "new", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}

// The manager was killed after the catalog knew of a new member and before the set did.
func TestSetIsChangedAgainAfterAKill(t *testing.T) {
	b := newSetBench(t)
	point := b.backup()
	grown := b.disks("more", 6)
	lost := b.member("disk2")
	fresh := filepath.Join(b.root, "fresh")
	_, err := b.catalog.UpdateRepository(t.Context(), b.repo, func(r *catalog.Repository) {
		r.Members = append(r.Members, rowMembers(grown)...)
		for i := range r.Members {
			if r.Members[i].ID == lost.ID {
				r.Members[i] = catalog.RepositoryMember{Path: fresh}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	b.restart(func() {})
	if info := b.info(); info.Set == nil || info.Set.CanLose != 1 || info.Set.Groups != 1 {
		t.Fatalf("after the kill: %s, %+v, %+v", info.Status, info.LastError, info.Set)
	}
	if task := b.ended(b.StartRebuild(t.Context(), httpapi.Start{}, b.repo, lost.ID, fresh)); task.State != catalog.Succeeded {
		t.Fatalf("rebuild = %s, %+v", task.State, task.Error)
	}
	if _, err := b.GrowRepository(t.Context(), b.repo, grown, false); err != nil {
		t.Fatal(err)
	}
	b.restart(func() {})
	info := b.info()
	if info.Status != catalog.HealthOK || info.Set.Groups != 2 || info.Set.CanLose != 2 || len(info.Members) != 12 {
		t.Errorf("in the end: %s, %+v, %+v, %+v", info.Status, info.LastError, info.Set, info.Members)
	}
	for _, m := range info.Members {
		if m.ID == "" || m.ID == lost.ID {
			t.Errorf("the catalog has member %+v", m)
		}
	}
	b.restoresTo(point.ID, "copy", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}

func TestSetIsAttachedByItsPaths(t *testing.T) {
	b := newSetBench(t)
	point := b.backup()
	if _, err := b.DetachRepository(t.Context(), b.repo); err != nil {
		t.Fatal(err)
	}
	b.rename("disk5", "away5")
	members := b.disks("disk", 6)
	members[0], members[3] = members[3], members[0]
	repo, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "again", Attach: true, Set: &httpapi.NewSet{Members: members}})
	if err != nil || repo.Usage.RestorePoints != 1 || repo.Set.CanLose != 1 {
		t.Fatalf("attached = %+v, %v", repo, err)
	}
	b.repo = repo.ID
	// The path of the member that is away is that of nobody known; it is given up for the new one.
	var lost string
	for _, m := range repo.Set.Members {
		if m.State == erasure.Missing {
			lost = m.ID
		}
	}
	task := b.ended(b.StartRebuild(t.Context(), httpapi.Start{}, b.repo, lost, filepath.Join(b.root, "fresh")))
	if task.State != catalog.Succeeded {
		t.Fatalf("rebuild = %s, %+v", task.State, task.Error)
	}
	b.restart(func() {})
	if info := b.info(); info.Status != catalog.HealthOK || len(info.Members) != 6 {
		t.Errorf("repository = %s, %+v, %+v", info.Status, info.LastError, info.Members)
	}
	b.restoresTo(point.ID, "copy", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))
}

func TestRefusedSets(t *testing.T) {
	b := newBench(t)
	full := b.disks("full", 2)
	if err := os.MkdirAll(filepath.Join(full[0].Path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	one := b.disks("one", 3)
	one[0].Domain, one[1].Domain = "host", "host"
	mirror := erasure.Layout{Data: 1, Parity: 1}
	tests := map[string]struct {
		set  httpapi.NewSet
		want string
	}{
		"not empty":       {httpapi.NewSet{Layout: mirror, Members: full}, "exists"},
		"too few members": {httpapi.NewSet{Layout: mirror, Members: b.disks("few", 1)}, "invalid"},
		"one domain":      {httpapi.NewSet{Layout: erasure.Layout{Data: 2, Parity: 1}, Members: one}, "invalid"},
		"same twice":      {httpapi.NewSet{Layout: mirror, Members: append(b.disks("same", 1), b.disks("same", 1)...)}, "invalid"},
	}
	for name, tt := range tests {
		_, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "set", Set: &tt.set})
		if kindOf(err) != tt.want {
			t.Errorf("%s: %v, want %s", name, err, tt.want)
		}
		for _, m := range tt.set.Members {
			if _, err := os.Stat(m.Path); m.Path != full[0].Path && !os.IsNotExist(err) {
				t.Errorf("%s: %s was left", name, m.Path)
			}
		}
	}
	force := httpapi.NewSet{Layout: erasure.Layout{Data: 2, Parity: 1}, Members: one, Force: true}
	if _, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "set", Set: &force}); err != nil {
		t.Errorf("by force: %v", err)
	}
	if _, err := b.StartScrub(t.Context(), httpapi.Start{}, b.repo, 0); kindOf(err) != "unsupported" {
		t.Errorf("scrub of a directory: %v, want unsupported", err)
	}
	if _, err := b.GrowRepository(t.Context(), b.repo, full, false); kindOf(err) != "unsupported" {
		t.Errorf("growing a directory: %v, want unsupported", err)
	}
}
