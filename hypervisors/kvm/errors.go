package kvm

import (
	"errors"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// kinds says what libvirt's error numbers mean to the rest of the product. What is not here is Internal, or told
// apart by its text in kindOf.
var kinds = map[libvirt.ErrorNumber]fault.Kind{
	libvirt.ERR_NO_DOMAIN:               fault.NotFound,
	libvirt.ERR_NO_STORAGE_POOL:         fault.NotFound,
	libvirt.ERR_NO_STORAGE_VOL:          fault.NotFound,
	libvirt.ERR_NO_NETWORK:              fault.NotFound,
	libvirt.ERR_NO_DOMAIN_CHECKPOINT:    fault.NotFound,
	libvirt.ERR_NO_DOMAIN_BACKUP:        fault.NotFound,
	libvirt.ERR_NO_DOMAIN_METADATA:      fault.NotFound,
	libvirt.ERR_DOM_EXIST:               fault.Exists,
	libvirt.ERR_STORAGE_VOL_EXIST:       fault.Exists,
	libvirt.ERR_AUTH_FAILED:             fault.Denied,
	libvirt.ERR_AUTH_CANCELLED:          fault.Denied,
	libvirt.ERR_AUTH_UNAVAILABLE:        fault.Denied,
	libvirt.ERR_ACCESS_DENIED:           fault.Denied,
	libvirt.ERR_OPERATION_DENIED:        fault.Denied,
	libvirt.ERR_OPERATION_INVALID:       fault.Conflict,
	libvirt.ERR_RESOURCE_BUSY:           fault.Conflict,
	libvirt.ERR_OPERATION_TIMEOUT:       fault.Conflict,
	libvirt.ERR_CHECKPOINT_INCONSISTENT: fault.Conflict,
	libvirt.ERR_AGENT_UNRESPONSIVE:      fault.Transient,
	libvirt.ERR_AGENT_UNSYNCED:          fault.Transient,
	libvirt.ERR_AGENT_COMMAND_TIMEOUT:   fault.Transient,
	libvirt.ERR_NO_CONNECT:              fault.Transient,
	libvirt.ERR_RPC:                     fault.Transient,
	libvirt.ERR_GNUTLS_ERROR:            fault.Transient,
	libvirt.ERR_SSH:                     fault.Transient,
	libvirt.ERR_LIBSSH:                  fault.Transient,
	libvirt.ERR_NO_SERVER:               fault.Transient,
	libvirt.ERR_OPERATION_ABORTED:       fault.Canceled,
	libvirt.ERR_NO_SUPPORT:              fault.Unsupported,
	libvirt.ERR_OPERATION_UNSUPPORTED:   fault.Unsupported,
	libvirt.ERR_CONFIG_UNSUPPORTED:      fault.Unsupported,
	libvirt.ERR_ARGUMENT_UNSUPPORTED:    fault.Unsupported,
	libvirt.ERR_XML_ERROR:               fault.Invalid,
	libvirt.ERR_XML_DETAIL:              fault.Invalid,
	libvirt.ERR_XML_INVALID_SCHEMA:      fault.Invalid,
	libvirt.ERR_INVALID_ARG:             fault.Invalid,
}

// texts tells apart what libvirt reports under its catch-all numbers.
var texts = []struct {
	part string
	kind fault.Kind
}{
	{"client socket is closed", fault.Transient},
	{"End of file while reading", fault.Transient},
	{"Cannot recv data", fault.Transient},
	{"Cannot write data", fault.Transient},
	{"Unable to read from monitor", fault.Transient},
	{"End of file from qemu monitor", fault.Transient},
	{"qemu unexpectedly closed the monitor", fault.Transient},
	{"domain is no longer running", fault.Transient},
	{"Unable to make socket connection", fault.Transient},
	{"Failed to connect socket", fault.Transient},
	{"unable to connect to server", fault.Transient},
	{"No space left on device", fault.Transient},
	{"Disk quota exceeded", fault.Transient},
	{"not enough free space", fault.Transient},
	{"Permission denied", fault.Denied},
	{"authentication failed", fault.Denied},
	{"Failed to get \"write\" lock", fault.Conflict},
	{"Failed to get shared \"write\" lock", fault.Conflict},
	{"No such file or directory", fault.NotFound},
}

// number returns libvirt's error number, or ERR_OK for other errors.
func number(err error) libvirt.ErrorNumber {
	if lv, ok := errors.AsType[libvirt.Error](err); ok {
		return lv.Code
	}
	return libvirt.ERR_OK
}

func kindOf(err error) fault.Kind {
	lv, ok := errors.AsType[libvirt.Error](err)
	if !ok {
		return fault.KindOf(err)
	}
	if k, ok := kinds[lv.Code]; ok {
		return k
	}
	for _, t := range texts {
		if strings.Contains(lv.Message, t.part) {
			return t.kind
		}
	}
	return fault.Internal
}

// lostConnection reports whether err means that the connection itself is gone.
func lostConnection(err error) bool {
	lv, ok := errors.AsType[libvirt.Error](err)
	if !ok {
		return false
	}
	return lv.Domain == libvirt.FROM_RPC || lv.Domain == libvirt.FROM_REMOTE || strings.Contains(lv.Message, "client socket is closed")
}

// platformError keeps libvirt's words and drops its type: no SDK error leaves a driver.
type platformError string

func (e platformError) Error() string { return string(e) }

// translate turns any error of a libvirt call into one with a kind and words.
func translate(op, subject string, err error) error {
	lv, ok := errors.AsType[libvirt.Error](err)
	if !ok {
		return fault.Context(op, subject, err)
	}
	kind := kindOf(err)
	if lostConnection(err) {
		kind = fault.Transient
	}
	e := fault.Wrap(kind, op, subject, platformError("libvirt: "+lv.Message))
	switch {
	case lostConnection(err):
		return e.Explain("The connection to libvirt on this host was lost while the call was under way.",
			"Look whether libvirtd (or virtqemud) still runs on the host; the next attempt connects again by itself.")
	case lv.Code == libvirt.ERR_OPERATION_TIMEOUT:
		return e.Explain("Something else is working on this VM: libvirt allows one job at a time.",
			"Wait until the other backup, snapshot or migration of this VM has ended, then try again.")
	case lv.Code == libvirt.ERR_ACCESS_DENIED || lv.Code == libvirt.ERR_OPERATION_DENIED:
		return e.Explain("The account of this connection may not do that on the host.",
			"Use an account that may write to libvirt's system socket (root, or a member of the group libvirt).")
	case isNoServerCertificate(lv.Message):
		return fault.Wrap(fault.Conflict, op, subject, platformError("libvirt: "+lv.Message)).Explain(noServerCertificate())
	case strings.Contains(lv.Message, "No space left on device"):
		return e.Explain("The host has no space left where this has to be written.", "Free space there or choose another datastore.")
	case strings.Contains(lv.Message, "write\" lock"):
		return e.Explain("Another process has this disk image open.", "Look which VM or tool on the host uses the image, and try again when it has let go.")
	case strings.Contains(lv.Message, "monitor"):
		return e.Explain("QEMU ended, or stopped answering, while the call was under way.", "Look at the VM's log on the host in /var/log/libvirt/qemu.")
	}
	return e
}

// isNoServerCertificate recognises QEMU's words for certificates of its own that it cannot read.
func isNoServerCertificate(message string) bool {
	return strings.Contains(message, "Unable to access credentials") || strings.Contains(message, "Cannot load CA certificate") ||
		strings.Contains(message, "Cannot load certificate")
}

func noServerCertificate() (meaning, advice string) {
	return "QEMU on the host has no certificate that it can read, so that it cannot offer disks over TLS.",
		"Put ca-cert.pem, server-cert.pem and server-key.pem in /etc/pki/qemu on the host, readable for QEMU's user " +
			"(backup_tls_x509_cert_dir in qemu.conf and the option " + OptTLSCertDir + " name another directory)."
}

// refusal is what a text of libvirt's, ssh's or GnuTLS's means when a connection is not made.
type refusal struct {
	part            string
	kind            fault.Kind
	meaning, advice string
}

var refusals = []refusal{
	{"Host key verification failed", fault.Denied, "The ssh key of the host is not known here, or it is another one than before.",
		"Compare the host's key with what its administrator says, and add it to the appliance's known_hosts file, for example with ssh-keyscan."},
	{"Permission denied", fault.Denied, "The host answered and refused the credentials.",
		"Check the user and the ssh key: its public half must be in the user's authorized_keys on the host, and it must have no passphrase."},
	{"Cannot read CA certificate", fault.Invalid, "The CA certificate for the connection over TLS is not on the appliance.",
		"Put cacert.pem, clientcert.pem and clientkey.pem in the directory that the option " + OptPKIPath + " names."},
	{"Failed to verify peer's certificate", fault.Denied, "The host's certificate was not made by the CA that this connection trusts, or is for another name.",
		"Check cacert.pem of this connection, and that the host's certificate names the host as the address does."},
	{"Our own certificate", fault.Denied, "The certificate of this connection was not made by the CA beside it, or is not valid now.",
		"Check that clientcert.pem and cacert.pem belong together, and that the certificate has not expired."},
	{"Unable to read TLS confirmation", fault.Denied, "The host ended the connection when it had seen our certificate, or that there is none.",
		"Check that clientcert.pem and clientkey.pem are there and that the CA of the host made the certificate."},
	{"ertificate", fault.Denied, "A certificate of this connection cannot be used.",
		"Check cacert.pem, clientcert.pem and clientkey.pem; libvirt wants the key usages digital signature and key encipherment."},
}

func refusalOf(message string) (refusal, bool) {
	for _, r := range refusals {
		if strings.Contains(message, r.part) {
			return r, true
		}
	}
	return refusal{}, false
}

func translateDial(uri string, err error) error {
	lv, ok := errors.AsType[libvirt.Error](err)
	if !ok {
		return fault.Context("connect to", uri, err)
	}
	kind := kindOf(err)
	meaning, advice := "libvirt on this host cannot be reached.", "Check the address, that libvirtd (or virtqemud) runs there, and that no firewall is in between."
	known, refused := refusalOf(lv.Message)
	switch {
	case refused:
		kind, meaning, advice = known.kind, known.meaning, known.advice
	case kind == fault.Denied:
		meaning, advice = "The host answered and refused the credentials.", "Check the user, the key or password, and that the host's key is known."
	case lv.Code == libvirt.ERR_NO_CONNECT, lv.Code == libvirt.ERR_INVALID_ARG, lv.Code == libvirt.ERR_CONFIG_UNSUPPORTED:
		kind = fault.Invalid
		meaning, advice = "libvirt does not know this kind of address.", "Use qemu:///system, qemu+ssh://user@host/system or qemu+tls://host/system."
	case kind != fault.Transient:
		kind = fault.Transient
	}
	return fault.Wrap(kind, "connect to", uri, platformError("libvirt: "+lv.Message)).Explain(meaning, advice)
}

func errClosed(uri string) error {
	return fault.New(fault.Conflict, "use connection", uri, "it is closed")
}
