package fleet_test

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/control"
	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// begun is a transfer under way.
type begun struct {
	res    agent.BackupResult
	err    error
	done   chan struct{}
	cancel context.CancelFunc
	first  chan transfer.Progress
}

// backup gives a transfer to the only mover, which may be done with it at once or not have got it yet.
func (m *manager) backup(id string) *begun {
	ctx, cancel := context.WithCancel(context.Background())
	b := &begun{done: make(chan struct{}), cancel: cancel, first: make(chan transfer.Progress, 1)}
	mover := m.fleet.Mover(m.id())
	go func() {
		defer close(b.done)
		b.res, b.err = mover.Backup(ctx, agent.BackupTask{ID: id, Disk: "vda"}, func(p transfer.Progress) {
			select {
			case b.first <- p:
			default:
			}
		})
	}()
	m.t.Cleanup(func() { cancel(); <-b.done })
	return b
}

// running waits until the mover is at work on it.
func (b *begun) running(t *testing.T) transfer.Progress {
	t.Helper()
	select {
	case p := <-b.first:
		return p
	case <-b.done:
		t.Fatalf("the transfer ended: %v", b.err)
	case <-time.After(patience):
		t.Fatal("the transfer does not begin")
	}
	return transfer.Progress{}
}

func (b *begun) wait(t *testing.T) (agent.BackupResult, error) {
	t.Helper()
	select {
	case <-b.done:
	case <-time.After(patience):
		t.Fatal("the transfer does not end")
	}
	return b.res, b.err
}

func TestTransfer(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	b := m.backup("a")
	want := transfer.Progress{BytesTotal: 10, BytesRead: 1, Bottleneck: transfer.BottleneckSource, ETA: time.Second}
	if p := b.running(t); p != want {
		t.Errorf("progress %+v", p)
	}
	got, err := m.fleet.Get(t.Context(), "m1")
	check(t, err)
	if got.Transfers != 1 {
		t.Errorf("%d transfers", got.Transfers)
	}
	close(v.work.release)
	res, err := b.wait(t)
	if err != nil || res.BytesRead != 7 {
		t.Errorf("Backup = %+v, %v", res, err)
	}
	r, err := m.fleet.Mover(m.id()).Restore(t.Context(), agent.RestoreTask{ID: "b"}, nil)
	if err != nil || !r.Verified {
		t.Errorf("Restore = %+v, %v", r, err)
	}
	if begun, ended := v.work.times("a"); begun != 1 || ended != 1 {
		t.Errorf("begun %d times, ended %d times", begun, ended)
	}
}

func TestFailedTransferKeepsItsWords(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	v.work.fail = fault.New(fault.Corrupt, "read disk", "vda", "it is broken").Explain("meaning", "advice")
	close(v.work.release)
	_, err := m.backup("a").wait(t)
	meaning, advice := fault.Explanation(err)
	if fault.KindOf(err) != fault.Corrupt || err.Error() != v.work.fail.Error() || meaning != "meaning" || advice != "advice" {
		t.Errorf("error %v (%q, %q)", err, meaning, advice)
	}
}

func TestCancelledTransfer(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	b := m.backup("a")
	b.running(t)
	b.cancel()
	if _, err := b.wait(t); fault.KindOf(err) != fault.Canceled {
		t.Errorf("error %v", err)
	}
	if begun, ended := v.work.times("a"); begun != 1 || ended != 1 {
		t.Errorf("begun %d times, ended %d times: the call returned before the mover had ended", begun, ended)
	}
}

// TestMoreThanItsSlots: a mover refuses what it has no slot for, and the manager may try elsewhere.
func TestMoreThanItsSlots(t *testing.T) {
	m := newManager(t, fleet.Timing{})
	v := newMover(t, m, m.token(fleet.NewToken{}))
	v.config.Slots = 1
	v.start()
	m.log.await("mover connected", 1)
	m.backup("a").running(t)
	_, err := m.backup("b").wait(t)
	wantFault(t, err, fault.Transient, "slots of the mover are in use")
	if !errors.Is(err, fleet.ErrRefused) {
		t.Errorf("%v does not say that another mover may do it", err)
	}
}

// TestFullMover: a mover that has refused a transfer for want of a slot is not asked again before something has changed,
// and then it is.
func TestFullMover(t *testing.T) {
	m := newManager(t, fleet.Timing{Heartbeat: time.Hour, Silence: 2 * time.Hour}) // no other try than the one looked for
	v := newMover(t, m, m.token(fleet.NewToken{}))
	v.config.Slots = 1
	v.start()
	m.log.await("mover connected", 1)
	first := m.backup("a")
	first.running(t)
	if _, err := m.backup("b").wait(t); !errors.Is(err, fleet.ErrRefused) {
		t.Fatalf("error %v", err)
	}
	words, found := m.waits(t.Context(), fleet.Wish{Mover: "m1", Export: hypervisors.Export{Transport: hypervisors.TransportNBD}},
		fleet.Candidate{ID: "built-in", Name: "built-in", BuiltIn: true, State: fleet.Online, Slots: 1}) // the manager's own count has nothing against it
	if !strings.Contains(words, "m1: it says that it has no slot free") {
		t.Errorf("waits: %q", words)
	}
	close(v.work.release)
	_, err := first.wait(t)
	check(t, err)
	check(t, <-found)
}

