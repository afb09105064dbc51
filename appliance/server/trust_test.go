package server

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
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

// mirror makes a mirror and a backup in it, and returns the backup.
func (b *bench) mirror() catalog.RestorePoint {
	b.t.Helper()
	repo, err := b.AddRepository(b.t.Context(), httpapi.NewRepository{Name: "mirror", Set: &httpapi.NewSet{
		Layout: erasure.Layout{Data: 1, Parity: 1}, Members: b.disks("disk", 2),
	}})
	if err != nil {
		b.t.Fatal(err)
	}
	b.repo = repo.ID
	return b.backup()
}

// trusts lists what the audit log has of words about members.
func (b *bench) trusts() (said []catalog.AuditEntry) {
	b.t.Helper()
	log, err := b.catalog.AuditLog(b.t.Context(), 0, 100)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range log {
		if e.Action == "repository.trust" {
			said = append(said, e)
		}
	}
	return said
}

// A half of a mirror was away while the other was used, and is there without it: only the catalog can know that.
func TestHalfThatWasLeftBehindIsUsedOnAWord(t *testing.T) {
	b := newBench(t)
	both := b.mirror()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	b.restart(func() { b.rename("disk1", "away") })
	alone := b.backup()
	b.restart(func() { b.rename("away", "disk1"); b.rename("disk0", "lost") })

	info := b.info()
	if info.Status != catalog.HealthProblem || info.LastError == nil || !strings.Contains(info.LastError.Advice, "cairn repository trust mirror ") {
		t.Fatalf("the half that was left behind is %s, %+v", info.Status, info.LastError)
	}
	if p, err := b.catalog.RestorePoint(t.Context(), alone.ID); err != nil {
		t.Errorf("the backup that is on the other half is forgotten: %+v, %v", p, err)
	}
	info, err := b.TrustMembers(t.Context(), fleet.Who{User: "ada"}, b.repo, []string{filepath.Join(b.root, "disk1")})
	if err != nil || info.Usage == nil || info.Usage.RestorePoints != 1 {
		t.Fatalf("trusted: %+v, %+v, %v", info.LastError, info.Usage, err)
	}
	b.restoresTo(both.ID, "old", disk0, disk1)
	b.restart(func() { b.rename("disk1", "away"); b.rename("lost", "disk0") })
	if info := b.info(); info.Status != catalog.HealthProblem || info.LastError == nil {
		t.Errorf("the half that was given up is %s", info.Status)
	}
	b.restart(func() { b.rename("away", "disk1") })
	if info := b.info(); info.Usage == nil || info.Usage.RestorePoints != 2 {
		t.Errorf("both halves: %+v, %+v", info.Usage, info.LastError)
	}
}

// A set that cannot answer for what is in it is attached on an admin's word.
func TestMirrorIsAttachedOnAWord(t *testing.T) {
	b := newBench(t)
	both := b.mirror()
	disk0, disk1 := b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1")
	b.restart(func() { b.rename("disk1", "away") })
	b.backup()
	b.restart(func() { b.rename("away", "disk1"); b.together(); b.rename("disk0", "lost") })
	if _, err := b.DetachRepository(t.Context(), b.repo); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(b.root, "disk1")
	n := httpapi.NewRepository{Name: "mirror", Attach: true, By: fleet.Who{User: "ada"}, Set: &httpapi.NewSet{Members: []httpapi.NewMember{{Path: half}}}}
	_, err := b.AddRepository(t.Context(), n)
	if _, advice := fault.Explanation(err); kindOf(err) != "transient" || !strings.Contains(advice, "cairn repository create mirror PATH... --attach --trust ") {
		t.Fatalf("attached without a word: %v; %s", err, advice)
	}
	n.Set.Trust = []string{"nobody"}
	if _, err := b.AddRepository(t.Context(), n); kindOf(err) != "invalid" {
		t.Errorf("trust in nobody: %v, want invalid", err)
	}
	n.Set.Trust = []string{half}
	repo, err := b.AddRepository(t.Context(), n)
	if err != nil || repo.Usage == nil || repo.Usage.RestorePoints != 1 {
		t.Fatalf("attached: %+v, %v", repo, err)
	}
	b.repo = repo.ID
	b.restoresTo(both.ID, "old", disk0, disk1)
	said := b.trusts()
	if len(said) != 3 || said[0].Refused || !said[1].Refused || said[0].Actor != "ada" || !strings.Contains(said[0].Detail, half) {
		t.Errorf("audit log = %+v", said)
	}
}

// A half of a mirror was away for a backup and came back; before it was made whole the other was lost. It is refused,
// with the command that lets it be used, and that does.
func TestMirrorIsUsedOnAWord(t *testing.T) {
	b := newBench(t)
	both := b.mirror()
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
	info, err := b.TrustMembers(t.Context(), who, b.repo, strings.Fields(command))
	if err != nil || info.Set == nil || info.Usage == nil || info.Usage.RestorePoints != 1 {
		t.Fatalf("after %q: %+v, %+v, %v", command, info.LastError, info.Usage, err)
	}
	b.restoresTo(both.ID, "old", disk0, disk1)
	if p, err := b.catalog.RestorePoint(t.Context(), alone.ID); err == nil {
		t.Errorf("the backup that only the lost half had is still listed: %+v", p)
	}
	b.restart(func() {}) // the word was for once; what came of it stays
	b.restoresTo(b.backup().ID, "new", b.content(b.vm.ID, "disk0"), b.content(b.vm.ID, "disk1"))

	said := b.trusts()
	if len(said) != 5 || said[0].Refused || !said[1].Refused || said[0].Actor != "ada" || said[0].Subject != "mirror" || !strings.Contains(said[0].Detail, strings.TrimSpace(command)) {
		t.Errorf("audit log = %+v", said)
	}
}
