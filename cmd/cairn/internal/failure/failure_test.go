package failure_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestCodeOf(t *testing.T) {
	tests := []struct {
		err  error
		want failure.Code
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{fault.New(fault.Internal, "", "", "x"), 1},
		{fault.New(fault.Corrupt, "", "", "x"), 1},
		{fault.New(fault.Transient, "", "", "x"), 1},
		{fault.New(fault.Unsupported, "", "", "x"), 1},
		{fault.New(fault.Invalid, "", "", "x"), 2},
		{failure.UsageError("do so", "x"), 2},
		{fmt.Errorf("more: %w", failure.Ended{Code: failure.Warning}), 3},
		{fault.New(fault.Denied, "", "", "x"), 4},
		{fs.ErrPermission, 4},
		{fault.New(fault.NotFound, "", "", "x"), 5},
		{fault.New(fault.Exists, "", "", "x"), 6},
		{fault.New(fault.Conflict, "", "", "x"), 6},
		{context.Canceled, 130},
	}
	for _, tt := range tests {
		if got := failure.CodeOf(tt.err); got != tt.want {
			t.Errorf("%v: got %d, want %d", tt.err, got, tt.want)
		}
	}
}

func TestPrint(t *testing.T) {
	tests := []struct {
		name   string
		err    error
		colour bool
		want   string
	}{
		{"nothing", nil, false, ""},
		{"said already", failure.Ended{Code: failure.Failed}, false, ""},
		{"plain", errors.New("disk\x1b[2J full"), false, "Error: disk\ufffd[2J full\n"},
		{"all three", fault.New(fault.Transient, "write", "a", "full").Explain("It stops.", "Make room."), false, "Error: write a: full\n  What it means: It stops.\n  What to do:    Make room.\n"},
		{"many lines", errors.New("one\ntwo\n"), true, "\x1b[1;31mError:\x1b[0m one\n  two\n"},
	}
	for _, tt := range tests {
		var b bytes.Buffer
		failure.Print(&b, tt.err, tt.colour)
		if b.String() != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, b.String(), tt.want)
		}
	}
}
