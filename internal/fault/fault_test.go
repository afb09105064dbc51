package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestKindOf(t *testing.T) {
	tests := []struct {
		name string
		err  error
		want Kind
	}{
		{"plain", errors.New("x"), Internal},
		{"own", New(Conflict, "start", "vm", "busy"), Conflict},
		{"wrapped own", fmt.Errorf("run: %w", New(Denied, "login", "", "no")), Denied},
		{"outermost wins", Wrap(Transient, "a", "b", New(Corrupt, "c", "d", "e")), Transient},
		{"context keeps kind", Context("a", "b", New(Corrupt, "c", "d", "e")), Corrupt},
		{"canceled", fmt.Errorf("x: %w", context.Canceled), Canceled},
		{"disk full", fmt.Errorf("x: %w", syscall.ENOSPC), Transient},
		{"read-only file system", fmt.Errorf("x: %w", syscall.EROFS), Conflict},
		{"unsupported", errors.ErrUnsupported, Unsupported},
		{"not found", fs.ErrNotExist, NotFound},
		{"inside a join", errors.Join(errors.New("x"), New(NotFound, "find", "y", "gone")), NotFound},
	}
	for _, tt := range tests {
		if got := KindOf(tt.err); got != tt.want {
			t.Errorf("%s: KindOf = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestKindNamed(t *testing.T) {
	for k := Internal; k <= Canceled; k++ {
		if got, ok := KindNamed(k.String()); got != k || !ok {
			t.Errorf("KindNamed(%q) = %v, %v", k.String(), got, ok)
		}
	}
	if got, ok := KindNamed("else"); got != Internal || ok {
		t.Errorf("KindNamed of no kind = %v, %v, want internal, false", got, ok)
	}
}

func TestUnsupportedMatchesStandardSentinel(t *testing.T) {
	err := fmt.Errorf("x: %w", New(Unsupported, "freeze", "vm1", "not here"))
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v does not match errors.ErrUnsupported", err)
	}
	if errors.Is(New(Invalid, "a", "b", "c"), errors.ErrUnsupported) {
		t.Error("an Invalid error matches errors.ErrUnsupported")
	}
}

func TestExplanationIsTheInnermost(t *testing.T) {
	inner := New(Transient, "write pack", "p1", "no space").Explain("inner meaning", "inner advice")
	err := fmt.Errorf("backup: %w", Context("run", "r1", inner).Explain("outer meaning", "outer advice"))
	meaning, advice := Explanation(err)
	if meaning != "inner meaning" || advice != "inner advice" {
		t.Errorf("Explanation = %q, %q", meaning, advice)
	}
}

func TestErrorText(t *testing.T) {
	err := New(Invalid, "parse", "file x", "line %d", 3)
	if got, want := err.Error(), "parse file x: line 3"; got != want {
		t.Errorf("Error() = %q, want %q", got, want)
	}
	if got, want := Context("parse", "file x", err).Error(), err.Error(); got != want {
		t.Errorf("said again: %q, want %q", got, want)
	}
	if got, want := Context("parse", "file", err).Error(), "parse file: parse file x: line 3"; got != want {
		t.Errorf("of another: %q, want %q", got, want)
	}
}
