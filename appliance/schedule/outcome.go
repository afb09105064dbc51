package schedule

import (
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/policy"
	"github.com/cairn-backup/cairn/internal/fault"
)

// The circuit breaker of a connection.
const (
	breakAfter   = 3 // failures in a row
	breakFirst   = 5 * time.Minute
	breakLongest = time.Hour
)

// Outcome is how an attempt ended.
type Outcome struct {
	State   catalog.State // of its task; final
	Failure *catalog.Failure
	Began   bool // data was read: the platform does its work
}

// settle says what becomes of a turn whose attempt has ended, and of its connection's breaker. rules is nil when the policy is no
// more. It is pure.
func settle(t catalog.Turn, o Outcome, rules *policy.Rules, b catalog.Breaker, connection string, now time.Time) catalog.TurnChange {
	ch := catalog.TurnChange{Turn: t, Attempt: t.Attempt, NotBefore: t.NotBefore, At: now}
	b.ConnectionID = connection
	switch o.State {
	case catalog.Succeeded, catalog.Warning:
		ch.State = catalog.TurnDone
		if b.Failures > 0 || b.Opened > 0 {
			ch.Breaker = &catalog.Breaker{ConnectionID: connection}
		}
		return ch
	case catalog.Cancelled:
		ch.State, ch.Reason = catalog.TurnCancelled, "somebody cancelled it"
		return ch
	}
	kind := fault.Internal
	ch.State, ch.Reason = catalog.TurnFailed, "it failed"
	if o.Failure != nil {
		kind, _ = fault.KindNamed(o.Failure.Kind)
		ch.Reason = o.Failure.What
	}
	if blames(kind, o.Began) {
		next := trip(b, ch.Reason, now)
		ch.Breaker = &next
	}
	if rules == nil || final(kind) {
		return ch
	}
	if wait, again := rules.RetryAfter(max(1, t.Attempt)); again {
		ch.State, ch.NotBefore = catalog.TurnWaiting, now.Add(wait)
	}
	return ch
}

// blames reports whether a failure speaks against the platform: it did not answer or did not let us in, before a byte was read.
func blames(k fault.Kind, began bool) bool {
	return !began && (k == fault.Transient || k == fault.Denied)
}

// final reports whether another attempt would fail in the same way.
func final(k fault.Kind) bool {
	return k == fault.Invalid || k == fault.Unsupported || k == fault.NotFound
}

// trip counts a failure; from breakAfter on each one opens the breaker for twice as long.
func trip(b catalog.Breaker, reason string, now time.Time) catalog.Breaker {
	b.Failures++
	b.Reason = reason
	if b.Failures < breakAfter || now.Before(b.OpenUntil) { // while it is open, tasks from before it may still fail
		return b
	}
	wait := breakFirst
	for range b.Opened {
		wait = min(2*wait, breakLongest)
	}
	b.Opened++
	b.OpenUntil = now.Add(wait).UTC()
	return b
}
