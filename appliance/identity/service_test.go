package identity

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	source   = "192.0.2.1"
	password = "correct horse battery"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open makes a service over a real catalog.
func open(t *testing.T) (*Service, *catalog.Catalog) {
	t.Helper()
	dir := t.TempDir()
	c, err := catalog.Open(t.Context(), catalog.Options{Path: filepath.Join(dir, "catalog.db"), KeyFile: filepath.Join(dir, "catalog.key")})
	check(t, err)
	t.Cleanup(func() { check(t, c.Close()) })
	return New(Options{Store: c, SetUpFile: filepath.Join(dir, "data", "setup-token"), Log: slog.New(slog.DiscardHandler)}), c
}

// withAdmin makes a service with an administrator and his first token.
func withAdmin(t *testing.T) (*Service, *catalog.Catalog, Issued) {
	t.Helper()
	s, c := open(t)
	token, err := s.PrepareSetUp(t.Context())
	check(t, err)
	issued, err := s.SetUp(t.Context(), source, token, "admin", password)
	check(t, err)
	return s, c, issued
}

func wantKind(t *testing.T, err error, kind fault.Kind, target error) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind || (target != nil && !errors.Is(err, target)) {
		t.Errorf("error %v, want kind %v and %v", err, kind, target)
	}
	if meaning, advice := fault.Explanation(err); err != nil && target != nil && (meaning == "" || advice == "") {
		t.Errorf("%v does not explain itself", err)
	}
}

func TestSetUp(t *testing.T) {
	s, _ := open(t)
	first, err := s.PrepareSetUp(t.Context())
	check(t, err)
	second, err := s.PrepareSetUp(t.Context())
	check(t, err)
	kept, err := os.ReadFile(s.setUpFile)
	check(t, err)
	if info, err := os.Stat(s.setUpFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("set-up file: %v %v", info.Mode(), err)
	}
	if first == second || bytes.Contains(kept, []byte(second)) || len(second) < 43 {
		t.Errorf("tokens %q and %q, kept %q", first, second, kept)
	}
	_, err = s.SetUp(t.Context(), source, first, "admin", password)
	wantKind(t, err, fault.Denied, ErrCredentials)
	_, err = s.SetUp(t.Context(), source, second, "admin", "short")
	wantKind(t, err, fault.Invalid, nil)
	issued, err := s.SetUp(t.Context(), source, second, "admin", password)
	check(t, err)
	if _, err := os.Stat(s.setUpFile); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the set-up token is still there: %v", err)
	}
	_, err = s.SetUp(t.Context(), source, second, "admin", password)
	wantKind(t, err, fault.Exists, ErrSetUpDone)
	if again, err := s.PrepareSetUp(t.Context()); again != "" || err != nil {
		t.Errorf("PrepareSetUp after set-up = %q, %v", again, err)
	}
	caller, err := s.Authenticate(t.Context(), issued.Secret)
	check(t, err)
	if caller.User != "admin" || caller.TokenID != issued.Token.ID {
		t.Errorf("caller %+v", caller)
	}
}

func TestSetUpWithoutAnyTokenIsRefused(t *testing.T) {
	s, _ := open(t)
	for _, token := range []string{"", "x", hashSecret("")} {
		_, err := s.SetUp(t.Context(), source, token, "admin", password)
		wantKind(t, err, fault.Denied, ErrCredentials)
	}
}

// TestSetUpAtOnce: of many at the same time, one wins.
func TestSetUpAtOnce(t *testing.T) {
	s, c := open(t)
	token, err := s.PrepareSetUp(t.Context())
	check(t, err)
	const n = 4
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { _, errs[i] = s.SetUp(context.Background(), source, token, "admin", password) })
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		} else if k := fault.KindOf(err); k != fault.Exists && k != fault.Denied {
			t.Errorf("a loser got %v", err)
		}
	}
	users, err := c.CountUsers(t.Context())
	check(t, err)
	if won != 1 || users != 1 {
		t.Errorf("%d won, %d users", won, users)
	}
}

