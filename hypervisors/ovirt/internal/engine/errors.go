package engine

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/xml"
	"errors"
	"net"
	"net/http"
	"net/url"
	"strings"
	"unicode"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/internal/fault"
)

// engineError keeps the engine's words: the detail of its fault, or what there is of one.
type engineError struct {
	status int
	detail string
}

func (e *engineError) Error() string { return "the engine: " + strings.TrimRight(e.detail, ". ") }

// Clip shortens what a stranger has written.
func Clip(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }), " ")
	if r := []rune(s); len(r) > 500 {
		s = string(r[:500]) + "…"
	}
	return s
}

// meaning is what a part of a fault's detail means. Details are the engine's own English sentences in brackets.
type meaning struct {
	part            string
	kind            fault.Kind
	meaning, advice string
}

// meanings are in the order of preference. Kinds that are Internal leave what the status says.
var meanings = []meaning{
	{"low on space", fault.Conflict, "The storage domain has too little room.", "Free space on the storage domain, or extend it, and try again."},
	{"low disk space", fault.Conflict, "The storage domain has too little room.", "Free space on the storage domain, or extend it, and try again."},
	{"during a backup", fault.Conflict, "A backup of this VM is under way, by this product or another one.", "Wait until it has ended, or end it in the engine."},
	{"during backup", fault.Conflict, "A backup of this VM is under way, by this product or another one.", "Wait until it has ended, or end it in the engine."},
	{"backup already", fault.Conflict, "A backup of this VM is under way, by this product or another one.", "Wait until it has ended, or end it in the engine."},
	{"checkpoint", fault.Internal, "The engine does not take the checkpoint.", "The next backup reads the VM as a whole and makes a new one."},
	{"mac address", fault.Exists, "A MAC address is in use already.", "Restore with new MAC addresses, or remove the VM that has them."},
	{"snapshot", fault.Conflict, "The engine does not allow the operation on a snapshot now: another one is under way, or the VM is in a preview.", "Wait until the other task of this VM has ended; commit or undo a preview in the engine."},
	{"locked", fault.Conflict, "Something else is at work on this VM or disk.", "Look at the engine's tasks; try again when the other one has ended."},
	{"migrat", fault.Conflict, "The VM is being migrated.", "Try again when the migration has ended."},
	{"name already in use", fault.Exists, "The name is in use already.", "Choose another name."},
	{"already exists", fault.Exists, "The engine has one of that name or id.", "Choose another name."},
	{"quota", fault.Conflict, "The quota does not allow it.", "Raise the quota, or choose another storage domain."},
	{"permission", fault.Denied, "The user of this connection may not do that.", "Give it the rights that docs/ovirt.md lists."},
	{"not authorized", fault.Denied, "The user of this connection may not do that.", "Give it the rights that docs/ovirt.md lists."},
}

// refused turns a status above 299 and its body into an error with a kind and words.
func refused(r Request, status int, body []byte) error {
	detail := faultDetail(body)
	if detail == "" {
		detail = http.StatusText(status)
	}
	kind, what, advice := statusKind(status)
	low := strings.ToLower(detail)
	for _, m := range meanings {
		if status < 500 && status != http.StatusNotFound && strings.Contains(low, m.part) {
			what, advice = m.meaning, m.advice
			if m.kind != fault.Internal {
				kind = m.kind
			}
			break
		}
	}
	return fault.Wrap(kind, r.Op, r.Subject, &engineError{status, detail}).Explain(what, advice)
}

func statusKind(status int) (kind fault.Kind, what, advice string) {
	switch {
	case status == http.StatusUnauthorized:
		return fault.Denied, "The engine ends our session at once.", "Check whether the user's account or its sessions are limited in the engine."
	case status == http.StatusForbidden:
		return fault.Denied, "The user of this connection may not do that.", "Give it the rights that docs/ovirt.md lists."
	case status == http.StatusNotFound:
		return fault.NotFound, "The engine has no such thing, or the user of this connection cannot see it.", "Look whether it was removed meanwhile, and at the user's rights."
	case status == http.StatusConflict:
		return fault.Conflict, "The engine does not allow this now.", "Look at the engine's events and tasks; its own words above say what is in the way."
	case status >= 500:
		return fault.Transient, "The engine failed, or is starting.", "Look at /var/log/ovirt-engine/engine.log on the engine's machine if it happens again."
	case status >= 300 && status < 400:
		return fault.Invalid, "The address leads elsewhere.", "Give the engine's own address, as its certificate has it."
	}
	return fault.Invalid, "The engine does not take the request.", "Its own words above say why. An engine that is too old for a feature answers so, too."
}

