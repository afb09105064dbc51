package control

import (
	"context"
	"crypto/tls"
	"errors"
	"io/fs"
	"time"

	"google.golang.org/grpc"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
)

const callTime = 30 * time.Second

// current is the certificate to show.
func (m *machine) current() *tls.Certificate {
	i := m.identity.Load()
	return &tls.Certificate{Certificate: i.pair.Certificate[:1], PrivateKey: i.pair.PrivateKey, Leaf: i.pair.Leaf}
}

// loadOrEnrol returns the identity that the mover has, or gets it one.
func (m *machine) loadOrEnrol(ctx context.Context) (*identity, error) {
	i, err := loadIdentity(m.StateDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if m.Token == "" {
			return nil, fault.New(fault.Invalid, "enrol", m.Manager, "there is no identity in %s and no join token", m.StateDir).Explain(
				"A mover needs a join token the first time it starts.",
				"Run `cairn mover token` and start the mover with the line it prints. If this mover had an identity before, its state directory was lost: add --name NAME --replace.")
		}
		return m.enrol(ctx)
	case err != nil:
		return nil, err
	case i.fingerprint() != m.Fingerprint && m.Token != "":
		m.Log.InfoContext(ctx, "the manager is another one than before; the mover enrols with it", "manager", m.Manager)
		return m.enrol(ctx)
	case i.fingerprint() != m.Fingerprint:
		return nil, fault.New(fault.Denied, "load identity", m.StateDir, "it belongs to a manager with another fingerprint").Explain(
			"The mover was enrolled with another appliance than the one it is told to connect to.",
			"Correct the fingerprint, or give the mover a join token of the new appliance.")
	case time.Now().After(i.ends()) && m.Token != "":
		m.Log.InfoContext(ctx, "the certificate has expired; the mover enrols with its token", "manager", m.Manager)
		return m.enrol(ctx)
	case time.Now().After(i.ends()):
		return nil, fault.New(fault.Denied, "load identity", m.StateDir, "the certificate ended at %s, and this machine's clock says %s",
			i.ends().UTC().Format(time.RFC3339), time.Now().UTC().Format(time.RFC3339)).Explain(
			"The mover was off or without its manager for longer than its certificate lives, or this machine's clock is wrong.",
			"Check the clock. Then make a token with `cairn mover token --name NAME --replace` and start the mover with it.")
	}
	return i, nil
}

// enrol tries until there is an answer.
func (m *machine) enrol(ctx context.Context) (*identity, error) {
	key, err := pendingKey(m.StateDir)
	if err != nil {
		return nil, err
	}
	csr, err := requestFor(key)
	if err != nil {
		return nil, err
	}
	req := &pb.EnrolRequest{Token: m.Token, Csr: csr, Name: m.Name, Facts: m.Facts()}
	pause := &pause{longest: m.Backoff}
	for {
		res, err := m.askEnrol(ctx, req)
		if err == nil {
			m.Log.InfoContext(ctx, "enrolled", "manager", m.Manager, "mover", res.GetName(), "id", res.GetMoverId())
			m.tellClock(ctx, res.GetCertificate().GetManagerTime())
			return keep(m.StateDir, key, res.GetCertificate())
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if final(err) {
			return nil, dismissal(err)
		}
		wait := pause.next()
		m.Log.WarnContext(ctx, "not enrolled; it will be tried again", "manager", m.Manager, "in", wait, "err", err)
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func (m *machine) askEnrol(ctx context.Context, req *pb.EnrolRequest) (*pb.EnrolResponse, error) {
	d := &dialer{manager: m.Manager, fingerprint: m.Fingerprint}
	return call(ctx, d, "enrol with manager", func(ctx context.Context, conn *grpc.ClientConn) (*pb.EnrolResponse, error) {
		return pb.NewEnrolmentClient(conn).Enrol(ctx, req)
	})
}

// call makes one call over a connection of its own.
func call[T any](ctx context.Context, d *dialer, op string, do func(context.Context, *grpc.ClientConn) (T, error)) (T, error) {
	var none T
	conn, err := d.connect()
	if err != nil {
		return none, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	out, err := do(ctx, conn)
	if err != nil {
		return none, d.why(op, err)
	}
	return out, nil
}

// renewIfDue gets a new certificate after half the life of the one there is. What stands in the way is no error as long
// as that one is good.
func (m *machine) renewIfDue(ctx context.Context) error {
	now := m.identity.Load()
	if time.Now().Before(now.halfLife()) {
		return nil
	}
	fresh, err := m.renew(ctx)
	if err == nil {
		if err := m.show(fresh); err != nil {
			return err
		}
		m.Log.InfoContext(ctx, "certificate renewed", "manager", m.Manager, "ends", fresh.ends())
		return nil
	}
	if ctx.Err() != nil || final(err) && !errors.Is(err, errImpostor) {
		return dismissal(err)
	}
	if time.Now().After(now.ends()) {
		if fresh, err = m.loadOrEnrol(ctx); err != nil { // which says what to do
			return err
		}
		return m.show(fresh)
	}
	m.Log.WarnContext(ctx, "certificate not renewed; it will be tried again", "manager", m.Manager, "ends", now.ends(), "err", err)
	return nil
}

// show makes an identity the one that is shown from now on.
func (m *machine) show(i *identity) error {
	m.identity.Store(i)
	return m.data.redial()
}

func (m *machine) renew(ctx context.Context) (*identity, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	csr, err := requestFor(key)
	if err != nil {
		return nil, err
	}
	res, err := call(ctx, m.dialer(), "renew certificate at manager", func(ctx context.Context, conn *grpc.ClientConn) (*pb.RenewResponse, error) {
		return pb.NewEnrolmentClient(conn).Renew(ctx, &pb.RenewRequest{Csr: csr})
	})
	if err != nil {
		return nil, err
	}
	return keep(m.StateDir, key, res.GetCertificate())
}

// maxSkew is how far the two clocks may differ before somebody is told.
const maxSkew = 2 * time.Minute

func (m *machine) tellClock(ctx context.Context, managerMillis int64) {
	if skew := time.Until(time.UnixMilli(managerMillis)); managerMillis != 0 && skew.Abs() > maxSkew {
		m.Log.WarnContext(ctx, "this machine's clock and the manager's differ; certificates are judged by both, so let NTP set them",
			"manager", m.Manager, "ahead", skew.Round(time.Second))
	}
}
