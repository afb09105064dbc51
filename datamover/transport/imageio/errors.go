package imageiotransport

import (
	"crypto/tls"
	"errors"
	"net/http"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// scrub takes the ticket out of a text that may come from the daemon.
func (l *link) scrub(err error) string {
	return strings.TrimSpace(strings.ReplaceAll(err.Error(), l.ticket, "[ticket]"))
}

// explain turns the error of a request that will not be repeated into one for an admin.
func (l *link) explain(op string, err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return fault.Context(op, l.name, f)
	}
	wrap := func(k fault.Kind, meaning, advice string) error {
		return fault.Wrap(k, op, l.name, errors.New(l.scrub(err))).Explain(meaning, advice)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return wrap(fault.Denied, "The certificate of the oVirt host or engine is not one of the authority that the connection names.",
			"Check the CA for image transfers in the connection's settings, and that the host's name is the one in its certificate.")
	}
	if _, ok := errors.AsType[*dialError](err); ok {
		return wrap(fault.Transient, "The imageio service of the oVirt host, and that of the engine, cannot be reached from the mover.",
			"Check that ports 54322 of the hosts and 54323 of the engine are open for the mover and it can resolve their names, then start the task again.")
	}
	if _, ok := errors.AsType[*lostError](err); ok {
		return wrap(fault.Transient, "The imageio service hung up again and again.", "Check that the host is up and the mover can reach it, then start the task again.")
	}
	s, ok := errors.AsType[*statusError](err)
	switch {
	case !ok:
		return fault.Context(op, l.name, err) // the context's, or our own
	case s.code == http.StatusForbidden:
		return wrap(fault.Denied, "oVirt does not, or no longer, allow this access to the disk: the image transfer has ended, was cancelled or is of another kind.",
			"Look at the events of the VM in oVirt, then start the task again.")
	case s.code == http.StatusNotFound:
		return wrap(fault.NotFound, "The imageio service does not know this request.", "Update the oVirt host if it is older than 4.4.")
	case s.code == http.StatusRequestedRangeNotSatisfiable:
		return wrap(fault.Conflict, "The disk is smaller than it was said to be.", "Start the task again; if it happens again, the disk was resized under way.")
	case again(err):
		return wrap(fault.Transient, "The oVirt host could not read or write this part of the disk.",
			"Look for storage errors in the host's log of ovirt-imageio, then start the task again.")
	}
	return wrap(fault.Internal, "The imageio service refused a request.", "Update the oVirt host, or report this with the text above.")
}