// faultDetail is the engine's own explanation in the body of a refusal, "" where there is none.
func faultDetail(body []byte) string {
	f, err := apixml.DecodeOne(body, "fault", sdk.XMLFaultReadOne)
	if err != nil {
		a, err := apixml.DecodeOne(body, "action", sdk.XMLActionReadOne)
		if err != nil {
			return ""
		}
		var ok bool
		if f, ok = a.Fault(); !ok {
			return ""
		}
	}
	detail, _ := f.Detail()
	if strings.TrimSpace(detail) == "" {
		detail, _ = f.Reason()
	}
	return Clip(strings.Trim(strings.TrimSpace(detail), "[]"))
}

// DetailHas says whether an error is a refusal of the engine whose words contain one of the parts.
func DetailHas(err error, parts ...string) bool {
	e, ok := errors.AsType[*engineError](err)
	if !ok {
		return false
	}
	low := strings.ToLower(e.detail)
	for _, p := range parts {
		if strings.Contains(low, p) {
			return true
		}
	}
	return false
}

// Gone says whether what was asked for is not there.
func Gone(err error) bool { return err != nil && fault.KindOf(err) == fault.NotFound }

// unreachable turns an error of the network or of TLS into one with a kind and words.
func (c *Conn) unreachable(ctx context.Context, op, subject string, err error) error {
	if ctx.Err() != nil {
		return fault.Wrap(fault.KindOf(ctx.Err()), op, subject, ctx.Err())
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return fault.Context(op, subject, err)
	}
	if e := c.distrusted(op, subject, err); e != nil {
		return e
	}
	what := "The engine cannot be reached."
	switch dns, syntax := (*net.DNSError)(nil), (*xml.SyntaxError)(nil); {
	case errors.As(err, &dns):
		what = "The engine's name cannot be resolved on the appliance."
	case errors.As(err, &syntax):
		what = "The engine's reply cannot be read."
	case errors.Is(err, errNoReply):
		what = "The engine was reached, but did not answer in time."
	}
	if e, ok := errors.AsType[*url.Error](err); ok && subject == c.base.Host { // it begins with the address, which is said already
		err = e.Err
	}
	return fault.Wrap(fault.Transient, op, subject, errors.New(Clip(err.Error()))).Explain(what,
		"Check the address, that the engine runs, and that no firewall is in between.")
}

// distrusted is the error for a certificate that is not trusted, or nil.
func (c *Conn) distrusted(op, subject string, err error) error {
	no := func(meaning, advice string) error {
		return fault.Wrap(fault.Denied, op, subject, errors.New(Clip(err.Error()))).Explain(meaning, advice)
	}
	if e, ok := errors.AsType[*strangerError](err); ok {
		return no("The engine's CA is not the one whose fingerprint was configured.",
			"Somebody may be in between, or the engine has a new CA. Compare with the engine: its CA's SHA-256 is "+fingerprintOf(e.seen)+" as seen from here.")
	}
	if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		err := e.Err
		if name, ok := errors.AsType[x509.HostnameError](err); ok {
			return no("The engine's certificate is for another name: "+Clip(strings.Join(name.Certificate.DNSNames, ", "))+".", "Give the address by that name.")
		}
		if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok && len(e.UnverifiedCertificates) > 0 {
			return no("The engine's certificate was signed by a CA that is not known here.", c.introduce())
		}
		return no("The engine's certificate cannot be trusted.", "Look whether it has expired.")
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return no("The engine's certificate was not signed by the CA whose fingerprint was configured.",
			"The web server of this engine may have a certificate of another CA: compare /etc/pki/ovirt-engine/apache-ca.pem on the engine.")
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return no("The engine's certificate is for another name.", "Give the address by the name in the certificate.")
	}
	if _, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		return no("The engine's certificate is not valid now.", "Look at its dates, and at the clock of the appliance.")
	}
	return nil
}

// introduce tells how an unknown CA gets known, with its fingerprint where the engine gives it.
func (c *Conn) introduce() string {
	how := "Add the CA with the option " + OptCAFile + ", or its fingerprint with " + OptCAFingerprint + ", after comparing it on the engine: " +
		"openssl x509 -in /etc/pki/ovirt-engine/apache-ca.pem -noout -fingerprint -sha256"
	if certs, err := c.trust.fetchCA(); err == nil {
		how += ". Seen from here it is " + fingerprintOf(certs[0])
	}
	return how + "."
}
