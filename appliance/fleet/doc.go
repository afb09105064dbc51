// Package fleet is the manager's side of its movers: it enrols them, keeps their control streams, chooses a mover for a
// transfer and gives it the task.
//
// It moves no data and knows no repository; a ticket (appliance/tickets) in a task is a word to it. What lasts of a
// mover is in the catalog, what does not (streams, transfers under way) in memory.
//
// Its invariant: a transfer that was given to a mover has one end. A stream that breaks ends nothing; what the mover
// says in its next Hello is compared with what was given to it, and then a task that did not arrive is sent again, a
// result that did not arrive is taken, what the mover has and nobody waits for is cancelled, and what an earlier process
// of the mover had has failed.
//
// Who writes what:
//
//	links       Attach adds and removes its own, Cut removes
//	places      Find adds, Release removes
//	limits      the REST interface; what follows of them for each mover applyLimits
//	transfers   run adds and removes its own; a link's reader completes them
//	catalog     Attach and the enrolment service; the REST interface through Drain, Revoke, Remove
package fleet

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/time/rate"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Authority gives certificates; *identity.Authority is one.
type Authority interface {
	IssueMover(key crypto.PublicKey, identity *url.URL, ends time.Time) (der []byte, err error)
	Certificate() *x509.Certificate
	Fingerprint() string
}

// Timing of the control streams. The zero value is what movers in use get.
type Timing struct {
	Heartbeat   time.Duration // how often each side says something at least; 0 is 10 s
	Silence     time.Duration // after which the other side is taken for gone; 0 is 35 s
	Lost        time.Duration // how long a transfer waits for its mover to come back; 0 is 2 min
	Certificate time.Duration // lifetime of certificates; 0 is 24 h
}

func (t Timing) orDefault() Timing {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Heartbeat, 10*time.Second)
	def(&t.Silence, 35*time.Second)
	def(&t.Lost, 2*time.Minute)
	def(&t.Certificate, 24*time.Hour)
	return t
}

// Options of New.
type Options struct {
	Catalog   *catalog.Catalog
	Authority Authority
	Log       *slog.Logger
	Version   string // of the manager
	Timing    Timing
	Now       func() time.Time // by which certificates are judged and refusals counted; nil is time.Now
}

// Fleet is the movers of this appliance. Its methods may be called from several goroutines.
type Fleet struct {
	catalog   *catalog.Catalog
	authority Authority
	log       *slog.Logger
	version   string
	timing    Timing
	enrolment *enrolment
	now       func() time.Time

	strangerAudits, moverAudits *quota

	mu        sync.Mutex
	links     map[string]*link                      // by mover
	transfers map[string]*underWay                  // by transfer
	conns     map[string]map[net.Conn]chan struct{} // by mover; the channel closes with the connection
	traffic   map[string]*traffic                   // by mover
	places    map[*placed]struct{}                  // slots in use
	limits    []catalog.MoverLimit
	bandwidth map[string]Bandwidth   // by mover, as it was told
	full      map[string]*time.Timer // movers that have refused a transfer for want of a slot
	changed   chan struct{}          // closed, and made anew, when a mover came or went or a transfer ended
	stopping  bool

	ownBandwidth func(Bandwidth) // tells the appliance's own mover
}

// New makes a fleet that nobody can reach yet; see Serve.
func New(o Options) *Fleet {
	f := &Fleet{
		catalog: o.Catalog, authority: o.Authority, log: o.Log, version: o.Version, timing: o.Timing.orDefault(),
		links: map[string]*link{}, transfers: map[string]*underWay{}, changed: make(chan struct{}), places: map[*placed]struct{}{}, conns: map[string]map[net.Conn]chan struct{}{},
		traffic: map[string]*traffic{}, full: map[string]*time.Timer{}, bandwidth: map[string]Bandwidth{}, now: o.Now,
		strangerAudits: newQuota(auditPerSource, auditBurst, rate.NewLimiter(auditAll, auditAllBurst)),
		moverAudits:    newQuota(auditPerSource, auditBurst, nil),
	}
	if f.now == nil {
		f.now = time.Now
	}
	f.enrolment = &enrolment{fleet: f, attempts: enrolQuota()}
	return f
}

func identityOf(id string) *url.URL {
	return &url.URL{Scheme: "urn", Opaque: strings.TrimPrefix(pb.IdentityPrefix, "urn:") + id}
}

// moverIn returns whose certificate this is; "" if it is no mover's.
func moverIn(cert *x509.Certificate) string {
	if len(cert.URIs) != 1 {
		return ""
	}
	id, ok := strings.CutPrefix(cert.URIs[0].String(), pb.IdentityPrefix)
	if !ok {
		return ""
	}
	return id
}

// admit looks a mover up that shows a certificate. The error is for the mover.
func (f *Fleet) admit(ctx context.Context, id string) (catalog.Mover, error) {
	m, err := f.catalog.Mover(ctx, id)
	switch {
	case err != nil && fault.KindOf(err) == fault.NotFound:
		return m, fault.New(fault.Denied, "use certificate", id, "the manager does not know this mover").Explain(
			"It was removed from the appliance, or replaced by another one of its name.", freshToken)
	case err != nil:
		return m, err
	case m.RevokedAt != nil:
		return m, fault.New(fault.Denied, "use certificate", id, "mover %s was revoked at %s", m.Name, m.RevokedAt.UTC().Format(time.RFC3339)).Explain(
			"An administrator has withdrawn this mover's access.", freshToken)
	}
	return m, nil
}

const freshToken = "If it is to work again, make a join token with `cairn mover token` and start the mover with it."

func factsOf(f *pb.Facts) catalog.MoverFacts {
	out := catalog.MoverFacts{
		Version: brief(f.GetVersion()), Hostname: brief(f.GetHostname()), CPUs: int(f.GetCpus()), MemoryBytes: f.GetMemoryBytes(),
		MachineUUID: brief(f.GetMachineUuid()), BootID: brief(f.GetBootId()),
	}
	for _, t := range first(f.GetTransports(), 16) {
		out.Transports = append(out.Transports, brief(t))
	}
	for _, m := range first(f.GetMounts(), 64) {
		out.Mounts = append(out.Mounts, catalog.MoverMount{Path: brief(m.GetPath()), StoreID: brief(m.GetRepository())})
	}
	for _, w := range first(f.GetWwns(), 1024) {
		out.WWNs = append(out.WWNs, brief(w))
	}
	return out
}

// brief bounds what a mover says of itself, and takes out what would disturb a terminal.
func brief(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	return s[:min(len(s), 256)]
}

func first[T any](list []T, n int) []T { return list[:min(len(list), n)] }
