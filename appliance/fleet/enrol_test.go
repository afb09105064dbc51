package fleet_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/datamover/control"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestEnrol(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	got, err := m.fleet.Get(t.Context(), "m1")
	check(t, err)
	if got.State != fleet.Online || got.Source != "127.0.0.1" || got.Facts.CPUs == 0 || got.Facts.BootID == "" || got.Slots != 4 {
		t.Errorf("mover %+v", got)
	}
	if life := time.Until(got.CertificateEnds); life > 24*time.Hour || life < 23*time.Hour {
		t.Errorf("the certificate lives %v", life)
	}
	info, err := os.Stat(filepath.Join(v.config.StateDir, "identity.pem"))
	check(t, err)
	dir, err := os.Stat(v.config.StateDir)
	check(t, err)
	if info.Mode().Perm() != 0o600 || dir.Mode().Perm() != 0o700 {
		t.Errorf("modes %v and %v", info.Mode(), dir.Mode())
	}
	if _, err := os.Stat(filepath.Join(v.config.StateDir, "pending.pem")); err == nil {
		t.Error("the key of the enrolment is there twice")
	}
	check(t, v.end())
	// A token is not needed, and not used, any more.
	v.config.Token = ""
	v.start()
	m.log.await("mover connected", 2)
	if a := m.audited("mover.enrol"); len(a) != 1 || a[0].Refused {
		t.Errorf("audit %+v", a)
	}
}

// TestNothingIsSentToAnImpostor: the fingerprint is checked before the token leaves the mover.
func TestNothingIsSentToAnImpostor(t *testing.T) {
	m := newManager(t, fleet.Timing{})
	v := newMover(t, m, m.token(fleet.NewToken{By: "admin"}))
	right := v.config.Fingerprint
	v.config.Fingerprint = strings.Repeat("ab", 32)
	v.start()
	wantFault(t, v.ends(), fault.Denied, "this is not the manager")
	if a := m.audited("mover.enrol"); len(a) != 0 {
		t.Errorf("the manager was asked: %+v", a)
	}
	v.config.Fingerprint = "sha256:" + strings.ToUpper(right)
	v.start()
	m.log.await("mover connected", 1) // so the token was good all the time
}

func TestTokens(t *testing.T) {
	m := newManager(t, fleet.Timing{})
	once := m.token(fleet.NewToken{By: "admin"})
	v := newMover(t, m, once)
	v.start()
	m.log.await("mover connected", 1)
	tests := []struct{ name, token, words string }{
		{"used", once, "it was used already"},
		{"unknown", fleet.TokenPrefix + "x", "it is not known"},
		{"expired", m.token(fleet.NewToken{Life: time.Nanosecond}), "it expired at"},
	}
	for _, tt := range tests {
		w := newMover(t, m, tt.token)
		w.start()
		err := w.ends()
		wantFault(t, err, fault.Denied, tt.words)
		if !errors.Is(err, control.ErrDismissed) {
			t.Errorf("%s: the mover would be started again", tt.name)
		}
		if a := m.audited("mover.enrol"); !a[0].Refused || !strings.Contains(a[0].Detail, tt.words) || a[0].Source != "127.0.0.1" {
			t.Errorf("%s: audit %+v", tt.name, a[0])
		}
	}
	if _, err := os.Stat(filepath.Join(v.config.StateDir, "identity.pem")); err != nil {
		t.Error(err)
	}
	for _, n := range []fleet.NewToken{{Name: "a b"}, {Name: "built-in"}, {Replace: true}, {Life: 8 * 24 * time.Hour}} {
		if _, _, err := m.fleet.IssueToken(t.Context(), n); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%+v: %v", n, err)
		}
	}
	if _, _, err := m.fleet.IssueToken(t.Context(), fleet.NewToken{Name: "m1"}); fault.KindOf(err) != fault.Exists {
		t.Errorf("a token for a name that is taken: %v", err)
	}
}

// TestLostAnswer: a mover that was given a certificate and never got it asks again with the same key.
func TestLostAnswer(t *testing.T) {
	m := newManager(t, fleet.Timing{})
	token := m.token(fleet.NewToken{})
	v := newMover(t, m, token)
	v.start()
	m.log.await("mover connected", 1)
	check(t, v.end())
	// As if the answer had not arrived: the key is the pending one again, the certificate is not there.
	identity := filepath.Join(v.config.StateDir, "identity.pem")
	b, err := os.ReadFile(identity)
	check(t, err)
	key, _ := pem.Decode(b)
	check(t, os.WriteFile(filepath.Join(v.config.StateDir, "pending.pem"), pem.EncodeToMemory(key), 0o600))
	check(t, os.Remove(identity))
	v.start()
	m.log.await("mover connected", 2)
	m.id() // it is one mover
}

