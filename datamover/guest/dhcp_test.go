package guest

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/boundary"
)

var testMAC = [6]byte{0x52, 0x54, 0, 0x12, 0x34, 0x56}

// answer is a server's message with the given options behind the message type.
func answer(kind byte, options ...byte) []byte {
	p := make([]byte, dhcpHead)
	p[0], p[1], p[2] = 2, 1, 6
	binary.BigEndian.PutUint32(p[4:], 0x01020304)
	copy(p[16:], []byte{192, 0, 2, 9})
	copy(p[28:], testMAC[:])
	copy(p[236:], dhcpCookie[:])
	p = append(p, optType, 1, kind)
	return append(append(p, options...), optEnd)
}

var fullAnswer = answer(dhcpAck, 1, 4, 255, 255, 255, 0, 3, 4, 192, 0, 2, 1, 6, 8, 192, 0, 2, 2, 192, 0, 2, 3, 0, 26, 2, 5, 120, 51, 4, 0, 0, 14, 16,
	54, 4, 192, 0, 2, 1, 42, 4, 192, 0, 2, 4)

func TestParseDHCP(t *testing.T) {
	want := lease{kind: dhcpAck, id: 0x01020304, address: netip.MustParsePrefix("192.0.2.9/24"), gateway: netip.MustParseAddr("192.0.2.1"),
		server: netip.MustParseAddr("192.0.2.1"), dns: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.3")},
		ntp: []netip.Addr{netip.MustParseAddr("192.0.2.4")}, mtu: 1400, time: time.Hour}
	got, err := parseDHCP(fullAnswer, testMAC)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, want, cmp.AllowUnexported(lease{}), comparePrefix); diff != "" {
		t.Error(diff)
	}
	mask := []byte{1, 4, 255, 255, 0, 255}
	for _, tt := range []struct {
		name string
		p    []byte
		mac  [6]byte
	}{
		{"for another machine", fullAnswer, [6]byte{1}},
		{"a request", append([]byte{1}, fullAnswer[1:]...), testMAC},
		{"short", fullAnswer[:dhcpHead-1], testMAC},
		{"no mask", answer(dhcpOffer), testMAC},
		{"mask with holes", answer(dhcpOffer, mask...), testMAC},
		{"option beyond the end", answer(dhcpOffer, 1, 200, 255), testMAC},
		{"a client's type", answer(dhcpDiscover, 1, 4, 255, 255, 255, 0), testMAC},
	} {
		if l, err := parseDHCP(tt.p, tt.mac); err == nil {
			t.Errorf("%s: taken as %+v", tt.name, l)
		}
	}
	if l, err := parseDHCP(answer(dhcpNak), testMAC); err != nil || l.kind != dhcpNak {
		t.Errorf("a refusal is read as %+v, %v", l, err)
	}
}

// TestAskCarriesWhatServersNeed reads a request back as a server would.
func TestAskCarriesWhatServersNeed(t *testing.T) {
	ask := dhcpAsk{kind: dhcpRequest, id: 7, mac: testMAC, name: "m1", wanted: netip.MustParseAddr("192.0.2.9"), server: netip.MustParseAddr("192.0.2.1")}
	packet := udpPacket(netip.Addr{}, ask.encode())
	if checksum(packet[:20]) != 0xffff {
		t.Error("the IPv4 header's checksum is wrong")
	}
	p := packet[28:]
	got := map[byte]string{}
	if err := dhcpOptions(p[dhcpHead:], func(code byte, v []byte) { got[code] = string(v) }); err != nil {
		t.Fatal(err)
	}
	want := map[byte]string{optType: "\x03", optAddress: "\xc0\x00\x02\x09", optServer: "\xc0\x00\x02\x01", optHostName: "m1",
		optClientID: "\x01" + string(testMAC[:]), optParameters: string([]byte{optMask, optRouter, optDNS, optMTU, optLease, optNTP})}
	if diff := cmp.Diff(got, want); diff != "" {
		t.Error(diff)
	}
	if p[10]&0x80 == 0 {
		t.Error("the answer is not asked for by broadcast, though there is no address yet")
	}
	ask.current = ask.wanted
	if p := ask.encode(); p[10] != 0 || p[12] != 192 {
		t.Error("a renewal does not carry the address")
	}
}

func TestUDPPayload(t *testing.T) {
	p := udpPacket(netip.Addr{}, []byte("hello"))
	binary.BigEndian.PutUint16(p[20:], 67)
	binary.BigEndian.PutUint16(p[22:], 68)
	if got, ok := udpPayload(append(p, 0, 0)); !ok || string(got) != "hello" {
		t.Errorf("got %q, %v", got, ok)
	}
	for name, change := range map[string]func(p []byte){
		"fragment":      func(p []byte) { p[6] = 0x20 },
		"TCP":           func(p []byte) { p[9] = 6 },
		"other port":    func(p []byte) { p[23] = 69 },
		"long length":   func(p []byte) { p[24] = 0xff },
		"short header":  func(p []byte) { p[0] = 0x44 },
		"IPv6":          func(p []byte) { p[0] = 0x65 },
		"header beyond": func(p []byte) { p[0] = 0x4f },
	} {
		q := append([]byte{}, p...)
		change(q)
		if _, ok := udpPayload(q); ok {
			t.Errorf("%s is taken for an answer", name)
		}
	}
}

func FuzzParseDHCP(f *testing.F) {
	for p := range boundary.Binary(fullAnswer[230:]) {
		f.Add(append(fullAnswer[:230:230], p...))
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := parseDHCP(p, testMAC)
		if err == nil && l.kind != dhcpNak && (!l.address.IsValid() || l.time < time.Minute || l.mtu != 0 && l.mtu < 576) {
			t.Errorf("%+v is no lease to use", l)
		}
		udpPayload(p)
	})
}
