package ovirtsim

import (
	"slices"
	"sync"
	"time"
)

// Clock is the time of an engine. Phases end, sessions expire and jobs are purged by it.
type Clock struct {
	manual bool

	mu   sync.Mutex
	now  time.Time
	due  []alarm // by time
	next int
}

// alarm is a function with its time.
type alarm struct {
	at    time.Time
	order int
	run   func()
}

// RealClock is that of the machine.
func RealClock() *Clock { return &Clock{} }

// ManualClock stands still until Engine.Advance moves it.
func ManualClock(start time.Time) *Clock { return &Clock{manual: true, now: start} }

// Now returns the time.
func (c *Clock) Now() time.Time {
	if !c.manual {
		return time.Now()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// after calls run when d has passed, on a goroutine of its own or that of Advance. What it returns calls it off.
func (c *Clock) after(d time.Duration, run func()) (stop func()) {
	if !c.manual {
		t := time.AfterFunc(d, run)
		return func() { t.Stop() }
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	a := alarm{c.now.Add(d), c.next, run}
	i, _ := slices.BinarySearchFunc(c.due, a, func(x, y alarm) int {
		if o := x.at.Compare(y.at); o != 0 {
			return o
		}
		return x.order - y.order
	})
	c.due = slices.Insert(c.due, i, a)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.due = slices.DeleteFunc(c.due, func(b alarm) bool { return b.order == a.order })
	}
}

// pop moves the time on to the next alarm that is due until end, and returns it; without one, to end.
func (c *Clock) pop(end time.Time) (run func(), found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.due) == 0 || c.due[0].at.After(end) {
		c.now = end
		return nil, false
	}
	a := c.due[0]
	c.due = c.due[1:]
	if a.at.After(c.now) {
		c.now = a.at
	}
	return a.run, true
}
