package ovirt

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// The SDK's getters answer a value and whether it was there; its Must getters panic. These turn the former into plain
// values.

func val[T any](v T, _ bool) T { return v }

// idOf returns the id of an entity that may be absent.
func idOf[T interface{ Id() (string, bool) }](entity T, there bool) string {
	if !there {
		return ""
	}
	return val(entity.Id())
}

// items returns the entities of a collection that may be absent.
func items[E any](c interface{ Slice() []E }, there bool) []E {
	if !there {
		return nil
	}
	return c.Slice()
}

// sized keeps an engine's number of bytes within what can be one.
func sized(n int64, _ bool) int64 {
	if n < 0 || n > 1<<60 {
		return 0
	}
	return n
}

// getOne asks for one entity.
func getOne[T any](ctx context.Context, c *conn, r request, tag string, read one[T]) (*T, error) {
	out, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	entity, err := decodeOne(out.body, tag, read)
	if err != nil {
		return nil, fault.Context(r.op, r.subject, err)
	}
	return entity, nil
}

// getAll asks for a collection that the engine gives as a whole.
func getAll[E any, S any, P interface {
	*S
	Slice() []E
}](ctx context.Context, c *conn, r request, tag string, read many[S]) ([]E, error) {
	out, err := c.do(ctx, r)
	if err != nil {
		return nil, err
	}
	all, err := decode(out.body, tag, read)
	if err != nil {
		return nil, fault.Context(r.op, r.subject, err)
	}
	return P(all).Slice(), nil
}

const (
	pageSize = 100
	maxPages = 1000
)

// getPages asks for a collection page by page. Pages need an order, which is that of a search.
func getPages[E any, S any, P interface {
	*S
	Slice() []E
}](ctx context.Context, c *conn, r request, tag, order string, read many[S]) ([]E, error) {
	var out []E
	for page := 1; page <= maxPages; page++ {
		q := r
		q.query = query("search", "sortby "+order+" asc page "+strconv.Itoa(page), "max", strconv.Itoa(pageSize))
		for k, v := range r.query {
			q.query[k] = v
		}
		part, err := getAll[E, S, P](ctx, c, q, tag, read)
		if err != nil {
			return nil, err
		}
		if out = append(out, part...); len(part) < pageSize {
			return out, nil
		}
	}
	return nil, fault.New(fault.Invalid, r.op, r.subject, "the engine has more than %d of them", pageSize*maxPages)
}

// post makes a call with a document and returns what the engine answers.
func (c *conn) post(ctx context.Context, op, subject, path string, body []byte, correlation string) (reply, error) {
	r := request{op: op, subject: subject, method: http.MethodPost, path: path, body: body}
	if correlation != "" {
		r.query = query("correlation_id", correlation)
	}
	return c.do(ctx, r)
}

// act carries out a verb of an entity. The engine answers 200 also to an action that failed, so its document counts.
func (c *conn) act(ctx context.Context, op, subject, path string, body []byte) error {
	if body == nil {
		body = []byte("<action/>")
	}
	out, err := c.post(ctx, op, subject, path, body, "")
	if err != nil {
		return err
	}
	if detail := faultDetail(out.body); detail != "" {
		return refused(request{op: op, subject: subject}, http.StatusConflict, out.body)
	}
	return nil
}

// remove deletes an entity; one that is gone is fine, so the call may be repeated.
func (c *conn) remove(ctx context.Context, op, subject, path string, pairs ...string) error {
	_, err := c.do(ctx, request{op: op, subject: subject, method: http.MethodDelete, path: path, query: query(pairs...), repeat: true})
	if gone(err) {
		return nil
	}
	return err
}

// poll calls done until it says true or an error, at most for limit.
func (p pace) poll(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	end := time.Now().Add(limit)
	for wait := p.first; ; wait = min(wait*3/2, p.most) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if err := p.sleep(ctx, wait, what); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fault.New(fault.Transient, "wait until", what, "it did not happen within %s", limit).
				Explain("The engine takes longer than it should.", "Look at the engine's tasks and events; storage that is slow, or a host that does not answer, shows there.")
		}
	}
}

func (p pace) sleep(ctx context.Context, d time.Duration, what string) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.KindOf(ctx.Err()), "wait until", what, ctx.Err())
	}
}

// unlessBusy repeats a call that the engine refuses, for a while: mostly something else is under way, which ends.
func (p pace) unlessBusy(ctx context.Context, what string, call func() error) error {
	end := time.Now().Add(p.busy)
	for wait := p.first; ; wait = min(wait*2, p.most) {
		err := call()
		if err == nil || fault.KindOf(err) != fault.Conflict || notRoot(err) || time.Now().After(end) {
			return err
		}
		if e := p.sleep(ctx, wait, what); e != nil {
			return err
		}
	}
}
