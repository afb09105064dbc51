package fleet

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// quota lets a source do something a few times at once and then one time in a while, and all sources together too. What
// is kept of sources is bounded.
type quota struct {
	every rate.Limit
	burst int

	mu      sync.Mutex
	all     *rate.Limiter // nil: each source for itself only
	sources map[string]*account
}

// account is what one source has left.
type account struct {
	left   *rate.Limiter
	denied int // since it was last allowed something
}

const (
	enrolPerSource, enrolBurst = rate.Limit(0.2), 10
	enrolAll, enrolAllBurst    = rate.Limit(5), 100
	// Entries of the audit log about refusals: at most some ten thousand a day by whoever has no certificate.
	auditPerSource, auditBurst = rate.Limit(1. / 60), 20
	auditAll, auditAllBurst    = rate.Limit(0.1), 200
	maxSources                 = 10_000
)

func newQuota(every rate.Limit, burst int, all *rate.Limiter) *quota {
	return &quota{every: every, burst: burst, all: all, sources: map[string]*account{}}
}

func enrolQuota() *quota {
	return newQuota(enrolPerSource, enrolBurst, rate.NewLimiter(enrolAll, enrolAllBurst))
}

// allow takes one of what source has left. unsaid is how often it was denied since it was last allowed.
func (q *quota) allow(source string, now time.Time) (ok bool, unsaid int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	source = network(source)
	a := q.sources[source]
	if a == nil {
		if len(q.sources) >= maxSources {
			clear(q.sources)
		}
		a = &account{left: rate.NewLimiter(q.every, q.burst)}
		q.sources[source] = a
	}
	if !a.left.AllowN(now, 1) || q.all != nil && !q.all.AllowN(now, 1) {
		a.denied++
		return false, a.denied
	}
	unsaid, a.denied = a.denied, 0
	return true, unsaid
}

// network is what one party is likely to have of addresses: one of IPv4, a /64 of IPv6.
func network(source string) string {
	a, err := netip.ParseAddr(source)
	if err != nil || a.Is4() || a.Is4In6() {
		return source
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return source
	}
	return p.String()
}
