//go:build linux

package guest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// The routing socket's messages, as rtnetlink(7) and netlink(7) describe them: a header of 16 bytes, a fixed part by
// kind, and attributes, each padded to 4 bytes. Numbers are in the machine's byte order.

// linkUp switches an interface on and sets its MTU if mtu is not 0.
func linkUp(index, mtu int) error {
	body := make([]byte, 16) // struct ifinfomsg
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	binary.NativeEndian.PutUint32(body[8:], unix.IFF_UP)
	binary.NativeEndian.PutUint32(body[12:], unix.IFF_UP)
	if mtu > 0 {
		body = attribute(body, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, uint32(mtu)))
	}
	return routeRequest("switch interface on", unix.RTM_NEWLINK, 0, body)
}

// setAddress gives an interface an address, or takes it away.
func setAddress(index int, p netip.Prefix, on bool) error {
	body := make([]byte, 8) // struct ifaddrmsg
	body[0], body[1] = family(p.Addr()), byte(p.Bits())
	binary.NativeEndian.PutUint32(body[4:], uint32(index))
	body = attribute(body, unix.IFA_LOCAL, p.Addr().AsSlice())
	body = attribute(body, unix.IFA_ADDRESS, p.Addr().AsSlice())
	if on {
		return routeRequest("set address "+p.String(), unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
	}
	return routeRequest("remove address "+p.String(), unix.RTM_DELADDR, 0, body)
}

// setDefaultRoute sends what goes elsewhere to a gateway.
func setDefaultRoute(index int, gateway netip.Addr) error {
	body := make([]byte, 12) // struct rtmsg
	body[0], body[4], body[5] = family(gateway), unix.RT_TABLE_MAIN, unix.RTPROT_BOOT
	body[6], body[7] = unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	flags := body[8:]
	binary.NativeEndian.PutUint32(flags, unix.RTNH_F_ONLINK) // gateways outside of the prefix are usual in clouds
	body = attribute(body, unix.RTA_GATEWAY, gateway.AsSlice())
	body = attribute(body, unix.RTA_OIF, binary.NativeEndian.AppendUint32(nil, uint32(index)))
	return routeRequest("set default route by "+gateway.String(), unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, body)
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func attribute(to []byte, kind uint16, value []byte) []byte {
	to = binary.NativeEndian.AppendUint16(to, uint16(4+len(value)))
	to = binary.NativeEndian.AppendUint16(to, kind)
	to = append(to, value...)
	return append(to, make([]byte, (4-len(value)%4)%4)...)
}

// routeRequest sends one request and waits for the kernel's answer to it.
func routeRequest(op string, kind, flags uint16, body []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", op, err)
		}
	}()
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(fd)) }()
	p := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	p = binary.NativeEndian.AppendUint16(p, kind)
	p = binary.NativeEndian.AppendUint16(p, flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	p = append(p, make([]byte, 8)...) // sequence and port: one request a socket
	if err := unix.Sendto(fd, append(p, body...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < unix.NLMSG_HDRLEN+4 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return errors.New("the kernel gave no answer to it")
	}
	if no := int32(binary.NativeEndian.Uint32(answer[unix.NLMSG_HDRLEN:])); no != 0 {
		return unix.Errno(-no)
	}
	return nil
}

// pickInterface returns the interface with an address, or the first one that is Ethernet. ok is false when there is
// none (yet).
func pickInterface(mac string) (out net.Interface, ok bool) {
	all, err := net.Interfaces()
	if err != nil {
		return out, false
	}
	for _, i := range all {
		if len(i.HardwareAddr) == 6 && i.Flags&net.FlagLoopback == 0 && (mac == "" || i.HardwareAddr.String() == mac) {
			return i, true
		}
	}
	return out, false
}
