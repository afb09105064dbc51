package nbd

import (
	"errors"
	"fmt"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Errors that callers branch on.
var (
	// ErrConnectionLost: the connection broke; what became of the requests in flight is unknown. A new Dial may work.
	ErrConnectionLost = errors.New("connection lost")
	// ErrProtocol: the server broke the protocol; its connection was closed and nothing of the reply was used.
	ErrProtocol = errors.New("the server broke the NBD protocol")
	// ErrClosed: the client was closed here.
	ErrClosed = errors.New("the NBD client is closed")
)

// Errno is an error number of the protocol. They are Linux's, whatever the server runs on.
type Errno uint32

// The error numbers of the protocol.
const (
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

var errnoTexts = map[Errno]string{
	EPERM: "operation not permitted", EIO: "input/output error", ENOMEM: "out of memory", EINVAL: "invalid argument",
	ENOSPC: "no space left", EOVERFLOW: "request too large", ENOTSUP: "not supported", ESHUTDOWN: "server is shutting down",
}

// Error returns the usual words for the number.
func (e Errno) Error() string {
	if s, ok := errnoTexts[e]; ok {
		return s
	}
	return fmt.Sprintf("NBD error %d", uint32(e))
}

// Kind says what sort of failure the number means.
func (e Errno) Kind() fault.Kind {
	switch e {
	case EPERM:
		return fault.Denied
	case EINVAL, EOVERFLOW:
		return fault.Invalid
	case ENOTSUP:
		return fault.Unsupported
	}
	return fault.Transient // EIO, ENOMEM, ENOSPC, ESHUTDOWN and numbers the specification tells clients to treat as EIO
}

// explain puts an errno into words for an admin.
func (e Errno) explain(f *fault.Error) *fault.Error {
	switch e {
	case EIO:
		return f.Explain("The platform could not read or write this part of the disk.",
			"Look for storage errors in the host's log, then start the task again.")
	case ENOSPC:
		return f.Explain("The storage under the disk is full.", "Free space on the datastore, then start the task again.")
	case EPERM:
		return f.Explain("The server does not allow this on the export.", "Check whether the export is read-only.")
	case ESHUTDOWN:
		return f.Explain("The server that exports the disk is being stopped.", "Start the task again.")
	}
	return f
}

// protocolError describes a broken rule of the protocol.
func protocolError(format string, args ...any) error {
	e := fault.Wrap(fault.Internal, "read NBD reply", "", fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...)))
	return e.Explain("The server that exports the disk sent an answer the protocol does not allow, so none of it was used.",
		"Check that the address belongs to the hypervisor and nothing on the way changes the data.")
}
