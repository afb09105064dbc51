package mover

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/cairn-backup/cairn/internal/fault"
)

// codesOf says which code a kind travels under, for who reads the protocol with other tools; the kind itself is in the
// Fault that goes with it.
var codesOf = map[fault.Kind]codes.Code{
	fault.Internal: codes.Internal, fault.Invalid: codes.InvalidArgument, fault.NotFound: codes.NotFound,
	fault.Exists: codes.AlreadyExists, fault.Conflict: codes.FailedPrecondition, fault.Denied: codes.PermissionDenied,
	fault.Unsupported: codes.Unimplemented, fault.Transient: codes.Unavailable, fault.Corrupt: codes.DataLoss,
	fault.Canceled: codes.Canceled,
}

// FaultOf puts an error into words that can be sent.
func FaultOf(err error) *Fault {
	meaning, advice := fault.Explanation(err)
	return &Fault{Kind: fault.KindOf(err).String(), Message: err.Error(), Meaning: meaning, Advice: advice}
}

// Err is the error that a Fault was made of; a kind that is not known is Internal.
func (x *Fault) Err() error {
	kind, _ := fault.KindNamed(x.GetKind())
	return &fault.Error{Kind: kind, Err: errors.New(x.GetMessage()), Meaning: x.GetMeaning(), Advice: x.GetAdvice()}
}

// Status makes of an error what a gRPC handler returns.
func Status(err error) error {
	if err == nil {
		return nil
	}
	st, detailErr := status.New(codesOf[fault.KindOf(err)], err.Error()).WithDetails(FaultOf(err))
	if detailErr != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return st.Err()
}

// FromStatus gives an error of a gRPC call the kind and the words it was sent with. What gRPC itself says of a broken
// connection is Transient.
func FromStatus(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range st.Details() {
		if f, ok := d.(*Fault); ok {
			return f.Err()
		}
	}
	return fault.Wrap(kindOf(st.Code()), "", "", err)
}

func kindOf(code codes.Code) fault.Kind {
	if code == codes.DeadlineExceeded || code == codes.ResourceExhausted {
		return fault.Transient
	}
	for kind, c := range codesOf {
		if c == code {
			return kind
		}
	}
	return fault.Internal
}
