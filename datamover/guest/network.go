//go:build linux

package guest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"
)

// network is the machine's way to others. Only its own goroutine changes it.
type network struct {
	cfg   Network
	name  string
	log   *slog.Logger
	ready chan struct{} // closed when there is an address for the first time
	ntp   chan []string // the servers that the network names, newest last
}

func newNetwork(cfg Network, name string, log *slog.Logger) *network {
	return &network{cfg: cfg, name: name, log: log, ready: make(chan struct{}), ntp: make(chan []string, 1)}
}

// run waits for the interface, gives it its address and keeps its lease until ctx ends. changed tells of new devices.
func (n *network) run(ctx context.Context) {
	link, ok := n.wait(ctx)
	if !ok {
		return
	}
	if err := linkUp(link.Index, n.cfg.MTU); err != nil {
		n.log.Error("network", "interface", link.Name, "err", err)
		return
	}
	if !n.cfg.Address.IsValid() {
		c := &dhcpClient{link: link, name: n.name, log: n.log}
		c.held = func(l lease) error { return n.take(link, l) }
		c.lost = func(l lease) { n.drop(link, l) }
		c.run(ctx)
		return
	}
	l := lease{address: n.cfg.Address, gateway: n.cfg.Gateway, dns: n.cfg.DNS}
	if err := n.take(link, l); err != nil {
		n.log.Error("network", "interface", link.Name, "err", err)
	}
}

// wait returns the interface when its driver has made it.
func (n *network) wait(ctx context.Context) (net.Interface, bool) {
	for said := false; ctx.Err() == nil; pause(ctx, 100*time.Millisecond) {
		if link, ok := pickInterface(n.cfg.MAC); ok {
			return link, true
		}
		if !said {
			n.log.Info("waiting for a network interface", "mac", n.cfg.MAC)
			said = true
		}
	}
	return net.Interface{}, false
}

// take sets address, route, MTU and name servers. It is repeated at each renewal.
func (n *network) take(link net.Interface, l lease) error {
	if l.mtu > 0 && n.cfg.MTU == 0 {
		if err := linkUp(link.Index, l.mtu); err != nil {
			n.log.Warn("the MTU that the network names", "mtu", l.mtu, "err", err)
		}
	}
	if err := setAddress(link.Index, l.address, true); err != nil {
		return err
	}
	if l.gateway.IsValid() {
		if err := setDefaultRoute(link.Index, l.gateway); err != nil {
			return err
		}
	}
	dns := n.cfg.DNS
	if len(dns) == 0 {
		dns = l.dns
	}
	if err := writeResolvConf("/etc/resolv.conf", dns); err != nil {
		return err
	}
	n.tellNTP(l)
	select {
	case <-n.ready:
	default:
		n.log.Info("network is up", "interface", link.Name, "address", l.address, "gateway", l.gateway, "dns", texts(dns), "lease", l.time)
		close(n.ready)
	}
	return nil
}

// tellNTP replaces what has not been taken yet.
func (n *network) tellNTP(l lease) {
	servers := n.cfg.NTP
	if len(servers) == 0 {
		servers = texts(l.ntp)
	}
	select {
	case <-n.ntp:
	default:
	}
	n.ntp <- servers
}

// drop takes an address away whose lease is over.
func (n *network) drop(link net.Interface, l lease) {
	n.log.Warn("the address is lost", "interface", link.Name, "address", l.address)
	if err := setAddress(link.Index, l.address, false); err != nil {
		n.log.Warn("remove the address", "err", err)
	}
}

// writeResolvConf tells Go's resolver the name servers.
func writeResolvConf(name string, dns []netip.Addr) error {
	var b strings.Builder
	for _, a := range dns {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return os.WriteFile(name, []byte(b.String()), 0o644)
}

// loopback switches the loopback interface on: the kernel leaves that to process 1.
func loopback() error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	return linkUp(lo.Index, 0)
}
