package all_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/all"
	"github.com/cairn-backup/cairn/internal/fault"
)

func TestPlatforms(t *testing.T) {
	if got := slices.Sorted(maps.Keys(all.Platforms())); !slices.Equal(got, slices.Sorted(slices.Values(hypervisors.Platforms))) {
		t.Errorf("there are drivers for %v, and the platforms are %v", got, hypervisors.Platforms)
	}
	open := all.Platforms()[hypervisors.KVM]
	d, err := open(t.Context(), all.Config{Address: "qemu:///system"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Capabilities().Platform; got != hypervisors.KVM {
		t.Errorf("platform %q", got)
	}
	if d, err := open(t.Context(), all.Config{Address: "http://host"}); d != nil || fault.KindOf(err) != fault.Invalid {
		t.Errorf("open an impossible address = %v, %v; want an Invalid error alone", d, err)
	}
}

func TestOVirt(t *testing.T) {
	open := all.Platforms()[hypervisors.OVirt]
	d, err := open(t.Context(), all.Config{Address: "https://engine.example.com", User: "admin@internal", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if got := d.Capabilities().Platform; got != hypervisors.OVirt {
		t.Errorf("platform %q", got)
	}
	if d, err := open(t.Context(), all.Config{Address: "http://engine.example.com", User: "admin@internal", Password: "secret"}); d != nil || fault.KindOf(err) != fault.Invalid {
		t.Errorf("open an address without TLS = %v, %v; want an Invalid error alone", d, err)
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
