package server

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
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

// TestCheckEndsTheWait: after a repair nobody waits for as long as was said before it. A check that fails changes nothing.
func TestCheckEndsTheWait(t *testing.T) {
	b := stillBench(t)
	later := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	broken := catalog.Breaker{ConnectionID: b.conn, Failures: 3, Opened: 2, OpenUntil: later, Reason: "it was off"}
	other := catalog.Breaker{ConnectionID: "conn_other", Failures: 3, OpenUntil: later}
	for _, row := range []catalog.Breaker{broken, other} {
		_, err := b.catalog.DB().ExecContext(t.Context(), "INSERT INTO breakers (connection_id, failures, opened, open_until, reason) VALUES (?, ?, ?, ?, ?)",
			row.ConnectionID, row.Failures, row.Opened, row.OpenUntil, row.Reason)
		if err != nil {
			t.Fatal(err)
		}
	}
	breaker := func(id string) catalog.Breaker {
		t.Helper()
		all, err := b.catalog.Breakers(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all[id]
	}
	b.platform.Inject(memplatform.OpCheck, &memplatform.Fault{Err: fault.New(fault.Transient, "check", "", "planted"), Times: 1})
	if _, err := b.CheckConnection(t.Context(), b.conn); err == nil || !breaker(b.conn).OpenUntil.Equal(later) {
		t.Errorf("a check that fails: %v, %+v", err, breaker(b.conn))
	}
	if _, err := b.CheckConnection(t.Context(), b.conn); err != nil {
		t.Fatal(err)
	}
	if got := breaker(b.conn); got.OpenUntil.After(time.Now()) || got.Failures != 3 || got.Opened != 2 {
		t.Errorf("after a check: %+v; one backup tries it, and a failure opens it for longer", got)
	}
	if got := breaker(other.ConnectionID); !got.OpenUntil.Equal(later) {
		t.Errorf("another connection's: %+v", got)
	}
}
