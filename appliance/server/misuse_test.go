package server

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/tickets"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// thief has a mover's key and certificate, and tries what it can with tickets.
type thief struct {
	pb.RepositoryClient
	conn *grpc.ClientConn
}

// stolen takes the key of a mover that is not running.
func (o *outside) stolen(address string) thief {
	o.b.t.Helper()
	p, err := os.ReadFile(filepath.Join(o.state, "identity.pem"))
	if err != nil {
		o.b.t.Fatal(err)
	}
	cert, err := tls.X509KeyPair(p, p)
	if err != nil {
		o.b.t.Fatal(err)
	}
	cert.Certificate = cert.Certificate[:1]
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true, NextProtos: []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	})))
	if err != nil {
		o.b.t.Fatal(err)
	}
	o.b.t.Cleanup(func() { _ = conn.Close() })
	return thief{pb.NewRepositoryClient(conn), conn}
}

// with is the context of calls with a ticket.
func with(ctx context.Context, ticket, opener string) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "cairn-ticket", ticket, "cairn-opener", opener)
}

// TestMisusedTickets: what a ticket does not allow is refused in words, and who tried stands in the audit log.
func TestMisusedTickets(t *testing.T) {
	b := newBench(t)
	address := b.listen()
	m := b.outside(address, "m1")
	m.kill()
	th := m.stolen(address)
	id := m.info().ID
	mine := b.backup() // an image in the repository that the tickets are for
	second, err := b.AddRepository(t.Context(), httpapi.NewRepository{Name: "second", Path: filepath.Join(b.root, "repo2")})
	if err != nil {
		t.Fatal(err)
	}
	first := b.repo
	b.repo = second.ID
	theirs := b.backup() // one in another repository
	b.repo = first
	repo, err := b.repository(t.Context(), first)
	if err != nil {
		t.Fatal(err)
	}
	session, err := repo.Begin(t.Context(), store.SessionOptions{Series: "misuse", Writer: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Abort(context.Background()) })
	imageOf := func(repository, point string) store.ImageRef {
		r, err := b.repository(t.Context(), repository)
		if err != nil {
			t.Fatal(err)
		}
		points, err := r.RestorePoints(t.Context())
		if err != nil || len(points) == 0 {
			t.Fatal(points, err)
		}
		return points[0].Images[0].Ref
	}
	known, foreign := imageOf(first, mine.ID), imageOf(second.ID, theirs.ID)
	root := func(r store.ImageRef) *pb.Root { return &pb.Root{Root: r.Root[:], SizeBytes: r.SizeBytes} }

	issue := func(g tickets.Grant) string {
		secret, end := b.mover.tickets.Issue(g)
		t.Cleanup(end)
		return secret
	}
	writing := issue(tickets.Grant{Mover: id, Transfer: "tr_write", Session: session, Image: "disk0"})
	reading := issue(tickets.Grant{Mover: id, Transfer: "tr_read", Repository: repo, Images: []store.ImageRef{known}})
	others := issue(tickets.Grant{Mover: "mover_other", Transfer: "tr_other", Session: session, Image: "disk1"})
	late := issue(tickets.Grant{Mover: id, Transfer: "tr_late", Session: session, Image: "disk2", Expires: time.Now().Add(-time.Second)})
	over, end := b.mover.tickets.Issue(tickets.Grant{Mover: id, Transfer: "tr_over", Session: session, Image: "disk3"})
	end()

	w, r := with(t.Context(), writing, "w"), with(t.Context(), reading, "r")
	for _, ctx := range []context.Context{w, r} {
		if _, err := th.Open(ctx, &pb.OpenRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	begun, err := th.Begin(w, &pb.BeginRequest{SizeBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := th.OpenImage(r, &pb.OpenImageRequest{Image: root(known)}); err != nil {
		t.Fatal(err) // what it names may be read
	}
	turn, chunk := begun.GetTurn(), make([]byte, 32)
	_, _ = rand.Read(chunk)
	open := func(ctx context.Context, ticket string) error {
		_, err := th.Open(with(ctx, ticket, "x"), &pb.OpenRequest{})
		return err
	}
	tests := []struct {
		name     string
		try      func() error
		kind     fault.Kind
		words    string
		transfer string // "" is not known
	}{
		{"replayed", func() error { return open(t.Context(), writing) }, fault.Denied, "it was used already", "tr_write"},
		{"another mover's", func() error { return open(t.Context(), others) }, fault.Denied, "made for another mover", "tr_other"},
		{"its time is over", func() error { return open(t.Context(), late) }, fault.Denied, "its time is over", "tr_late"},
		{"its transfer is over", func() error { return open(t.Context(), over) }, fault.Denied, "its transfer has ended", ""},
		{"made up", func() error { return open(t.Context(), "ticket_x") }, fault.Denied, "it is not known", ""},
		{"none", func() error { _, err := th.Open(t.Context(), &pb.OpenRequest{}); return err }, fault.Denied, "has no ticket", ""},
		{"not opened", func() error {
			_, err := th.Finish(with(t.Context(), writing, "y"), &pb.FinishRequest{Turn: turn})
			return err
		},
			fault.Denied, "not opened by who uses it", "tr_write"},
		{"read with a ticket for writing", func() error { _, err := th.OpenImage(w, &pb.OpenImageRequest{Image: root(known)}); return err },
			fault.Denied, "does not allow to read image", "tr_write"},
		{"write with a ticket for reading", func() error { _, err := th.Begin(r, &pb.BeginRequest{SizeBytes: 1 << 20}); return err },
			fault.Denied, "does not allow to write", "tr_read"},
		{"read an image of another repository", func() error { _, err := th.OpenImage(r, &pb.OpenImageRequest{Image: root(foreign)}); return err },
			fault.Denied, "does not allow to read image", "tr_read"},
		{"build on an image that is not named", func() error {
			_, err := th.Begin(w, &pb.BeginRequest{SizeBytes: known.SizeBytes, Parent: root(known)})
			return err
		}, fault.Denied, "does not allow to build on image", "tr_write"},
		{"store what nobody asked for", func() error {
			_, err := th.Place(w, &pb.PlaceRequest{Turn: turn, Numbers: []int64{0}, Ids: chunk, Zeros: []uint64{0}, Prints: make([]byte, 16*16)})
			return err
		}, fault.Denied, "nobody asked for it", "tr_write"},
		{"a chunk that the image does not have", func() error {
			_, err := th.Look(w, &pb.LookRequest{Turn: turn, Numbers: []int64{1 << 40}, Ids: chunk})
			return err
		}, fault.Invalid, "chunk 1099511627776 of an image of", "tr_write"},
		{"a pack that it was not given", func() error {
			_, err := th.PackDone(w, &pb.PackDoneRequest{Turn: turn, Id: chunk[:16], Size: 4096})
			return err
		}, fault.Denied, "was not given leave to write it", "tr_write"},
		{"read what is in no plan", func() error {
			in, err := th.ReadFrames(r, &pb.ReadFramesRequest{
				Image: root(known), Pack: chunk[:16], Frames: []*pb.PlannedFrame{{Offset: 128, Stored: 4096, Proof: chunk}},
			})
			if err == nil {
				_, err = in.Recv()
			}
			return err
		}, fault.Denied, "are of no plan of this image", "tr_read"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := pb.FromStatus(tt.try())
			if err == nil || fault.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.words) {
				t.Errorf("error %v, want %v with %q", err, tt.kind, tt.words)
			}
			log, auditErr := b.ListAudit(t.Context(), 0, 1)
			if auditErr != nil || len(log) != 1 {
				t.Fatal(log, auditErr)
			}
			if e := log[0]; e.Action != "ticket.use" || !e.Refused || e.Actor != "mover "+id || e.Source != "127.0.0.1" || e.Subject != tt.transfer ||
				!strings.Contains(e.Detail, tt.words) {
				t.Errorf("audit log: %+v, want %q of %q", e, tt.words, tt.transfer)
			}
		})
	}
	t.Run("delete", func(t *testing.T) {
		const method = "/cairn.mover.v1.Repository/DeletePack"
		err := pb.FromStatus(th.conn.Invoke(w, method, &pb.PackDoneRequest{Id: chunk[:16]}, &pb.PackDoneResponse{}))
		if fault.KindOf(err) != fault.Unsupported {
			t.Errorf("error %v", err)
		}
		log, auditErr := b.ListAudit(t.Context(), 0, 1)
		if auditErr != nil || len(log) != 1 || log[0].Action != "mover.call" || log[0].Subject != method || !log[0].Refused {
			t.Errorf("audit log: %+v, %v", log, auditErr)
		}
	})
	if _, err := th.Finish(w, &pb.FinishRequest{Turn: turn}); err != nil {
		t.Errorf("the good ticket is no good any more: %v", err)
	}
	if err := b.catalog.CheckAudit(t.Context()); err != nil {
		t.Error(err)
	}
}
