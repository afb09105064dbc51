package httpapi

import (
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Rate is how often a token may ask: so many times a second for long, and Burst times at once.
type Rate struct{ PerSecond, Burst int }

// DefaultRate is far above what a person or a script needs, and below what keeps the appliance from its work.
var DefaultRate = Rate{PerSecond: 100, Burst: 400}

// maxAsking bounds the memory of a limiter: about 100 bytes each.
const maxAsking = 10_000

// limiter bounds how often each asks. Of each it keeps the instant at which all its requests would be over if they came
// at the even rate (GCRA); who is past that is as if it had never asked, and is forgotten when room is needed.
type limiter struct {
	interval, slack time.Duration

	mu   sync.Mutex
	even map[string]time.Time
}

func newLimiter(r Rate) *limiter {
	interval := time.Second / time.Duration(r.PerSecond)
	return &limiter{interval: interval, slack: interval * time.Duration(r.Burst), even: map[string]time.Time{}}
}

// allow returns 0 and counts a request, or how long who asks has to wait.
func (l *limiter) allow(who string, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.even[who]
	if at.Before(now) {
		at = now
	}
	at = at.Add(l.interval)
	if wait := at.Sub(now) - l.slack; wait > 0 {
		return wait
	}
	if _, known := l.even[who]; !known && len(l.even) >= maxAsking {
		l.forget(now)
	}
	l.even[who] = at
	return 0
}

// forget makes room: those who are as if they had never asked, and if there are none, somebody. l.mu is held.
func (l *limiter) forget(now time.Time) {
	before := len(l.even)
	for who, at := range l.even {
		if !at.After(now) {
			delete(l.even, who)
		}
	}
	if len(l.even) < before {
		return
	}
	for who := range l.even {
		delete(l.even, who)
		return
	}
}

// tooMany is in the chain of the error of a request that came too soon after others.
type tooMany struct{ wait time.Duration }

// Error says how long to wait.
func (t *tooMany) Error() string {
	return fmt.Sprintf("too many requests, try again in %d ms", t.wait.Milliseconds()+1)
}

// limit refuses requests that come too often: by token, and where there is none by address.
func (s *Server) limit(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		a := askedOf(c.Request().Context())
		who := a.caller.TokenID
		if who == "" {
			who = "source " + a.source
		}
		if wait := s.limiter.allow(who, time.Now()); wait > 0 {
			e := reject(fault.Transient, http.StatusTooManyRequests, "throttled", "")
			e.cause = fault.Wrap(fault.Transient, "", "", &tooMany{wait})
			e.cause.Explain("This token asks more often than the appliance answers one.", "Wait as long as Retry-After says, and ask less often.")
			return e
		}
		return next(c)
	}
}
