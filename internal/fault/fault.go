// Package fault gives every error of Cairn a kind, a subject and words for the person who reads it.
//
// It is not a logging or stack-trace package. Its one invariant: Kind decides, in one place each, the HTTP
// status and whether something is retried; nothing else in the code branches on error texts.
package fault

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"
)

// Kind says what sort of failure an error is.
type Kind uint8

// The kinds. Internal is the zero value: an error nobody has classified is our own fault.
const (
	Internal    Kind = iota // a bug or an unclassified failure
	Invalid                 // the request is wrong and stays wrong
	NotFound                // what was named is not there
	Exists                  // what was to be made is there already
	Conflict                // the state does not allow it now
	Denied                  // credentials are missing, wrong or too weak
	Unsupported             // this platform, driver or format cannot do it
	Transient               // it may work later: unreachable, full, timed out
	Corrupt                 // stored data is not what was written
	Canceled                // somebody asked for it to stop
)

var kindNames = [...]string{
	"internal", "invalid", "not-found", "exists", "conflict", "denied", "unsupported", "transient", "corrupt", "canceled",
}

// String returns the stable lower-case name used in problem types ("/problems/<name>") and in logs.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "internal"
}

// KindNamed is the reverse of String; ok is false for a name that is none.
func KindNamed(name string) (kind Kind, ok bool) {
	i := slices.Index(kindNames[:], name)
	return Kind(max(0, i)), i >= 0
}

// Retryable reports whether what failed with this kind may succeed later without anybody changing anything.
func (k Kind) Retryable() bool { return k == Transient }

// Error is an error with a kind. Op is what was being done ("open repository"), Subject what it was done to
// (a path, a VM). Meaning and Advice are whole sentences for the admin: what it means and what to do.
type Error struct {
	Op      string
	Subject string
	Kind    Kind
	Err     error
	Meaning string
	Advice  string
}

// Error returns "op subject: cause". A cause that begins with the same words says them already.
func (e *Error) Error() string {
	s := e.Op
	if e.Subject != "" {
		s += " " + e.Subject
	}
	if e.Err == nil {
		return s
	}
	cause := e.Err.Error()
	if s == "" || strings.HasPrefix(cause, s+": ") {
		return cause
	}
	return s + ": " + cause
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes an Unsupported error match errors.ErrUnsupported.
func (e *Error) Is(target error) bool {
	return target == errors.ErrUnsupported && e.Kind == Unsupported
}

// Explain sets what the error means and what to do about it, and returns e.
func (e *Error) Explain(meaning, advice string) *Error {
	e.Meaning, e.Advice = meaning, advice
	return e
}

// New makes an error of a kind from a format.
func New(kind Kind, op, subject, format string, args ...any) *Error {
	return &Error{Op: op, Subject: subject, Kind: kind, Err: fmt.Errorf(format, args...)}
}

// Wrap gives err a kind, an operation and a subject; nil stays nil only in the caller's hands, so do not pass nil.
func Wrap(kind Kind, op, subject string, err error) *Error {
	return &Error{Op: op, Subject: subject, Kind: kind, Err: err}
}

// Context adds an operation and a subject to err and keeps its kind.
func Context(op, subject string, err error) *Error {
	return &Error{Op: op, Subject: subject, Kind: KindOf(err), Err: err}
}

// Named is Context for an operation of which err already says the same, of a subject that is called otherwise there, as a platform calls its
// VMs: the subject is replaced then, and the operation not said twice.
func Named(op, subject, otherwise string, err error) *Error {
	e, ok := errors.AsType[*Error](err)
	if !ok || strings.TrimSpace(e.Op+" "+e.Subject) != op+" "+otherwise || e.Error() != err.Error() {
		return Context(op, subject, err)
	}
	named := *e
	named.Op, named.Subject = op, subject
	return &named
}

// KindOf returns the kind of err: that of the outermost *Error in its chain, or one derived from the standard
// library's own sentinels. A nil error is Internal; do not ask.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Canceled
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.ECONNREFUSED),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Transient
	case errors.Is(err, syscall.EROFS):
		return Conflict
	case errors.Is(err, errors.ErrUnsupported):
		return Unsupported
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrExist):
		return Exists
	case errors.Is(err, fs.ErrPermission):
		return Denied
	}
	return Internal
}

// Explanation returns the innermost meaning and advice found in err's chain: the layer nearest to the cause
// knows best. Both may be empty.
func Explanation(err error) (meaning, advice string) {
	for {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return meaning, advice
		}
		if e.Meaning != "" || e.Advice != "" {
			meaning, advice = e.Meaning, e.Advice
		}
		err = e.Err
	}
}

// Retryable reports whether the kind of err is.
func Retryable(err error) bool { return KindOf(err).Retryable() }
