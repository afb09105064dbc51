package identity

import (
	"context"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// TestLoginsAreAudited: who got in, who did not, and who was slowed down; a name that is nobody's may be a password, and is not written.
func TestLoginsAreAudited(t *testing.T) {
	s, _ := open(t)
	var log []catalog.AuditEntry
	s.audit = func(_ context.Context, e catalog.AuditEntry) { log = append(log, e) }
	last := func(action, actor, subject, detail string, refused bool) {
		t.Helper()
		if len(log) == 0 {
			t.Fatalf("%s: the audit log is empty", action)
		}
		e := log[len(log)-1]
		if e.Action != action || e.Actor != actor || e.Subject != subject || e.Source != source || e.Refused != refused || !strings.Contains(e.Detail, detail) {
			t.Errorf("the audit log has %+v, want %s by %q of %q, refused %v for %q", e, action, actor, subject, refused, detail)
		}
	}
	token, err := s.PrepareSetUp(t.Context())
	check(t, err)
	if _, err := s.SetUp(t.Context(), source, "another", "admin", password); err == nil {
		t.Error("set up by a wrong token")
	}
	last("setup", "", "", "", true)
	_, err = s.SetUp(t.Context(), source, token, "admin", password)
	check(t, err)
	last("setup", "admin", "admin", "", false)
	_, err = s.Login(t.Context(), source, "admin", password)
	check(t, err)
	last("login", "admin", "admin", "", false)
	for range freePerSource {
		if _, err := s.Login(t.Context(), source, "admin", "wrong"); err == nil {
			t.Error("logged in with a wrong password")
		}
		last("login", "", "admin", ErrCredentials.Error(), true)
	}
	if _, err := s.Login(t.Context(), source, "admin", password); err == nil {
		t.Error("not slowed down")
	}
	last("login", "", "admin", "too many failed logins", true)
	if _, err := s.Login(t.Context(), source, "hunter22", "x"); err == nil {
		t.Error("nobody logged in")
	}
	last("login", "", "", "", true)
	for _, e := range log {
		if strings.Contains(e.Actor+e.Subject+e.Detail, "hunter22") {
			t.Errorf("the audit log has a name that is nobody's: %+v", e)
		}
	}
}