// TestMoverIsResumedMeanwhile: a mover that is given transfers again while one is looked for is found, also if it was read as drained.
func TestMoverIsResumedMeanwhile(t *testing.T) {
	m := newManager(t, fleet.Timing{Heartbeat: time.Hour, Silence: 2 * time.Hour}) // no other try than the one looked for
	v := newMover(t, m, m.token(fleet.NewToken{}))
	v.config.Facts = func() *pb.Facts {
		f := control.FactsOf([]string{"nbd"}, nil)
		f.MachineUuid = "machine"
		return f
	}
	v.start()
	m.log.await("mover connected", 1)
	drain := func(drain bool) {
		_, err := m.fleet.Drain(t.Context(), fleet.Who{User: "ann"}, "m1", drain)
		check(t, err)
	}
	drain(true)
	wish := fleet.Wish{Export: hypervisors.Export{Transport: hypervisors.TransportNBD}}
	own := fleet.Candidate{ID: "built-in", Name: "built-in", BuiltIn: true, State: fleet.Online, Slots: 1, Transports: []string{"nbd"}}
	first, err := m.fleet.Find(t.Context(), wish, own, nil, nil)
	check(t, err)
	defer first.Release()
	var once sync.Once
	locate := func(string) (host, connection string) { // asked when the movers have been read
		once.Do(func() { drain(false) })
		return "", ""
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := m.fleet.Find(ctx, wish, own, locate, nil)
	check(t, err)
	defer p.Release()
	if p.Mover.Name != "m1" {
		t.Errorf("the place is on %s, want m1", p.Mover.Name)
	}
}

// TestMoverRestarts: what an earlier process had has failed, and says that it may be begun anew.
func TestMoverRestarts(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	b := m.backup("a")
	b.running(t)
	second := newMover(t, m, "")
	second.config.StateDir = v.config.StateDir
	second.start()
	m.log.await("mover connected", 2)
	_, err := b.wait(t)
	if !errors.Is(err, fleet.ErrLost) || !fault.Retryable(err) {
		t.Errorf("error %v", err)
	}
	// The first process was told that the second one counts, and does not fight for its place.
	superseded := v.ends()
	wantFault(t, superseded, fault.Conflict, "another process has taken this mover's place")
	if !errors.Is(superseded, control.ErrDismissed) {
		t.Error("the first process would be started again")
	}
	a := m.audited("mover.supersede")
	if len(a) != 1 || a[0].Source != "127.0.0.1" {
		t.Errorf("audit %+v", a)
	}
	if _, ended := v.work.times("a"); ended != 1 {
		t.Error("the first process did not end its transfer")
	}
}

// TestManagerRestarts: the mover comes back by itself, and what the new process does not know is cancelled.
func TestManagerRestarts(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	b := m.backup("a")
	b.running(t)
	m.end()
	b.cancel()
	l, err := net.Listen("tcp", m.address)
	check(t, err)
	m.start(l)
	m.log.await("mover connected", 2)
	v.log.await("transfer ended", 1)
	if begun, ended := v.work.times("a"); begun != 1 || ended != 1 {
		t.Errorf("begun %d times, ended %d times", begun, ended)
	}
	close(v.work.release)
	if res, err := m.backup("b").wait(t); err != nil || res.BytesRead != 7 {
		t.Errorf("the next one: %+v, %v", res, err)
	}
}

func TestLostMover(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{Lost: time.Second})
	b := m.backup("a")
	b.running(t)
	check(t, v.end())
	_, err := b.wait(t)
	if !errors.Is(err, fleet.ErrLost) {
		t.Errorf("error %v", err)
	}
	_, err = m.backup("b").wait(t) // to one that is not there
	if !errors.Is(err, fleet.ErrLost) {
		t.Errorf("error %v", err)
	}
}

func TestRevokedDuringATransfer(t *testing.T) {
	m, _ := enrolled(t, fleet.Timing{})
	b := m.backup("a")
	b.running(t)
	_, err := m.fleet.Revoke(t.Context(), fleet.Who{User: "admin"}, "m1")
	check(t, err)
	_, err = b.wait(t)
	if !errors.Is(err, fleet.ErrLost) {
		t.Errorf("error %v", err)
	}
}

func TestDrain(t *testing.T) {
	m, v := enrolled(t, fleet.Timing{})
	b := m.backup("a")
	b.running(t)
	who := fleet.Who{User: "admin"}
	for _, tt := range []struct {
		drain bool
		want  fleet.State
	}{{true, fleet.Draining}, {true, fleet.Draining}, {false, fleet.Online}, {true, fleet.Draining}} {
		got, err := m.fleet.Drain(t.Context(), who, "m1", tt.drain)
		check(t, err)
		if got.State != tt.want {
			t.Errorf("drain %v: %v, want %v", tt.drain, got.State, tt.want)
		}
	}
	close(v.work.release)
	_, err := b.wait(t) // goes on
	check(t, err)
	got, err := m.fleet.Get(t.Context(), "m1")
	check(t, err)
	if got.State != fleet.Drained {
		t.Errorf("state %v", got.State)
	}
	if err := m.fleet.Remove(t.Context(), who, "m1"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("a connected mover was removed: %v", err)
	}
}
