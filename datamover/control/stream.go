package control

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
)

var (
	errRenewed    = errors.New("the certificate is due for renewal")
	errSuperseded = errors.New("another process has taken this mover's place")
)

const (
	welcomeTime = 30 * time.Second // how long the manager may take to greet
	brokenTime  = 5 * time.Second  // how long the reason of a broken stream may take to arrive
	renewAgain  = time.Minute      // between two attempts to renew the certificate
)

type stream = grpc.BidiStreamingClient[pb.FromMover, pb.ToMover]

// session is one control stream.
type session struct {
	*machine
	s          stream
	sent, seen uint64
	told       map[string]bool // transfers whose results were sent in this stream
}

type received struct {
	m   *pb.ToMover
	err error
}

// attach opens a stream and works until it ends; worked says whether the manager has greeted.
func (m *machine) attach(ctx context.Context) (worked bool, err error) {
	d := m.dialer()
	conn, err := d.connect()
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := pb.NewControlClient(conn).Attach(ctx)
	if err != nil {
		return false, d.why("connect to manager", err)
	}
	n := &session{machine: m, s: s, told: map[string]bool{}}
	in, read := n.read(ctx)
	defer func() { cancel(); <-read }()
	welcome, err := n.greet(ctx, in)
	if err != nil {
		return false, d.why("connect to manager", err)
	}
	m.Log.InfoContext(ctx, "connected", "manager", m.Manager, "mover", welcome.GetName(), "version", welcome.GetVersion(), "drain", welcome.GetDrain())
	m.orphaned.Stop()
	m.tellClock(ctx, welcome.GetManagerTime())
	return true, d.why("talk to manager", n.work(ctx, welcome, in))
}

