package peers_test

import (
	"net"
	"sync"
	"testing"

	"github.com/cairn-backup/cairn/internal/postgrestest"
)

// link is a manager's way to the database, which can be cut.
type link struct {
	listener net.Listener
	socket   string
	done     sync.WaitGroup

	mu       sync.Mutex
	open     conns
	silent   chan struct{} // closed while nothing passes and nobody is told
	swallows int           // pieces that did not come through
}

func newLink(t *testing.T) *link {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{listener: l, socket: postgrestest.Socket(t), silent: make(chan struct{})}
	k.done.Go(k.accept)
	t.Cleanup(k.close)
	return k
}

func (k *link) port() string {
	_, port, _ := net.SplitHostPort(k.listener.Addr().String()) //nolint:errcheck // a listener's address
	return port
}

func (k *link) accept() {
	for {
		a, err := k.listener.Accept()
		if err != nil {
			return
		}
		b, err := (&net.Dialer{}).Dial("unix", k.socket)
		if err != nil {
			_ = a.Close()
			continue
		}
		k.open.add(a)
		k.open.add(b)
		k.done.Go(func() { k.copy(a, b) })
		k.done.Go(func() { k.copy(b, a) })
	}
}

// copy passes on what comes, until the link is cut: from then on it takes everything and passes nothing on.
func (k *link) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-k.silent:
			k.mu.Lock()
			k.swallows++
			k.mu.Unlock()
			continue
		default:
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// cut lets nothing through any more, and tells nobody.
func (k *link) cut() { close(k.silent) }

// swallowed is how many pieces did not come through.
func (k *link) swallowed() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.swallows
}

func (k *link) close() {
	_ = k.listener.Close()
	k.open.close()
	k.done.Wait()
}
