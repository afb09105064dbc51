package fleet

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// control implements the service.
type control struct {
	pb.UnimplementedControlServer
	fleet *Fleet
}

// link is a mover's control stream.
type link struct {
	fleet       *Fleet
	mover       catalog.Mover
	incarnation string
	slots       int
	since       time.Time
	ends        time.Time     // of the certificate
	address     string        // of the other end of its connection
	gone        chan struct{} // closed when the stream's handler has ended

	mu    sync.Mutex
	queue []*pb.ToMover
	last  bool          // the queue ends with a goodbye
	told  bool          // its bandwidth; Fleet.mu
	wake  chan struct{} // one token: there is something in the queue
}

// received is what a stream's reader found.
type received struct {
	m   *pb.FromMover
	err error
}

// Attach implements the service.
func (c *control) Attach(s grpc.BidiStreamingServer[pb.FromMover, pb.ToMover]) error {
	return pb.Status(c.attach(s))
}

func (c *control) attach(s grpc.BidiStreamingServer[pb.FromMover, pb.ToMover]) error {
	ctx, f := s.Context(), c.fleet
	p, err := PeerOf(ctx)
	if err != nil {
		return err
	}
	over := make(chan struct{})
	defer close(over)
	in := read(s, over)
	var seen uint64
	hello, err := awaitHello(ctx, in, f.timing.Silence)
	if err != nil {
		return err
	}
	seen++
	m := p.Mover
	m.Facts, m.Slots, m.Source = factsOf(hello.GetFacts()), max(1, min(int(hello.GetSlots()), maxSlots)), p.Source
	if err := f.catalog.SeeMover(ctx, m); err != nil {
		return err
	}
	l := &link{
		fleet: f, mover: m, incarnation: hello.GetIncarnation(), slots: m.Slots, since: time.Now(), ends: p.ends, address: p.address,
		gone: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	defer close(l.gone)
	l.push(&pb.ToMover{Body: &pb.ToMover_Welcome{Welcome: &pb.Welcome{
		Name: m.Name, Version: f.version, ManagerTime: time.Now().UnixMilli(),
		HeartbeatMs: f.timing.Heartbeat.Milliseconds(), SilenceMs: f.timing.Silence.Milliseconds(), Drain: m.Drained,
	}}})
	if err := f.attach(ctx, l, hello); err != nil {
		return err
	}
	defer f.detach(l)
	f.log.InfoContext(ctx, "mover connected", "mover", m.Name, "source", m.Source, "version", m.Facts.Version,
		"running", len(hello.GetRunning()), "results", len(hello.GetResults()))
	err = l.work(ctx, s, in, seen)
	f.log.InfoContext(ctx, "mover disconnected", "mover", m.Name, "source", m.Source, "err", err)
	return err
}

// maxSlots bounds what a mover may ask for.
const maxSlots = 64

// read passes on what comes in until the stream or its handler has ended.
func read(s grpc.BidiStreamingServer[pb.FromMover, pb.ToMover], over <-chan struct{}) <-chan received {
	in := make(chan received)
	go func() {
		for {
			m, err := s.Recv()
			select {
			case in <- received{m, err}:
			case <-over:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return in
}

func awaitHello(ctx context.Context, in <-chan received, limit time.Duration) (*pb.Hello, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-timer.C:
		return nil, fault.New(fault.Transient, "attach mover", "", "it says nothing")
	case r := <-in:
		if r.err != nil {
			return nil, r.err
		}
		hello := r.m.GetHello()
		if hello == nil || r.m.GetSeq() != 1 || hello.GetIncarnation() == "" || len(hello.GetIncarnation()) > 64 {
			return nil, fault.New(fault.Invalid, "attach mover", "", "its first message is no greeting")
		}
		return hello, nil
	}
}

// push queues a message.
func (l *link) push(m *pb.ToMover) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last {
		return
	}
	l.queue = append(l.queue, m)
	l.last = m.GetGoodbye() != nil
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// end queues the last message.
func (l *link) end(reason pb.Goodbye_Reason, message string) {
	l.push(&pb.ToMover{Body: &pb.ToMover_Goodbye{Goodbye: &pb.Goodbye{Reason: reason, Message: message}}})
}

// take empties the queue.
func (l *link) take() (messages []*pb.ToMover, last bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	messages, l.queue = l.queue, nil
	return messages, l.last
}

// work sends what is queued and handles what comes in, until the stream breaks or goodbye was said.
func (l *link) work(ctx context.Context, s grpc.BidiStreamingServer[pb.FromMover, pb.ToMover], in <-chan received, seen uint64) error {
	t := l.fleet.timing
	beat := time.NewTicker(t.Heartbeat)
	defer beat.Stop()
	silence := time.NewTimer(t.Silence)
	defer silence.Stop()
	expiry := time.NewTimer(time.Until(l.ends))
	defer expiry.Stop()
	var sent uint64
	send := func(m *pb.ToMover) error {
		sent++
		m.Seq, m.Ack = sent, seen
		return s.Send(m)
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-silence.C:
			return fault.New(fault.Transient, "talk to mover", l.mover.Name, "it has said nothing for %v", t.Silence)
		case <-expiry.C:
			return fault.New(fault.Denied, "talk to mover", l.mover.Name, "its certificate has expired").Explain(
				"The mover has not renewed its certificate in time.", freshToken)
		case <-beat.C:
			if err := send(&pb.ToMover{Body: &pb.ToMover_Heartbeat{Heartbeat: &pb.Heartbeat{}}}); err != nil {
				return err
			}
		case <-l.wake:
			messages, last := l.take()
			for _, m := range messages {
				if err := send(m); err != nil {
					return err
				}
			}
			if last {
				return nil
			}
		case r := <-in:
			if r.err != nil {
				return r.err
			}
			seen++
			if r.m.GetSeq() != seen || r.m.GetAck() > sent {
				return fault.New(fault.Invalid, "talk to mover", l.mover.Name, "message %d acknowledging %d, expected %d and at most %d",
					r.m.GetSeq(), r.m.GetAck(), seen, sent)
			}
			silence.Reset(t.Silence)
			l.handle(r.m)
		}
	}
}

func (l *link) handle(m *pb.FromMover) {
	switch b := m.GetBody().(type) {
	case *pb.FromMover_Progress:
		l.fleet.progressed(l.mover.ID, b.Progress)
	case *pb.FromMover_Result:
		l.fleet.ended(l, b.Result)
	case *pb.FromMover_Refused:
		l.fleet.refused(l, b.Refused)
	}
}

// attach makes a link the mover's, and brings what was given to the mover and what it has into agreement.
func (f *Fleet) attach(ctx context.Context, l *link, hello *pb.Hello) error {
	f.mu.Lock()
	if f.stopping {
		f.mu.Unlock()
		return fault.New(fault.Transient, "attach mover", l.mover.Name, "the manager stops")
	}
	old := f.links[l.mover.ID]
	f.links[l.mover.ID] = l
	f.reconcile(l, hello)
	f.mu.Unlock()
	// A revocation between the look-up of the mover and now found no link to cut.
	if _, err := f.admit(ctx, l.mover.ID); err != nil {
		f.detach(l)
		if old != nil { // nobody looks for it here any more: it comes again and says what it has
			old.end(pb.Goodbye_REASON_UNSPECIFIED, "Another stream of this mover was opened and failed.")
		}
		return err
	}
	switch {
	case old == nil:
	case old.incarnation == l.incarnation:
		old.end(pb.Goodbye_REASON_UNSPECIFIED, "This mover has opened another stream.")
	default:
		old.end(pb.Goodbye_REASON_SUPERSEDED, fmt.Sprintf(
			"Another process has connected with this mover's certificate, from %s; the newer one counts.", l.mover.Source))
		f.Audit(ctx, catalog.AuditEntry{
			Actor: "mover " + l.mover.Name, Source: l.mover.Source, Action: "mover.supersede", Subject: l.mover.ID,
			Detail: "was connected from " + old.mover.Source + "; if nobody restarted this mover, its certificate is stolen: revoke it",
		})
	}
	f.applyLimits()
	f.poke()
	return nil
}

// reconcile compares what this mover was given with what it says it has. f.mu is held.
func (f *Fleet) reconcile(l *link, hello *pb.Hello) {
	known := map[string]bool{}
	for _, r := range hello.GetResults() {
		known[r.GetTransfer()] = true
		f.finish(l, r)
	}
	for _, id := range hello.GetRunning() {
		known[id] = true
		if t := f.transfers[id]; t == nil || t.mover != l.mover.ID || t.cancelled {
			l.push(cancelOf(id))
		}
	}
	for id, t := range f.transfers {
		switch {
		case t.mover != l.mover.ID || known[id]:
		case t.cancelled:
			t.end(outcome{err: fault.New(fault.Canceled, "transfer", id, "it was cancelled")})
		case t.incarnation == "" || t.incarnation == l.incarnation:
			f.give(l, t)
		default:
			t.end(outcome{err: lost(l.mover.Name, "its process ended during the transfer and another one has taken its place")})
		}
	}
}

func cancelOf(id string) *pb.ToMover {
	return &pb.ToMover{Body: &pb.ToMover_Cancel{Cancel: &pb.Cancel{Transfer: id}}}
}

// detach forgets a link unless another one has taken its place.
func (f *Fleet) detach(l *link) {
	f.mu.Lock()
	if f.links[l.mover.ID] == l {
		delete(f.links, l.mover.ID)
	}
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), goodbyeTime)
	defer cancel()
	if err := f.catalog.TouchMover(ctx, l.mover.ID); err != nil && fault.KindOf(err) != fault.NotFound {
		f.log.Warn("mover's last sight was not stored", "mover", l.mover.Name, "err", err)
	}
	f.poke()
}

// poke tells every waiting transfer to look at its mover again.
func (f *Fleet) poke() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range f.transfers {
		select {
		case t.poked <- struct{}{}:
		default:
		}
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// Connected returns the ids of the movers that have a stream, sorted.
func (f *Fleet) Connected() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := make([]string, 0, len(f.links))
	for id := range f.links {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
