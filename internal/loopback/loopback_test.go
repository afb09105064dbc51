package loopback

import (
	"fmt"
	"net"
	"os"
	"testing"
)

// TestPortIsNobodys: a port can be listened on as often as one likes, and is none that a connection gets.
func TestPortIsNobodys(t *testing.T) {
	p, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		t.Skip(err)
	}
	var first, last int
	if _, err := fmt.Sscan(string(p), &first, &last); err != nil {
		t.Fatal(err)
	}
	if first < lowest+enough {
		t.Skipf("connections get ports from %d on here", first)
	}
	for range 50 {
		port, err := Port()
		if err != nil {
			t.Fatal(err)
		}
		if port >= first && port <= last {
			t.Errorf("port %d is between %d and %d", port, first, last)
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}
