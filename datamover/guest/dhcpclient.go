//go:build linux

package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// dhcpClient holds one interface's lease. It speaks on a packet socket, since the interface has no address at first,
// and asks with what ports 67 and 68 are for, but keeps no socket between two exchanges.
type dhcpClient struct {
	link net.Interface
	name string
	log  *slog.Logger
	held func(lease) error // takes a new lease into use
	lost func(lease)       // the lease is void
}

var errNak = errors.New("the server refuses the address")

// run gets a lease and keeps it until ctx ends.
func (c *dhcpClient) run(ctx context.Context) {
	var have lease
	var until time.Time
	for ctx.Err() == nil {
		l, err := c.exchange(ctx, have)
		now := time.Now()
		switch {
		case err == nil:
			if err = c.held(l); err == nil {
				have, until = l, now.Add(l.time)
				pause(ctx, l.time/2)
				continue
			}
		case have.address.IsValid() && (errors.Is(err, errNak) || now.After(until)):
			c.lost(have)
			have = lease{}
		}
		if ctx.Err() == nil {
			c.log.Warn("no address by DHCP yet", "interface", c.link.Name, "err", err)
		}
		pause(ctx, 5*time.Second)
	}
}

// exchange asks for a new lease, or to renew the one that there is.
func (c *dhcpClient) exchange(ctx context.Context, have lease) (lease, error) {
	s, err := openPacket(c.link.Index)
	if err != nil {
		return lease{}, err
	}
	defer s.close()
	ask := dhcpAsk{kind: dhcpRequest, id: rand.Uint32(), mac: [6]byte(c.link.HardwareAddr), name: c.name}
	if have.address.IsValid() {
		ask.current = have.address.Addr()
		return c.ask(ctx, s, ask, dhcpAck)
	}
	ask.kind = dhcpDiscover
	offer, err := c.ask(ctx, s, ask, dhcpOffer)
	if err != nil {
		return lease{}, err
	}
	ask.kind, ask.wanted, ask.server = dhcpRequest, offer.address.Addr(), offer.server
	return c.ask(ctx, s, ask, dhcpAck)
}

// ask sends a message up to four times, each time waiting longer, until the wanted answer is there.
func (c *dhcpClient) ask(ctx context.Context, s *packetSocket, a dhcpAsk, want byte) (lease, error) {
	begin := time.Now()
	for wait := time.Second; wait <= 8*time.Second; wait *= 2 {
		a.duration = time.Since(begin)
		if err := s.send(udpPacket(a.current, a.encode())); err != nil {
			return lease{}, err
		}
		for end := time.Now().Add(wait); ctx.Err() == nil; {
			p, err := s.receive(time.Until(end))
			if err != nil {
				return lease{}, err
			}
			if p == nil {
				break
			}
			l, err := parseDHCP(p, a.mac)
			if err != nil || l.id != a.id {
				continue // of another exchange, or broken: wait for ours
			}
			if l.kind == dhcpNak {
				return lease{}, errNak
			}
			if l.kind == want {
				return l, nil
			}
		}
	}
	return lease{}, errors.Join(errors.New("no DHCP server answers"), ctx.Err())
}

// packetSocket sends and receives IPv4 packets of one interface, without Ethernet headers.
type packetSocket struct{ fd, index int }

func openPacket(index int) (*packetSocket, error) {
	proto := int(htons(unix.ETH_P_IP))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	s := &packetSocket{fd: fd, index: index}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: index}); err != nil {
		s.close()
		return nil, fmt.Errorf("bind packet socket: %w", err)
	}
	return s, nil
}

func (s *packetSocket) close() { _ = unix.Close(s.fd) }

func (s *packetSocket) send(p []byte) error {
	to := &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_IP), Ifindex: s.index, Halen: 6}
	copy(to.Addr[:], []byte{255, 255, 255, 255, 255, 255})
	return unix.Sendto(s.fd, p, 0, to)
}

// receive waits for the next packet from a DHCP server and returns its payload; nil when the time is over.
func (s *packetSocket) receive(wait time.Duration) ([]byte, error) {
	buf := make([]byte, 4096)
	for end := time.Now().Add(wait); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil, nil
		}
		fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if n == 0 || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		n, _, err = unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if p, ok := udpPayload(buf[:n]); ok {
			return p, nil
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// pause waits, at most until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
