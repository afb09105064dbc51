package remote

import (
	"context"
	"errors"
	"io"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
)

var codeOf = map[fault.Kind]codes.Code{
	fault.Internal: codes.Internal, fault.Invalid: codes.InvalidArgument, fault.NotFound: codes.NotFound, fault.Exists: codes.AlreadyExists,
	fault.Conflict: codes.FailedPrecondition, fault.Denied: codes.PermissionDenied, fault.Unsupported: codes.Unimplemented,
	fault.Transient: codes.Unavailable, fault.Corrupt: codes.DataLoss, fault.Canceled: codes.Canceled,
}

// judged is an error of the Authorizer, which knows of it.
type judged struct{ error }

// Unwrap is for errors.As.
func (j judged) Unwrap() error { return j.error }

// tell tells of what a good ticket does not allow, and of what no mover of ours would ask.
func (s *Server) tell(ctx context.Context, call string, err error) {
	if s.o.Refused == nil || err == nil {
		return
	}
	if kind := fault.KindOf(err); kind != fault.Denied && kind != fault.Invalid {
		return
	}
	if _, known := errors.AsType[judged](err); known {
		return
	}
	ticket, _, noTicket := ticketOf(ctx)
	if noTicket != nil {
		ticket = ""
	}
	s.o.Refused(ctx, ticket, call, err)
}

// toWire makes an error of a call what goes over the wire: kind and words. What is Internal stays in the log.
func (s *Server) toWire(ctx context.Context, call string, err error) error {
	s.tell(ctx, call, err)
	if err == nil || ctx.Err() != nil {
		return err
	}
	kind := fault.KindOf(err)
	f := &mover.Fault{Kind: kind.String(), Message: err.Error()}
	f.Meaning, f.Advice = fault.Explanation(err)
	if kind == fault.Internal {
		s.o.Log.Error("call of a mover failed", "call", call, "err", err)
		f.Message = "the repository's owner failed; its log says why"
	} else {
		s.o.Log.Debug("call of a mover was refused", "call", call, "err", err)
	}
	st, detailErr := status.New(codeOf[kind], f.Message).WithDetails(f)
	if detailErr != nil {
		return status.Error(codeOf[kind], f.Message)
	}
	return st.Err()
}

// fromWire is the inverse of toWire. What the connection did, rather than the other side, is Transient.
func fromWire(op string, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	if _, ours := errors.AsType[*fault.Error](err); ours {
		return err
	}
	st := status.Convert(err)
	for _, d := range st.Details() {
		if f, ok := d.(*mover.Fault); ok {
			kind, _ := fault.KindNamed(f.GetKind())
			if strings.HasPrefix(f.GetMessage(), op) {
				op = ""
			}
			out := fault.New(kind, op, "", "%s", f.GetMessage())
			if f.GetMeaning() != "" || f.GetAdvice() != "" {
				return out.Explain(f.GetMeaning(), f.GetAdvice())
			}
			return out
		}
	}
	switch st.Code() {
	case codes.Canceled:
		return fault.Wrap(fault.Canceled, op, "", err)
	case codes.Unavailable, codes.DeadlineExceeded, codes.Aborted, codes.ResourceExhausted, codes.Unknown, codes.Internal:
		return fault.Wrap(fault.Transient, op, "", err)
	case codes.PermissionDenied, codes.Unauthenticated:
		return fault.Wrap(fault.Denied, op, "", err)
	case codes.Unimplemented:
		return fault.Wrap(fault.Unsupported, op, "", err)
	}
	return fault.Wrap(fault.Internal, op, "", err)
}
