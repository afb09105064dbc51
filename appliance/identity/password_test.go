package identity

import (
	"context"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
)

func TestPasswords(t *testing.T) {
	h := newHasher(1)
	stored, err := h.hash(t.Context(), password)
	check(t, err)
	again, err := h.hash(t.Context(), password)
	check(t, err)
	if stored == again || strings.Contains(stored, password) {
		t.Errorf("hashes %q and %q", stored, again)
	}
	tests := []struct {
		name, stored, password string
		want                   bool
	}{
		{"right", stored, password, true},
		{"wrong", stored, password + "x", false},
		{"empty", stored, "", false},
		{"no user", "", password, false},
		{"no user, no password", "", "", false},
		{"very long", stored, strings.Repeat("x", 5*maxPassword), false},
	}
	for _, tt := range tests {
		if got, err := h.verify(t.Context(), tt.stored, tt.password); got != tt.want || err != nil {
			t.Errorf("%s: %v, %v", tt.name, got, err)
		}
	}
}

func TestPasswordLength(t *testing.T) {
	h := newHasher(1)
	for password, ok := range map[string]bool{
		strings.Repeat("x", minPassword-1): false, strings.Repeat("é", minPassword): true,
		strings.Repeat("x", maxPassword): true, strings.Repeat("x", maxPassword+1): false,
	} {
		_, err := h.hash(t.Context(), password)
		if (err == nil) != ok || (err != nil && fault.KindOf(err) != fault.Invalid) {
			t.Errorf("%d bytes: %v", len(password), err)
		}
	}
}

// TestHashesThatWereTamperedWith must not make us spend memory or panic.
func TestHashesThatWereTamperedWith(t *testing.T) {
	h := newHasher(1)
	good, err := h.hash(t.Context(), password)
	check(t, err)
	for _, stored := range []string{
		"x", "$", "$argon2i$" + good[10:], strings.Replace(good, "v=19", "v=16", 1), strings.Replace(good, "m=19456", "m=4294967295", 1),
		strings.Replace(good, "m=19456", "m=0", 1), strings.Replace(good, "t=2", "t=0", 1), strings.Replace(good, "t=2", "t=1000000", 1),
		strings.Replace(good, "p=1", "p=0", 1), strings.Replace(good, "p=1", "p=300", 1), good[:len(good)-4], good + "A", good + "$",
		"$argon2id$v=19$m=19456,t=2,p=1$$",
	} {
		ok, err := h.verify(t.Context(), stored, password)
		if ok || fault.KindOf(err) != fault.Corrupt {
			t.Errorf("%q: %v, %v", stored, ok, err)
		}
	}
}

// TestParametersAreThoseOfTheHash: hashes made with other parameters than today's stay good.
func TestParametersAreThoseOfTheHash(t *testing.T) {
	h := newHasher(1)
	old := present
	present = argonParams{memoryKiB: 64, rounds: 1, lanes: 2}
	stored, err := h.hash(t.Context(), password)
	present = old
	check(t, err)
	if ok, err := h.verify(t.Context(), stored, password); !ok || err != nil {
		t.Errorf("verify = %v, %v", ok, err)
	}
}

func TestQueueOfPasswordsIsBounded(t *testing.T) {
	h := newHasher(1)
	check(t, h.enter(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	for range queuePerSlot - 1 {
		go func() { errs <- h.enter(ctx) }()
	}
	for len(h.queue) < queuePerSlot { // until all of them wait; each waits until it is cancelled
		select {
		case err := <-errs:
			t.Fatalf("one did not wait: %v", err)
		default:
		}
	}
	if err := h.enter(t.Context()); fault.KindOf(err) != fault.Transient {
		t.Errorf("one too many: %v", err)
	}
	cancel()
	for range queuePerSlot - 1 {
		if err := <-errs; fault.KindOf(err) != fault.Transient {
			t.Errorf("cancelled while waiting: %v", err)
		}
	}
	h.leave()
	check(t, h.enter(t.Context()))
	h.leave()
}
