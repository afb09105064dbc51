// Package all is the table of platforms that can be connected.
//
// It holds no driver and keeps no state: a platform is in the table or it cannot be connected. Nothing registers
// itself.
package all

import (
	"context"
	"log/slog"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/kvm"
	"github.com/cairn-backup/cairn/hypervisors/ovirt"
)

// Secret is a credential: it is never printed, logged or formatted.
type Secret string

// LogValue hides the secret from logs.
func (Secret) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// String hides the secret from everything that prints.
func (Secret) String() string { return "[redacted]" }

// GoString hides the secret from %#v.
func (Secret) GoString() string { return "[redacted]" }

// Config is a connection, in the words that all platforms share.
type Config struct {
	Address  string // KVM: libvirt's URI; oVirt: the engine's URL
	User     string
	Password Secret // KVM: SASL password for qemu+tls; oVirt: the user's
	SSHKey   Secret // KVM: private key for qemu+ssh, PEM
	Options  map[string]string
	Confirm  hypervisors.ConfirmHost // nil takes any host
	Log      *slog.Logger
}

// Opener opens a driver for a connection. It does not connect yet.
type Opener func(ctx context.Context, cfg Config) (hypervisors.Driver, error)

// Platforms returns the table.
func Platforms() map[hypervisors.Platform]Opener {
	return map[hypervisors.Platform]Opener{hypervisors.KVM: openKVM, hypervisors.OVirt: openOVirt}
}

func openKVM(ctx context.Context, cfg Config) (hypervisors.Driver, error) {
	d, err := kvm.Open(ctx, kvm.Config{
		URI: cfg.Address, User: cfg.User, Password: string(cfg.Password), SSHKey: string(cfg.SSHKey),
		Options: cfg.Options, Confirm: cfg.Confirm, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

func openOVirt(ctx context.Context, cfg Config) (hypervisors.Driver, error) {
	d, err := ovirt.Open(ctx, ovirt.Config{
		URL: cfg.Address, User: cfg.User, Password: string(cfg.Password), Options: cfg.Options, Confirm: cfg.Confirm, Log: cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}
