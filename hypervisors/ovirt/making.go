package ovirt

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"hash/fnv"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// making are the calls under way that make something for a tag.
type making struct {
	calls sync.WaitGroup
	n     int
}

// make runs a call that makes something for a tag. The engine carries out a request whose client has gone, so when ctx
// ends first the call runs on, and clean-ups for the tag wait for it.
func makeFor[T any](ctx context.Context, d *Driver, tag, op, subject string, call func(ctx context.Context) (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, fault.Wrap(fault.KindOf(err), op, subject, err)
	}
	d.mu.Lock()
	m := d.adding[tag]
	if m == nil {
		m = &making{}
		d.adding[tag] = m
	}
	m.calls.Add(1)
	m.n++
	d.mu.Unlock()
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		own, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.pace.wait)
		defer cancel()
		v, err := call(own)
		d.mu.Lock()
		if m.n--; m.n == 0 {
			delete(d.adding, tag)
		}
		d.mu.Unlock()
		m.calls.Done()
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		return zero, fault.Wrap(fault.KindOf(ctx.Err()), op, subject, ctx.Err())
	}
}

// waitMade waits until no call is under way that makes something for a tag.
func (d *Driver) waitMade(ctx context.Context, tag string) error {
	d.mu.Lock()
	m := d.adding[tag]
	d.mu.Unlock()
	if m == nil {
		return nil
	}
	done := make(chan struct{})
	go func() {
		m.calls.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.KindOf(ctx.Err()), "wait for calls that make things for", tag, ctx.Err())
	}
}

// correlation makes the id by which an operation's events are found. The engine takes 50 characters.
func correlation(tag, what string) string {
	sum := sha256.Sum256([]byte(tag + "\x00" + what))
	return hex.EncodeToString(sum[:16])
}

// The engine ends a transfer without requests after its time-out. That of ours lies between these.
const (
	leastIdle = 5 * time.Minute
	idleSpan  = 300 // seconds more, by tag
)

// idleOf is the time-out of a tag's transfers in seconds. It is the only thing of a transfer that we can choose and that
// the engine shows, so it also says whose it is.
func idleOf(tag string) int64 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(marker + tag))
	return int64(leastIdle/time.Second) + 1 + int64(h.Sum32()%idleSpan)
}
