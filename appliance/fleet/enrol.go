package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"net"
	"regexp"
	"time"

	"google.golang.org/grpc/peer"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/internal/fault"
)

// TokenPrefix makes join tokens recognisable to secret scanners.
const TokenPrefix = "cairnjoin_"

// The limits of a join token's life.
const (
	DefaultTokenLife = time.Hour
	MaxTokenLife     = 7 * 24 * time.Hour
)

// namePattern is what a mover may be called.
var namePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// NewToken says what token is wanted.
type NewToken struct {
	Name    string // of the mover; "" lets it choose
	Replace bool   // it takes the place of the mover with that name
	Life    time.Duration
	By      string // user
	Source  string
}

// IssueToken makes a join token; the secret is known only now.
func (f *Fleet) IssueToken(ctx context.Context, n NewToken) (catalog.JoinToken, string, error) {
	if n.Life == 0 {
		n.Life = DefaultTokenLife
	}
	switch {
	case n.Life < 0 || n.Life > MaxTokenLife:
		return catalog.JoinToken{}, "", fault.New(fault.Invalid, "create join token", n.Name, "it would be good for %v", n.Life).Explain(
			"A join token is good for at most seven days.", "Ask for a shorter time.")
	case n.Name != "" && !namePattern.MatchString(n.Name), n.Name == tickets.BuiltIn:
		return catalog.JoinToken{}, "", fault.New(fault.Invalid, "create join token", n.Name, "no mover can have this name").Explain(
			"Names are letters, digits, dots, dashes and underscores, at most 63, and \"built-in\" is the appliance's own mover.",
			"Choose another name.")
	case n.Name == "" && n.Replace:
		return catalog.JoinToken{}, "", fault.New(fault.Invalid, "create join token", "", "it names no mover to replace").Explain(
			"A token that replaces a mover has to name it.", "Give the name, too.")
	}
	secret := TokenPrefix + rand.Text()
	t := catalog.JoinToken{
		Hash: hashToken(secret), Name: n.Name, Replace: n.Replace, CreatedBy: n.By, ExpiresAt: time.Now().UTC().Add(n.Life),
	}
	if err := f.catalog.AddJoinToken(ctx, &t); err != nil {
		return t, "", err
	}
	f.Audit(ctx, catalog.AuditEntry{
		Actor: n.By, Source: n.Source, Action: "mover.token", Subject: n.Name, Detail: "good until " + t.ExpiresAt.Format(time.RFC3339),
	})
	return t, secret, nil
}

func hashToken(secret string) string {
	sum := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(sum[:])
}

// enrolment implements the service.
type enrolment struct {
	pb.UnimplementedEnrolmentServer
	fleet    *Fleet
	attempts *quota
}

// Enrol implements the service.
func (e *enrolment) Enrol(ctx context.Context, r *pb.EnrolRequest) (*pb.EnrolResponse, error) {
	source := sourceOf(ctx)
	if ok, _ := e.attempts.allow(source, e.fleet.now()); !ok {
		return nil, pb.Status(fault.New(fault.Transient, "enrol", "", "too many attempts").Explain(
			"Attempts to enrol are slowed down, so that join tokens cannot be guessed.", "Wait a minute and try again."))
	}
	m, cert, err := e.enrol(ctx, source, r)
	entry := catalog.AuditEntry{Actor: "", Source: source, Action: "mover.enrol", Subject: m.Name, Detail: m.ID}
	if err != nil {
		entry.Refused, entry.Detail = true, brief(err.Error())
		e.fleet.Audit(ctx, entry)
		return nil, pb.Status(err)
	}
	e.fleet.Audit(ctx, entry)
	return &pb.EnrolResponse{MoverId: m.ID, Name: m.Name, Certificate: cert}, nil
}

func (e *enrolment) enrol(ctx context.Context, source string, r *pb.EnrolRequest) (catalog.Mover, *pb.Certificate, error) {
	m := catalog.Mover{Name: brief(r.GetName()), Facts: factsOf(r.GetFacts()), Source: source}
	if m.Name == "" {
		m.Name = m.Facts.Hostname
	}
	if !namePattern.MatchString(m.Name) || m.Name == tickets.BuiltIn {
		m.Name = "mover"
	}
	csr, err := checkCSR(r.GetCsr())
	if err != nil {
		return m, nil, err
	}
	m.CertificateEnds = time.Now().UTC().Add(e.fleet.timing.Certificate)
	replaced, err := e.fleet.catalog.EnrolMover(ctx, hashToken(r.GetToken()), hashToken(string(csr.RawSubjectPublicKeyInfo)), &m)
	if err != nil {
		return m, nil, err
	}
	if replaced != "" {
		e.fleet.Cut(replaced, pb.Goodbye_REASON_REVOKED, "Another mover has enrolled in this one's place.")
	}
	cert, err := e.fleet.certify(csr, m)
	return m, cert, err
}

// Renew implements the service.
func (e *enrolment) Renew(ctx context.Context, r *pb.RenewRequest) (*pb.RenewResponse, error) {
	p, err := PeerOf(ctx)
	if err != nil {
		return nil, pb.Status(err)
	}
	csr, err := checkCSR(r.GetCsr())
	if err != nil {
		return nil, pb.Status(err)
	}
	m := p.Mover
	m.CertificateEnds, m.Source = time.Now().UTC().Add(e.fleet.timing.Certificate), p.Source
	cert, err := e.fleet.certify(csr, m)
	if err == nil {
		err = e.fleet.catalog.SeeMover(ctx, m)
	}
	if err != nil {
		return nil, pb.Status(err)
	}
	e.fleet.log.InfoContext(ctx, "mover's certificate renewed", "mover", m.Name, "ends", m.CertificateEnds)
	return &pb.RenewResponse{Certificate: cert}, nil
}

// certify makes a mover's certificate for the key of a request.
func (f *Fleet) certify(csr *x509.CertificateRequest, m catalog.Mover) (*pb.Certificate, error) {
	der, err := f.authority.IssueMover(csr.PublicKey, identityOf(m.ID), m.CertificateEnds)
	if err != nil {
		return nil, err
	}
	return &pb.Certificate{Certificate: der, Authority: f.authority.Certificate().Raw, ManagerTime: time.Now().UnixMilli()}, nil
}

// checkCSR takes nothing from a request but its key, which it must have.
func checkCSR(der []byte) (*x509.CertificateRequest, error) {
	bad := func(why string) error {
		return fault.New(fault.Invalid, "read certificate request", "", "%s", why)
	}
	if len(der) > 16<<10 {
		return nil, bad("it is too long")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, bad("it is none")
	}
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve.Params().BitSize < 256 {
			return nil, bad("its key is too short")
		}
	case ed25519.PublicKey:
	default:
		return nil, bad("its key is neither ECDSA nor Ed25519")
	}
	if csr.CheckSignature() != nil {
		return nil, bad("it is not signed with its own key")
	}
	return csr, nil
}

// sourceOf is the address that a call comes from, without the port.
func sourceOf(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		return p.Addr.String()
	}
	return host
}