// read passes on what comes in; read is closed when its goroutine has ended.
func (n *session) read(ctx context.Context) (in chan received, read chan struct{}) {
	in, read = make(chan received), make(chan struct{})
	go func() {
		defer close(read)
		for {
			m, err := n.s.Recv()
			select {
			case in <- received{m, err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return in, read
}

func (n *session) send(m *pb.FromMover) error {
	n.sent++
	m.Seq, m.Ack = n.sent, n.seen
	return n.s.Send(m)
}

// next checks the order of what came in.
func (n *session) next(r received) (*pb.ToMover, error) {
	if r.err != nil {
		return nil, r.err
	}
	n.seen++
	if r.m.GetSeq() != n.seen || r.m.GetAck() > n.sent {
		return nil, fault.New(fault.Transient, "talk to manager", "", "message %d acknowledging %d, expected %d and at most %d",
			r.m.GetSeq(), r.m.GetAck(), n.seen, n.sent)
	}
	return r.m, nil
}

// greet says hello and waits for the manager to do so.
func (n *session) greet(ctx context.Context, in <-chan received) (*pb.Welcome, error) {
	ids, results := n.table.state()
	for _, r := range results {
		n.told[r.GetTransfer()] = true
	}
	if err := n.send(&pb.FromMover{Body: &pb.FromMover_Hello{Hello: &pb.Hello{
		Incarnation: n.incarnation, Facts: n.Facts(), Slots: int32(min(n.Slots, 1<<10)), Running: ids, Results: results,
	}}}); err != nil {
		return nil, n.broken(in, err)
	}
	limit := time.NewTimer(welcomeTime)
	defer limit.Stop()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-limit.C:
		return nil, fault.New(fault.Transient, "greet manager", "", "it does not answer")
	case r := <-in:
		m, err := n.next(r)
		if err != nil {
			return nil, err
		}
		w := m.GetWelcome()
		if w == nil || w.GetHeartbeatMs() <= 0 || w.GetSilenceMs() <= w.GetHeartbeatMs() {
			return nil, fault.New(fault.Transient, "greet manager", "", "its answer is no greeting")
		}
		return w, nil
	}
}

// broken returns why a stream could not be written to: only its reader is told.
func (n *session) broken(in <-chan received, err error) error {
	limit := time.After(brokenTime)
	for {
		select {
		case r := <-in:
			if r.err != nil {
				return r.err
			}
		case <-limit:
			return err
		}
	}
}

func (n *session) work(ctx context.Context, w *pb.Welcome, in <-chan received) error {
	beat := time.NewTicker(time.Duration(w.GetHeartbeatMs()) * time.Millisecond)
	defer beat.Stop()
	limit := time.Duration(w.GetSilenceMs()) * time.Millisecond
	silence := time.NewTimer(limit)
	defer silence.Stop()
	renew := time.NewTimer(time.Until(n.identity.Load().halfLife()))
	defer renew.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-silence.C:
			return fault.New(fault.Transient, "talk to manager", "", "it has said nothing for %v", limit)
		case <-renew.C:
			if err := n.renewNow(ctx); err != nil {
				return err
			}
			renew.Reset(renewAgain)
		case <-beat.C:
			err = n.send(&pb.FromMover{Body: &pb.FromMover_Heartbeat{Heartbeat: &pb.Heartbeat{}}})
		case <-n.table.news:
			err = n.tellNews()
		case r := <-in:
			var m *pb.ToMover
			if m, err = n.next(r); err == nil {
				silence.Reset(limit)
				err = n.handle(m)
			} else {
				return err
			}
		}
		if err != nil {
			if errors.Is(err, errGoodbye) {
				return err
			}
			return n.broken(in, err)
		}
	}
}

// renewNow tries to get a new certificate; errRenewed ends the stream, for one that shows it.
func (n *session) renewNow(ctx context.Context) error {
	before := n.identity.Load()
	if err := n.renewIfDue(ctx); err != nil {
		return err
	}
	if n.identity.Load() == before {
		return nil
	}
	return errRenewed
}

func (n *session) tellNews() error {
	results, progress := n.table.pending(n.told)
	for _, p := range progress {
		if err := n.send(&pb.FromMover{Body: &pb.FromMover_Progress{Progress: p}}); err != nil {
			return err
		}
	}
	for _, r := range results {
		n.told[r.GetTransfer()] = true
		if err := n.send(&pb.FromMover{Body: &pb.FromMover_Result{Result: r}}); err != nil {
			return err
		}
	}
	return nil
}

// errGoodbye ends a stream that the manager has ended.
var errGoodbye = errors.New("the manager has ended the stream")

func (n *session) handle(m *pb.ToMover) error {
	switch b := m.GetBody().(type) {
	case *pb.ToMover_Task:
		if err := n.table.begin(b.Task); err != nil {
			n.Log.Warn("task refused", "transfer_id", b.Task.GetTransfer(), "err", err)
			return n.send(&pb.FromMover{Body: &pb.FromMover_Refused{Refused: &pb.Refused{
				Transfer: b.Task.GetTransfer(), Fault: pb.FaultOf(err),
			}}})
		}
	case *pb.ToMover_Cancel:
		n.table.cancel(b.Cancel.GetTransfer())
	case *pb.ToMover_ResultTaken:
		n.table.take(b.ResultTaken.GetTransfer())
		delete(n.told, b.ResultTaken.GetTransfer())
	case *pb.ToMover_Drain:
		n.Log.Info("drain", "drain", b.Drain.GetDrain())
	case *pb.ToMover_Bandwidth:
		n.Log.Info("bandwidth", "read", b.Bandwidth.GetRead(), "network", b.Bandwidth.GetNetwork())
		n.network.set(b.Bandwidth.GetNetwork())
		if n.ReadLimit != nil {
			n.ReadLimit(b.Bandwidth.GetRead())
		}
	case *pb.ToMover_Goodbye:
		return goodbye(b.Goodbye)
	}
	return nil
}

func goodbye(g *pb.Goodbye) error {
	switch g.GetReason() {
	case pb.Goodbye_REASON_SUPERSEDED:
		return fault.Wrap(fault.Conflict, "stay connected", "", errors.Join(errGoodbye, errSuperseded, errors.New(g.GetMessage()))).Explain(
			"Two processes use this mover's key and certificate; the manager keeps the one that came last.",
			"If this machine was copied, give each copy a token of its own and remove its state directory. If nobody copied it, the key was stolen: run `cairn mover revoke`.")
	case pb.Goodbye_REASON_REVOKED:
		return fault.Wrap(fault.Denied, "stay connected", "", errors.Join(errGoodbye, errors.New(g.GetMessage()))).Explain(
			"An administrator has withdrawn this mover's access.",
			"If it is to work again, make a join token with `cairn mover token` and start the mover with it.")
	default:
		return fault.Wrap(fault.Transient, "stay connected", "", errors.Join(errGoodbye, errors.New(g.GetMessage())))
	}
}