func TestLogin(t *testing.T) {
	s, c, _ := withAdmin(t)
	issued, err := s.Login(t.Context(), source, "admin", password)
	check(t, err)
	_, err = s.Authenticate(t.Context(), issued.Secret)
	check(t, err)
	user, err := c.UserByName(t.Context(), "admin")
	check(t, err)
	if user.LastLogin == nil || !strings.HasPrefix(user.PasswordHash, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("user %+v", user)
	}
	for _, name := range []string{"admin", "nobody"} {
		_, err = s.Login(t.Context(), source, name, "wrong horse battery")
		wantKind(t, err, fault.Denied, ErrCredentials)
	}
}

func TestTokenIsKeptAsAHash(t *testing.T) {
	s, c, issued := withAdmin(t)
	kept, err := c.TokenByHash(t.Context(), hashSecret(issued.Secret))
	check(t, err)
	if kept.ID != issued.Token.ID || len(kept.Hash) != 64 || strings.Contains(issued.Secret, kept.Hash) {
		t.Errorf("kept %+v", kept)
	}
	if body := strings.TrimPrefix(issued.Secret, TokenPrefix); body == issued.Secret || len(body) != 43 {
		t.Errorf("secret %q", issued.Secret)
	}
	_, err = s.Authenticate(t.Context(), kept.Hash)
	wantKind(t, err, fault.Denied, ErrCredentials)
}

func TestTokenLifetime(t *testing.T) {
	s, _, first := withAdmin(t)
	caller, err := s.Authenticate(t.Context(), first.Secret)
	check(t, err)
	tests := []struct {
		name     string
		lifetime time.Duration
		valid    bool
	}{{"default", 0, true}, {"an hour", time.Hour, true}, {"over", -time.Second, false}}
	for _, tt := range tests {
		issued, err := s.IssueToken(t.Context(), caller, tt.name, "", tt.lifetime)
		check(t, err)
		_, err = s.Authenticate(t.Context(), issued.Secret)
		if tt.valid != (err == nil) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if !tt.valid {
			wantKind(t, err, fault.Denied, ErrCredentials)
		}
	}
}

func TestDeleteTokenBeyondThePage(t *testing.T) {
	s, c, first := withAdmin(t)
	caller, err := s.Authenticate(t.Context(), first.Secret)
	check(t, err)
	expires := time.Now().Add(time.Hour)
	for i := range catalog.MaxLimit {
		check(t, c.CreateToken(t.Context(), &catalog.Token{Hash: hashSecret(string(rune(i))), Name: "x", UserID: caller.UserID, ExpiresAt: &expires}))
	}
	check(t, s.DeleteToken(t.Context(), caller, caller.TokenID)) // the oldest one
	_, err = s.Authenticate(t.Context(), first.Secret)
	wantKind(t, err, fault.Denied, ErrCredentials)
	wantKind(t, s.DeleteToken(t.Context(), caller, caller.TokenID), fault.NotFound, nil)
}

// TestUseIsWrittenSeldom: a token that is used all the time does not make a write of each request.
func TestUseIsWrittenSeldom(t *testing.T) {
	s, c, issued := withAdmin(t)
	_, err := s.Authenticate(t.Context(), issued.Secret)
	check(t, err)
	kept, err := c.TokenByHash(t.Context(), hashSecret(issued.Secret))
	check(t, err)
	if kept.LastUsed == nil {
		t.Fatal("the use was not written")
	}
	first := *kept.LastUsed
	_, err = s.Authenticate(t.Context(), issued.Secret)
	check(t, err)
	kept, err = c.TokenByHash(t.Context(), hashSecret(issued.Secret))
	check(t, err)
	if !kept.LastUsed.Equal(first) {
		t.Error("the second use within a minute was written")
	}
}

func TestParallelTriesAreCounted(t *testing.T) {
	s, _, _ := withAdmin(t)
	const n = 16
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { _, errs[i] = s.Login(context.Background(), source, "admin", "wrong horse battery") })
	}
	wg.Wait()
	tried := 0
	for _, err := range errs {
		if errors.Is(err, ErrCredentials) {
			tried++
		} else if _, ok := errors.AsType[*Throttled](err); !ok {
			t.Errorf("error %v", err)
		}
	}
	if tried != freePerSource {
		t.Errorf("%d passwords were tried, want %d", tried, freePerSource)
	}
}
