package server

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// pinned trusts the certificate that counted when it was opened, as a driver does that has read a file with a CA.
type pinned struct {
	hypervisors.Driver
	now     *atomic.Int32
	at      int32
	refused *atomic.Int32
}

func (p pinned) Check(ctx context.Context) (hypervisors.Health, error) {
	if p.now.Load() != p.at {
		p.refused.Add(1)
		return hypervisors.Health{}, fault.New(fault.Denied, "ask host", "here", "certificate signed by unknown authority")
	}
	return p.Driver.Check(ctx)
}

func TestCheckReadsAReplacedCAAnew(t *testing.T) {
	b := newBench(t)
	var now, refused atomic.Int32
	open := b.openers[memplatform.PlatformName]
	b.connections.mu.Lock() // what is open is opened under it
	b.openers[memplatform.PlatformName] = func(ctx context.Context, target Target) (hypervisors.Driver, error) {
		d, err := open(ctx, target)
		return pinned{d, &now, now.Load(), &refused}, err
	}
	b.connections.mu.Unlock()
	b.forgetDriver(t.Context(), b.conn)
	if _, err := b.CheckConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	now.Add(1)
	if _, err := b.CheckConnection(t.Context(), b.conn); err != nil || refused.Load() != 1 {
		t.Errorf("after the CA was replaced: %v, refused %d times", err, refused.Load())
	}
	if info, err := b.GetConnection(t.Context(), b.conn); err != nil || info.LastError != nil {
		t.Errorf("the connection is %+v, %v", info.LastError, err)
	}
	b.backup()
}
