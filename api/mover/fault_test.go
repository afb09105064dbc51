package mover_test

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestErrorsKeepTheirKindAndWords(t *testing.T) {
	for kind := fault.Internal; kind <= fault.Canceled; kind++ {
		err := error(fault.New(kind, "do", "it", "no").Explain("meaning", "advice"))
		back := mover.FromStatus(mover.Status(err))
		meaning, advice := fault.Explanation(back)
		if fault.KindOf(back) != kind || back.Error() != err.Error() || meaning != "meaning" || advice != "advice" {
			t.Errorf("%v became %v (%v, %q, %q)", err, back, fault.KindOf(back), meaning, advice)
		}
	}
}

func TestErrorsOfGRPCItself(t *testing.T) {
	tests := map[codes.Code]fault.Kind{
		codes.Unavailable: fault.Transient, codes.DeadlineExceeded: fault.Transient, codes.ResourceExhausted: fault.Transient,
		codes.Unimplemented: fault.Unsupported, codes.Canceled: fault.Canceled, codes.Unknown: fault.Internal,
	}
	for code, want := range tests {
		if got := fault.KindOf(mover.FromStatus(status.Error(code, "x"))); got != want {
			t.Errorf("%v: kind %v, want %v", code, got, want)
		}
	}
	if mover.Status(nil) != nil || mover.FromStatus(nil) != nil {
		t.Error("no error became one")
	}
	plain := errors.New("x")
	if got := mover.FromStatus(plain); !errors.Is(got, plain) {
		t.Errorf("%v", got)
	}
}
