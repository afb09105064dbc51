package server

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/store/erasure"
)

// together lets an owner of a mirror meet both halves, as any task does.
func (b *bench) together() {
	b.t.Helper()
	s, err := erasure.OpenPaths(context.Background(), erasure.Options{}, filepath.Join(b.root, "disk0"), filepath.Join(b.root, "disk1"))
	if err != nil {
		b.t.Fatal(err)
	}
	release, err := s.Acquire(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	if err := release(); err != nil {
		b.t.Error(err)
	}
	if err := s.Close(); err != nil {
		b.t.Error(err)
	}
}

// A half of a mirror was away for a backup and came back; before it was made whole the other was lost. It is refused,
// with the command that lets it be used, and that does.
func TestMirrorIsUsedOnAWord(t *testing.T) {
	b := newBench(t)
	repo, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "mirror", Set: &httpapi.NewSet{
		Layout: erasure.Layout{Data: 1, Parity: 1}, Members: b.disks("disk", 2),
	}})
	if err != nil {
		t.Fatal(err)
	}
	b.repo = repo.ID
	both := b.backup()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	lost, lasting := b.member("disk0").ID, b.member("disk1").ID
	who := fleet.Who{User: "ada", Source: "192.0.2.7"}
	if _, err := b.TrustMembers(t.Context(), who, b.repo, []string{lasting}); kindOf(err) != "conflict" {
		t.Errorf("a word that is not needed: %v, want conflict", err)
	}
	b.restart(func() { b.rename("disk1", "away") })
	alone := b.backup()
	b.restart(func() { b.rename("away", "disk1"); b.together(); b.rename("disk0", "lost") })

	info := b.info()
	if info.Status != catalog.HealthProblem || info.LastError == nil {
		t.Fatalf("the half that lacks a backup is %s, %+v", info.Status, info.LastError)
	}
	_, command, found := strings.Cut(info.LastError.Advice, "cairn repository trust mirror ")
	if !found {
		t.Fatalf("the advice has no command: %+v", info.LastError)
	}
	if _, err := b.TrustMembers(t.Context(), who, b.repo, []string{lost}); kindOf(err) != "transient" {
		t.Errorf("trust in a member that is lost: %v, want transient", err)
	}
	info, err = b.TrustMembers(t.Context(), who, b.repo, strings.Fields(command))
	if err != nil || info.Set == nil || info.Usage == nil || info.Usage.RestorePoints != 1 {
		t.Fatalf("after %q: %+v, %+v, %v", command, info.LastError, info.Usage, err)
	}
	b.restoresTo(both.ID, "old", disk0, disk1)
	if p, err := b.catalog.RestorePoint(t.Context(), alone.ID); err == nil {
		t.Errorf("the backup that only the lost half had is still listed: %+v", p)
	}
	b.restart(func() {}) // the word was for once; what came of it stays
	b.restoresTo(b.backup().ID, "new", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))

	var said []catalog.AuditEntry
	log, err := b.catalog.AuditLog(t.Context(), 0, 100)
	for _, e := range log {
		if e.Action == "repository.trust" {
			said = append(said, e)
		}
	}
	if err != nil || len(said) != 5 || said[0].Refused || !said[1].Refused || said[0].Actor != "ada" || said[0].Subject != "mirror" || !strings.Contains(said[0].Detail, strings.TrimSpace(command)) {
		t.Errorf("audit log = %+v, %v", said, err)
	}
}
