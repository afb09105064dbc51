package ovirtsim_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// start starts an engine whose time stands still until settle.
func start(t *testing.T, cfg ovirtsim.Config) *ovirtsim.Engine {
	t.Helper()
	if cfg.Clock == nil {
		cfg.Clock = ovirtsim.ManualClock(begin)
	}
	e, err := ovirtsim.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return e
}

// settle lets everything that is under way come to its end.
func settle(e *ovirtsim.Engine) { e.Advance(time.Second) }

// connect logs in with go-ovirt.
func connect(t *testing.T, e *ovirtsim.Engine, user, password string) *sdk.SystemService {
	t.Helper()
	c, err := sdk.NewConnectionBuilder().URL(e.URL()).Username(user).Password(password).CACert(e.CA()).Timeout(time.Minute).Build()
	if err != nil {
		t.Fatal(err)
	}
	return c.SystemService()
}

func admin(t *testing.T, e *ovirtsim.Engine) *sdk.SystemService {
	t.Helper()
	return connect(t, e, "admin@internal", "secret")
}

// ok ends a test on an error.
func ok[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// conflicts says that a call must be refused as the engine refuses what its rules forbid.
func conflicts(t *testing.T, err error, why string) {
	t.Helper()
	var c *sdk.ConflictError
	if !errors.As(err, &c) || !strings.Contains(err.Error(), why) {
		t.Errorf("got %v, want a conflict that says %q", err, why)
	}
}

// absent says that a call must be answered by 404.
func absent(t *testing.T, err error) {
	t.Helper()
	var n *sdk.NotFoundError
	if !errors.As(err, &n) {
		t.Errorf("got %v, want not found", err)
	}
}

// vmNamed looks a VM up.
func vmNamed(t *testing.T, s *sdk.SystemService, name string) *sdk.Vm {
	t.Helper()
	vms := ok(s.VmsService().List().Search("name=" + name).Send())(t).MustVms().Slice()
	if len(vms) != 1 {
		t.Fatalf("%d VMs named %s", len(vms), name)
	}
	return vms[0]
}

// service is that of a VM.
func service(t *testing.T, s *sdk.SystemService, name string) *sdk.VmService {
	t.Helper()
	return s.VmsService().VmService(vmNamed(t, s, name).MustId())
}

// disksOf are the ids of a VM's disks in their order.
func disksOf(t *testing.T, v *sdk.VmService) (out []string) {
	t.Helper()
	for _, a := range ok(v.DiskAttachmentsService().List().Send())(t).MustAttachments().Slice() {
		out = append(out, a.MustId())
	}
	return out
}

func httpClient(pem []byte) *http.Client {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}}
}

// call makes a request without go-ovirt, to a path of the engine. Its body is read.
func call(t *testing.T, e *ovirtsim.Engine, method, path, body string, header ...string) (status int, text string, h http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, strings.TrimSuffix(e.URL(), "/ovirt-engine/api")+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := httpClient(e.CA()).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b), resp.Header
}

// lab skips a test that needs QEMU's programs where they are missing, but not where all must be there.
func lab(t *testing.T) {
	t.Helper()
	for _, p := range []string{"qemu-storage-daemon", "qemu-img"} {
		if _, err := exec.LookPath(p); err != nil && os.Getenv("CAIRN_LAB") != "1" {
			t.Skipf("needs %s, of Debian's qemu-system-common and qemu-utils", p)
		}
	}
}
