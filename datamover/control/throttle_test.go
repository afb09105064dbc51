package control

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestThrottle: what goes over a connection, in both directions together, keeps to the limit, which may change meanwhile.
func TestThrottle(t *testing.T) {
	const data = 1 << 20
	synctest.Test(t, func(t *testing.T) {
		var th throttle
		th.set(64 << 10)
		a, b := net.Pipe()
		life, end := context.WithCancel(t.Context())
		c := &throttled{Conn: a, tokens: th.limiter(), life: life, end: end}
		go func() { _, _ = io.Copy(b, io.LimitReader(b, data)) }() // back again
		took := func() time.Duration {
			begin := time.Now()
			go func() {
				if _, err := c.Write(make([]byte, data)); err != nil {
					t.Error(err)
				}
			}()
			if _, err := io.ReadFull(c, make([]byte, data)); err != nil {
				t.Fatal(err)
			}
			return time.Since(begin)
		}
		// 2 MiB at 64 KiB a second, but for the first piece; the bubble's clock is exact.
		if got := took(); got < 31*time.Second || got > 32*time.Second {
			t.Errorf("2 MiB at 64 KiB a second took %v", got)
		}
		th.set(0)
		go func() { _, _ = io.Copy(b, io.LimitReader(b, data)) }()
		if got := took(); got != 0 {
			t.Errorf("without a limit it took %v", got)
		}
		th.set(1) // and who closes a connection does not wait for its turn
		written := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, data))
			written <- err
		}()
		synctest.Wait()
		_ = c.Close()
		if err := <-written; !errors.Is(err, net.ErrClosed) {
			t.Errorf("Write on a closed connection = %v", err)
		}
		_ = b.Close()
	})
}
