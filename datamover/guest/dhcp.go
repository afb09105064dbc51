package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// The messages of DHCP (RFC 2131, options by RFC 2132) that a client needs: four-message exchange and renewal.

const (
	dhcpDiscover, dhcpOffer, dhcpRequest, dhcpAck, dhcpNak = 1, 2, 3, 5, 6

	optMask, optRouter, optDNS, optHostName, optMTU, optNTP = 1, 3, 6, 12, 26, 42
	optAddress, optLease, optType, optServer, optParameters = 50, 51, 53, 54, 55
	optClientID, optOverload, optEnd                        = 61, 52, 255
)

const dhcpHead = 240 // fixed part with the cookie

var dhcpCookie = [4]byte{99, 130, 83, 99}

// lease is what a server grants.
type lease struct {
	kind    byte // dhcpOffer, dhcpAck, dhcpNak
	id      uint32
	address netip.Prefix
	gateway netip.Addr
	server  netip.Addr
	dns     []netip.Addr
	ntp     []netip.Addr
	mtu     int
	time    time.Duration
}

// dhcpAsk is one message of the client.
type dhcpAsk struct {
	kind     byte
	id       uint32
	mac      [6]byte
	name     string
	current  netip.Addr // the address that is in use and to be renewed
	wanted   netip.Addr // the address that was offered
	server   netip.Addr // by this server
	duration time.Duration
}

func (a dhcpAsk) encode() []byte {
	p := make([]byte, dhcpHead, 320)
	p[0], p[1], p[2] = 1, 1, 6 // request, Ethernet, 6 bytes of address
	binary.BigEndian.PutUint32(p[4:], a.id)
	binary.BigEndian.PutUint16(p[8:], uint16(min(a.duration/time.Second, 0xffff)))
	if a.current.Is4() {
		copy(p[12:], a.current.AsSlice())
	} else {
		p[10] = 0x80 // answer by broadcast: there is no address yet
	}
	copy(p[28:], a.mac[:])
	copy(p[236:], dhcpCookie[:])
	add := func(code byte, value ...byte) { p = append(append(p, code, byte(len(value))), value...) }
	add(optType, a.kind)
	add(optClientID, append([]byte{1}, a.mac[:]...)...)
	if a.wanted.Is4() {
		add(optAddress, a.wanted.AsSlice()...)
	}
	if a.server.Is4() {
		add(optServer, a.server.AsSlice()...)
	}
	if n := min(len(a.name), 63); n > 0 {
		add(optHostName, []byte(a.name[:n])...)
	}
	add(optParameters, optMask, optRouter, optDNS, optMTU, optLease, optNTP)
	p = append(p, optEnd)
	return append(p, make([]byte, max(0, 300-len(p)))...) // some relays drop shorter ones
}

// parseDHCP reads a server's message to the given hardware address.
func parseDHCP(p []byte, mac [6]byte) (lease, error) {
	var l lease
	if len(p) < dhcpHead || [4]byte(p[236:240]) != dhcpCookie {
		return l, errors.New("it is no DHCP message")
	}
	if p[0] != 2 || p[1] != 1 || p[2] != 6 || [6]byte(p[28:34]) != mac {
		return l, errors.New("it is for somebody else")
	}
	l.id = binary.BigEndian.Uint32(p[4:])
	bits := -1
	err := dhcpOptions(p[dhcpHead:], func(code byte, v []byte) {
		switch {
		case code == optType && len(v) == 1:
			l.kind = v[0]
		case code == optMask && len(v) == 4:
			bits = maskBits(binary.BigEndian.Uint32(v))
		case code == optRouter && len(v) >= 4:
			l.gateway = netip.AddrFrom4([4]byte(v[:4]))
		case code == optServer && len(v) == 4:
			l.server = netip.AddrFrom4([4]byte(v))
		case code == optDNS:
			l.dns = addresses(v)
		case code == optNTP:
			l.ntp = addresses(v)
		case code == optMTU && len(v) == 2:
			l.mtu = int(binary.BigEndian.Uint16(v))
		case code == optLease && len(v) == 4:
			l.time = time.Duration(binary.BigEndian.Uint32(v)) * time.Second
		}
	})
	if err != nil {
		return l, err
	}
	if l.mtu < 576 {
		l.mtu = 0
	}
	switch l.kind {
	case dhcpNak:
		return l, nil
	case dhcpOffer, dhcpAck:
	default:
		return l, fmt.Errorf("message type %d is none that a server sends", l.kind)
	}
	a := netip.AddrFrom4([4]byte(p[16:20]))
	if bits < 0 || !a.IsGlobalUnicast() && !a.IsLinkLocalUnicast() {
		return l, fmt.Errorf("address %v with a mask of %d bits is none to use", a, bits)
	}
	if l.time < time.Minute {
		l.time = time.Minute
	}
	l.address = netip.PrefixFrom(a, bits)
	return l, nil
}

// dhcpOptions calls f for each option up to the end mark or the end of the message.
func dhcpOptions(p []byte, f func(code byte, value []byte)) error {
	for len(p) > 0 {
		code := p[0]
		switch code {
		case 0:
			p = p[1:]
			continue
		case optEnd:
			return nil
		}
		if len(p) < 2 || len(p) < 2+int(p[1]) {
			return fmt.Errorf("option %d is longer than the message", code)
		}
		f(code, p[2:2+int(p[1])])
		p = p[2+int(p[1]):]
	}
	return nil
}

// maskBits returns the length of a network mask, -1 for one with holes.
func maskBits(m uint32) int {
	n := 0
	for ; m&0x80000000 != 0; m <<= 1 {
		n++
	}
	if m != 0 || n == 0 {
		return -1
	}
	return n
}

func addresses(v []byte) (out []netip.Addr) {
	for ; len(v) >= 4; v = v[4:] {
		out = append(out, netip.AddrFrom4([4]byte(v[:4])))
	}
	return out
}

// udpPacket puts an IPv4 and a UDP header before a payload, from a client's port to a server's, from src to everybody.
func udpPacket(src netip.Addr, payload []byte) []byte {
	const head = 28
	p := make([]byte, head, head+len(payload))
	from := [4]byte{}
	if src.Is4() {
		from = src.As4()
	}
	p[0], p[8], p[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(head+len(payload)))
	copy(p[12:], from[:])
	copy(p[16:], []byte{255, 255, 255, 255})
	binary.BigEndian.PutUint16(p[10:], ^checksum(p[:20]))
	binary.BigEndian.PutUint16(p[20:], 68)
	binary.BigEndian.PutUint16(p[22:], 67)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload)))
	return append(p, payload...) // UDP's checksum may be left out in IPv4
}

func checksum(p []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(p); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// udpPayload returns the payload of an IPv4 packet that is UDP from a DHCP server's port to a client's. ok is false
// for all others. What it carries names the client and the exchange, so checksums, which virtual networks leave to
// hardware that is not there, are not looked at.
func udpPayload(p []byte) (payload []byte, ok bool) {
	if len(p) < 28 || p[0]>>4 != 4 || p[9] != 17 || binary.BigEndian.Uint16(p[6:])&0x3fff != 0 {
		return nil, false // another protocol, or a fragment
	}
	head := int(p[0]&15) * 4
	if head < 20 || len(p) < head+8 {
		return nil, false
	}
	u := p[head:]
	n := int(binary.BigEndian.Uint16(u[4:]))
	if binary.BigEndian.Uint16(u) != 67 || binary.BigEndian.Uint16(u[2:]) != 68 || n < 8 || n > len(u) {
		return nil, false
	}
	return u[8:n], true
}
