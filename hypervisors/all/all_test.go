package all_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/all"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestOpen(t *testing.T) {
	d, err := all.Open(t.Context(), all.Config{Platform: hypervisors.KVM, Address: "qemu:///system"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Capabilities().Platform; got != hypervisors.KVM {
		t.Errorf("platform %q", got)
	}
	for _, cfg := range []all.Config{{Platform: "nothing"}, {}, {Platform: hypervisors.KVM, Address: "http://host"}} {
		d, err := all.Open(t.Context(), cfg)
		if d != nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("Open(%+v) = %v, %v; want an Invalid error alone", cfg, d, err)
		}
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	cfg := all.Config{Password: "hunter2", SSHKey: "hunter2"}
	var b bytes.Buffer
	slog.New(slog.NewJSONHandler(&b, nil)).Info("open connection", "password", cfg.Password)
	fmt.Fprintf(&b, "%v %+v %#v %s", cfg, cfg, cfg, cfg.Password)
	if strings.Contains(b.String(), "hunter2") {
		t.Errorf("a secret is printed: %s", b.String())
	}
}
