package identity

import (
	"fmt"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Throttled is in the chain of the error of a login that came too soon after failed ones.
type Throttled struct{ Wait time.Duration }

// Error says how long to wait.
func (t *Throttled) Error() string {
	return fmt.Sprintf("too many failed logins, try again in %d seconds", int(t.Wait.Seconds())+1)
}

// throttle slows guessing down: after some failed tries each further one has to wait twice as long, up to a limit.
// A name is slowed down later and less than a source, because a stranger can make a name wait but not a source.
type throttle struct {
	mu    sync.Mutex
	tries map[string]*tries
}

type tries struct {
	failed int
	last   time.Time
}

const (
	freePerSource  = 5
	freePerName    = 20
	waitPerSource  = 5 * time.Minute
	waitPerName    = 30 * time.Second
	forgetTries    = 15 * time.Minute
	maxRemembered  = 10_000
	sourcePrefix   = "source "
	usernamePrefix = "name "
)

func newThrottle() *throttle { return &throttle{tries: map[string]*tries{}} }

// try counts a try from this source for this name, which may be "", as failed until succeeded is called: a thousand
// tries at once must not all pass before the first has failed. It returns a Throttled error when the try comes too
// soon after failed ones, and does not count it then.
func (t *throttle) try(source, name string, now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	wait := max(
		t.wait(sourcePrefix+source, freePerSource, waitPerSource, now),
		t.wait(usernamePrefix+name, freePerName, waitPerName, now),
	)
	if wait <= 0 {
		t.count(source, name, now)
		return nil
	}
	return fault.Wrap(fault.Transient, "log in", "", &Throttled{Wait: wait}).Explain(
		"Failed logins are slowed down, so that passwords cannot be guessed.",
		"Wait and try again, with the right password.")
}

// wait returns how much longer this key has to wait. t.mu is held.
func (t *throttle) wait(key string, free int, limit time.Duration, now time.Time) time.Duration {
	e := t.tries[key]
	if e == nil || e.failed < free || now.Sub(e.last) > forgetTries {
		return 0
	}
	pause := limit
	if n := e.failed - free; n < 16 {
		pause = min(limit, time.Second<<n)
	}
	return e.last.Add(pause).Sub(now)
}

// count remembers a try. t.mu is held.
func (t *throttle) count(source, name string, now time.Time) {
	if len(t.tries) >= maxRemembered {
		t.forget(now)
	}
	for _, key := range []string{sourcePrefix + source, usernamePrefix + name} {
		e := t.tries[key]
		if e == nil || now.Sub(e.last) > forgetTries {
			e = &tries{}
			t.tries[key] = e
		}
		e.failed++
		e.last = now
	}
}

// succeeded forgets the failed tries of a source and a name.
func (t *throttle) succeeded(source, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.tries, sourcePrefix+source)
	delete(t.tries, usernamePrefix+name)
}

// forget drops what is old, and everything when nothing is. t.mu is held.
func (t *throttle) forget(now time.Time) {
	for key, e := range t.tries {
		if now.Sub(e.last) > forgetTries {
			delete(t.tries, key)
		}
	}
	if len(t.tries) >= maxRemembered {
		clear(t.tries)
	}
}
