package kvm

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

func TestOpen(t *testing.T) {
	tests := []struct {
		uri    string
		access access
		ok     bool
	}{
		{"qemu:///system", accessLocal, true},
		{"qemu:///session", "", false},
		{"qemu+ssh://host/system?command=/tmp/x", "", false}, // would run it here
		{"qemu+ssh://host/system?netcat=/tmp/x", "", false},
		{"qemu+ssh://host/system?keyfile=/k&no_verify=1", accessSSH, true},
		{"qemu+tls://host/system?no_verify=1", "", false},
		{"qemu+tls://host/system?pkipath=/p", accessTLS, true},
		{"qemu:///system?name=qemu%2Bext:///system", "", false},
		{"qemu+unix:///system?socket=/x", accessLocal, true},
		{"qemu+ssh://root@host:2222/system", accessSSH, true},
		{"qemu+tls://host/system", accessTLS, true},
		{"qemu://host/system", accessTLS, true},
		{"qemu+tcp://host/system", "", false}, // not encrypted
		{"qemu+ssh:///system", "", false},
		{"qemu+ssh://root:hunter22@host/system", "", false}, // addresses are shown
		{"qemu+ssh://root:hunter22@ho st/system", "", false},
		{"xen:///system", "", false},
		{"qemu:///", "", false},
		{"host", "", false},
		{"", "", false},
		{"qemu://h\x00st/system", "", false},
	}
	for _, tt := range tests {
		d, err := Open(t.Context(), Config{URI: tt.uri})
		if (err == nil) != tt.ok {
			t.Errorf("Open(%q): %v", tt.uri, err)
			continue
		}
		if err != nil {
			if _, advice := fault.Explanation(err); fault.KindOf(err) != fault.Invalid || advice == "" || strings.Contains(err.Error(), "hunter22") {
				t.Errorf("Open(%q): %v (%v), want Invalid with advice and without a password", tt.uri, err, fault.KindOf(err))
			}
			continue
		}
		if d.access != tt.access {
			t.Errorf("Open(%q): access %q, want %q", tt.uri, d.access, tt.access)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := Open(t.Context(), Config{URI: "qemu:///system", Options: map[string]string{"colour": "red"}}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("unknown option: %v", err)
	}
}

func TestSSHCredentialsAreInTheURI(t *testing.T) {
	d, err := Open(t.Context(), Config{URI: "qemu+ssh://host/system", User: "backup", SSHKey: "KEY"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if !strings.Contains(d.conn.uri, "backup@host") || !strings.Contains(d.conn.uri, "keyfile=") || strings.Contains(d.conn.uri, "KEY") {
		t.Errorf("URI %s", d.conn.uri)
	}
	if args := strings.Join(d.ssh.args(), " "); !strings.Contains(args, "-l backup") || !strings.Contains(args, "-i "+d.ssh.keyFile) {
		t.Errorf("ssh is called with %s", args)
	}
}

func TestUnreachable(t *testing.T) {
	d, err := Open(t.Context(), Config{URI: "qemu+unix:///system?socket=" + t.TempDir() + "/none"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.VMs(t.Context())
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Transient || meaning == "" || advice == "" {
		t.Errorf("unreachable host: %v (%v), %q, %q", err, fault.KindOf(err), meaning, advice)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if _, err := d.VMs(t.Context()); fault.KindOf(err) != fault.Conflict {
		t.Errorf("closed driver: %v", err)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.VMs(canceled); fault.KindOf(err) != fault.Canceled {
		t.Errorf("canceled call: %v", err)
	}
}

func TestListenAt(t *testing.T) {
	for _, tt := range []struct {
		uri     string
		options map[string]string
		network string
		kind    fault.Kind
	}{
		{"qemu:///system", nil, "unix", 0},
		{"qemu+ssh://h/system", nil, "unix", 0},
		{"qemu+tls://h/system", nil, "tcp", 0},
		{"qemu+tls://h/system", map[string]string{OptNBDPorts: "9-5"}, "", fault.Invalid},
		{"qemu:///system", map[string]string{OptSocketDir: "/" + strings.Repeat("x", 120)}, "", fault.Invalid},
	} {
		d, err := Open(t.Context(), Config{URI: tt.uri, Options: tt.options})
		if err != nil {
			t.Fatal(err)
		}
		at, err := d.listenAt("t1")
		if at.network != tt.network || (err != nil && fault.KindOf(err) != tt.kind) || (err != nil) != (tt.network == "") {
			t.Errorf("%s %v: %+v, %v", tt.uri, tt.options, at, err)
		}
		if at.network != "tcp" {
			continue
		}
		e, _, err := d.exportBase(t.Context(), "t1", at)
		if err != nil || e.TLS == nil || e.TLS.ServerName != "h" {
			t.Errorf("%s: export %+v (%v) without TLS", tt.uri, e, err)
		}
		if at.port < 10809 || at.port > 10872 {
			t.Errorf("port %d", at.port)
		}
	}
}

func TestErrorKinds(t *testing.T) {
	for _, tt := range []struct {
		err  libvirt.Error
		want fault.Kind
	}{
		{libvirt.Error{Code: libvirt.ERR_NO_DOMAIN}, fault.NotFound},
		{libvirt.Error{Code: libvirt.ERR_OPERATION_TIMEOUT}, fault.Conflict},
		{libvirt.Error{Code: libvirt.ERR_INTERNAL_ERROR, Message: "client socket is closed"}, fault.Transient},
		{libvirt.Error{Code: libvirt.ERR_SYSTEM_ERROR, Domain: libvirt.FROM_RPC, Message: "Cannot recv data"}, fault.Transient},
		{libvirt.Error{Code: libvirt.ERR_INTERNAL_ERROR, Message: "x: No space left on device"}, fault.Transient},
		{libvirt.Error{Code: libvirt.ERR_OPERATION_FAILED, Message: "whatever"}, fault.Internal},
		{libvirt.Error{Code: libvirt.ERR_ACCESS_DENIED}, fault.Denied},
	} {
		err := translate("do", "it", fmt.Errorf("wrapped: %w", tt.err))
		if got := fault.KindOf(err); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt.err, got, tt.want)
		}
		if _, ok := errors.AsType[libvirt.Error](err); ok {
			t.Errorf("%+v leaves the driver as it is", tt.err)
		}
	}
}

func TestCleanUpRefusesWhatIsNotOurs(t *testing.T) {
	d, err := Open(t.Context(), Config{URI: "qemu+unix:///system?socket=/none"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, o := range []hypervisors.Owed{
		{Kind: kindScratch, Name: "/etc/passwd"},
		{Kind: kindSocket, Name: "/x/cairn-t/other.sock"},
		{Kind: kindVolume, Name: "disk.qcow2", Args: map[string]string{"pool": "p"}},
		{Kind: kindReplaced, Name: "/cairn-x", Args: map[string]string{"new": "/other"}},
		{Kind: "nonsense", Name: "cairn-x"},
	} {
		if err := d.CleanUp(t.Context(), o); fault.KindOf(err) != fault.Invalid {
			t.Errorf("clean up %+v: %v, want Invalid", o, err)
		}
	}
}

// TestWhatIsNotReachedIsSaidOnce has nobody behind the socket.
func TestWhatIsNotReachedIsSaidOnce(t *testing.T) {
	const id = "4c4c4544-0042-3510-8053-c4c04f564433"
	address := "qemu:///system?socket=" + t.TempDir() + "/none"
	d, err := Open(t.Context(), Config{URI: address})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Close() }()
	_, err = d.VMs(t.Context())
	if err == nil || !strings.HasPrefix(err.Error(), "list VMs: connect to "+address+": ") {
		t.Errorf("inventory: %v", err)
	}
	_, err = d.VM(t.Context(), id)
	if err == nil || !strings.HasPrefix(err.Error(), "look up VM "+id+": connect to "+address+": ") {
		t.Errorf("one VM: %v", err)
	}
}
