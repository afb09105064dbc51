//go:build linux

package guest

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/internal/fault"
)

// productUUID is what the platform calls this machine, for root's eyes only.
const productUUID = "/sys/class/dmi/id/product_uuid"

// networkdDir is where systemd-networkd looks for what other programs tell it until the next boot.
const networkdDir = "/run/systemd/network"

// ConfigCommand prints the machine's configuration, or, with --to, writes what the services of a Debian mover read:
// config.yaml, the tables of shares to mount and of sessions to begin, which machine of the platform it is, a file for systemd-networkd where the network is not what the image has, and sets the host name. --wait gives a seed's disk
// time to appear. A machine with no configuration is no error then: it may have enrolled long ago.
func ConfigCommand(ctx context.Context, args []string, stdout io.Writer) error {
	f := flag.NewFlagSet("config", flag.ContinueOnError)
	to := f.String("to", "", "directory for config.yaml")
	wait := f.Duration("wait", 0, "how long to wait for a configuration that names a manager")
	keep := f.String("keep", "", "directory for the seed of the first start, where that may lie on a disk that platforms plug in; none is looked for there when not given")
	if err := f.Parse(args); err != nil {
		return fault.Wrap(fault.Invalid, "cairn-mover", "config", err)
	}
	cfg, err := readWait(ctx, *wait, *keep)
	if *to == "" {
		if err != nil {
			return err
		}
		p, err := cfg.Document()
		if err == nil {
			_, err = stdout.Write(p)
		}
		return err
	}
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	fmt.Fprintf(stdout, "configuration from %s\n", strings.Join(append(cfg.Sources, "nowhere")[:max(1, len(cfg.Sources))], ", "))
	sessions := cfg.sessionTable()
	cfg.Sessions = nil // they are begun for the mover, which has no use for their secrets
	p, err := cfg.Document()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*to, "sessions"), []byte(sessions), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*to, "config.yaml"), p, 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(*to, "storage"), []byte(cfg.mountTable()), 0o600); err != nil {
		return err
	}
	uuid, _ := os.ReadFile(productUUID) // not every machine has one
	if err := os.WriteFile(filepath.Join(*to, "product_uuid"), uuid, 0o600); err != nil {
		return err
	}
	if cfg.Name != "" {
		if err := unix.Sethostname([]byte(cfg.Name)); err != nil {
			return err
		}
	}
	if cfg.Network.isZero() {
		return nil
	}
	if err := os.MkdirAll(networkdDir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(networkdDir, "10-cairn.network"), []byte(cfg.Network.networkd()), 0o644)
}

// readWait reads the configuration until it names a manager or the time is over.
func readWait(ctx context.Context, wait time.Duration, keep string) (cfg Config, err error) {
	for end := time.Now().Add(wait); ; pause(ctx, 500*time.Millisecond) {
		cfg, err = ReadConfig(ctx, keep)
		if err == nil && cfg.Manager != "" || time.Now().After(end) || ctx.Err() != nil {
			return cfg, err
		}
	}
}

// networkd returns the network as systemd.network(5) has it.
func (n Network) networkd() string {
	var b strings.Builder
	b.WriteString("[Match]\n")
	if n.MAC != "" {
		fmt.Fprintf(&b, "MACAddress=%s\n", n.MAC)
	} else {
		b.WriteString("Name=en* eth*\n")
	}
	if n.MTU > 0 {
		fmt.Fprintf(&b, "\n[Link]\nMTUBytes=%d\n", n.MTU)
	}
	b.WriteString("\n[Network]\nLLMNR=no\nMulticastDNS=no\n")
	if n.Address.IsValid() {
		fmt.Fprintf(&b, "Address=%s\n", n.Address)
	} else {
		b.WriteString("DHCP=yes\n")
	}
	if n.Gateway.IsValid() {
		fmt.Fprintf(&b, "Gateway=%s\n", n.Gateway)
	}
	for _, a := range n.DNS {
		fmt.Fprintf(&b, "DNS=%s\n", a)
	}
	for _, s := range n.NTP {
		fmt.Fprintf(&b, "NTP=%s\n", s)
	}
	return b.String()
}
