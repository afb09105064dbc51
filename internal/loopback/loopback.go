// Package loopback gives tests ports of 127.0.0.1 that a program is to listen on later, or again.
//
// It is for tests only. The port that the kernel chooses for a listener is one of those that it gives to everybody who does not ask for
// a certain one, so that, once nobody listens there, any process of the machine may get it. Its invariant: a port of this package is
// outside that range, where one has been left outside it.
package loopback

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
)

const (
	lowest = 10000 // below are those that services have
	enough = 1000  // ports below the kernel's range, for them to be worth trying
	tries  = 1000
)

// Listen listens on a port that stays free when the listener is closed: it can be listened on again.
func Listen() (net.Listener, error) {
	end := lowest + enough
	if p, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(p), &end)
	}
	for n := 0; n < tries && end >= lowest+enough; n++ {
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", lowest+rand.IntN(end-lowest))); err == nil {
			return l, nil
		}
	}
	return net.Listen("tcp", "127.0.0.1:0")
}

// Port returns a port that nobody listens on, for a program that wants to be told one.
func Port() (int, error) {
	l, err := Listen()
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