// TestOneOfManyEnrols: a token that leaked and is used at once from several places enrols one.
func TestOneOfManyEnrols(t *testing.T) {
	m := newManager(t, fleet.Timing{})
	token := fleet.TokenPrefix + "x"
	check(t, m.catalog.AddJoinToken(t.Context(), &catalog.JoinToken{Hash: "h", ExpiresAt: time.Now().Add(time.Hour)}))
	const n = 8
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			_, errs[i] = m.catalog.EnrolMover(context.Background(), "h", token+string(rune('a'+i)), &catalog.Mover{Name: "m"})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else {
			wantFault(t, err, fault.Denied, "it was used already")
		}
	}
	if won != 1 {
		t.Errorf("%d enrolled", won)
	}
}

func TestReplaceAndNames(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	second := newMover(t, m, m.token(fleet.NewToken{})) // wishes for the same name
	second.start()
	m.log.await("mover connected", 2)
	if _, err := m.fleet.Get(t.Context(), "m1-2"); err != nil {
		t.Error(err)
	}
	old, err := m.fleet.Get(t.Context(), "m1")
	check(t, err)
	third := newMover(t, m, m.token(fleet.NewToken{Name: "m1", Replace: true}))
	third.start()
	wantFault(t, v.ends(), fault.Denied, "enrolled in this one's place")
	m.log.await("mover connected", 3)
	now, err := m.fleet.Get(t.Context(), "m1")
	check(t, err)
	if now.ID == old.ID || now.State != fleet.Online {
		t.Errorf("mover %+v", now)
	}
	v.config.Token = ""
	v.start()
	wantFault(t, v.ends(), fault.Denied, "does not know this mover")
}

func TestRevoke(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	_, err := m.fleet.Revoke(t.Context(), fleet.Who{User: "admin", Source: "192.0.2.1"}, "m1")
	check(t, err)
	for _, words := range []string{"revoked", "was revoked at"} {
		err := v.ends()
		wantFault(t, err, fault.Denied, words)
		if !errors.Is(err, control.ErrDismissed) {
			t.Errorf("%v would have the mover started again", err)
		}
		v.start() // with the certificate it has
	}
	_ = v.ends()
	if a := m.audited("mover.call"); len(a) == 0 || !a[0].Refused || !strings.Contains(a[0].Detail, "revoked") || a[0].Actor != "mover "+m.id() {
		t.Errorf("audit %+v", a)
	}
	if a := m.audited("mover.revoke"); len(a) != 1 || a[0].Actor != "admin" || a[0].Source != "192.0.2.1" {
		t.Errorf("audit %+v", a)
	}
	got, err := m.fleet.Get(t.Context(), "m1")
	check(t, err)
	if got.State != fleet.Revoked {
		t.Errorf("state %v", got.State)
	}
	check(t, m.fleet.Remove(t.Context(), fleet.Who{User: "admin"}, "m1"))
	v.start()
	wantFault(t, v.ends(), fault.Denied, "does not know this mover")
}

func TestRenewal(t *testing.T) {
	t.Parallel() // half of the life is waited for, and the other half has to be enough for a slow machine
	m, v := enrolled(t, fleet.Timing{Certificate: 30 * time.Second})
	before := certificate(t, v)
	v.log.await("certificate renewed", 1)
	m.log.await("mover connected", 2) // a stream that shows the new one
	after := certificate(t, v)
	if !after.NotAfter.After(before.NotAfter) {
		t.Errorf("from %v to %v", before.NotAfter, after.NotAfter)
	}
	if string(after.RawSubjectPublicKeyInfo) == string(before.RawSubjectPublicKeyInfo) {
		t.Error("the key is the old one")
	}
}

func certificate(t *testing.T, v *mover) *x509.Certificate {
	t.Helper()
	rest, err := os.ReadFile(filepath.Join(v.config.StateDir, "identity.pem"))
	check(t, err)
	_, rest = pem.Decode(rest)
	block, _ := pem.Decode(rest)
	c, err := x509.ParseCertificate(block.Bytes)
	check(t, err)
	return c
}

// expire puts a certificate that has ended into the place of the mover's.
func expire(t *testing.T, m *manager, v *mover) {
	t.Helper()
	path := filepath.Join(v.config.StateDir, "identity.pem")
	rest, err := os.ReadFile(path)
	check(t, err)
	key, rest := pem.Decode(rest)
	leaf, rest := pem.Decode(rest)
	good, err := x509.ParseCertificate(leaf.Bytes)
	check(t, err)
	authority, err := identity.OpenAuthority(filepath.Join(m.dir, "tls"), []string{"localhost", pb.ManagerName})
	check(t, err)
	leaf.Bytes, err = authority.IssueMover(good.PublicKey, good.URIs[0], time.Now().Add(-2*time.Second))
	check(t, err)
	check(t, os.WriteFile(path, slices.Concat(pem.EncodeToMemory(key), pem.EncodeToMemory(leaf), rest), 0o600))
}

func TestExpiredCertificate(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	check(t, v.end())
	expire(t, m, v)
	v.config.Token = ""
	v.start()
	err := v.ends()
	wantFault(t, err, fault.Denied, "the certificate ended at")
	if _, advice := fault.Explanation(err); !strings.Contains(advice, "cairn mover token --name NAME --replace") {
		t.Errorf("advice %q", advice)
	}
	v.config.Token = m.token(fleet.NewToken{Name: "m1", Replace: true})
	v.start()
	m.log.await("mover connected", 2)
}
