package engine

import (
	"context"
	"net/http"
	"strconv"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/internal/fault"
)

// One asks for one entity, whose element is tag.
func One[T any](ctx context.Context, c *Conn, r Request, tag string, read apixml.EntityReader[T]) (*T, error) {
	out, err := c.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	entity, err := apixml.DecodeOne(out, tag, read)
	if err != nil {
		return nil, fault.Context(r.Op, r.Subject, err)
	}
	return entity, nil
}

// All asks for a collection that the engine gives as a whole; tag is its own element.
func All[E any, S any, P interface {
	*S
	Slice() []E
}](ctx context.Context, c *Conn, r Request, tag string, read apixml.CollectionReader[S]) ([]E, error) {
	out, err := c.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	all, err := apixml.Decode(out, tag, read)
	if err != nil {
		return nil, fault.Context(r.Op, r.Subject, err)
	}
	return P(all).Slice(), nil
}

// PageSize is how many entities Pages asks for at once.
const PageSize = 100

const maxPages = 1000

// Pages asks for a collection page by page. Pages need an order, which is that of a search: the name of a property.
func Pages[E any, S any, P interface {
	*S
	Slice() []E
}](ctx context.Context, c *Conn, r Request, tag, order string, read apixml.CollectionReader[S]) ([]E, error) {
	var out []E
	for page := 1; page <= maxPages; page++ {
		q := r
		q.Query = Query("search", "sortby "+order+" asc page "+strconv.Itoa(page), "max", strconv.Itoa(PageSize))
		for k, v := range r.Query {
			q.Query[k] = v
		}
		part, err := All[E, S, P](ctx, c, q, tag, read)
		if err != nil {
			return nil, err
		}
		if out = append(out, part...); len(part) < PageSize {
			return out, nil
		}
	}
	return nil, fault.New(fault.Invalid, r.Op, r.Subject, "the engine has more than %d of them", PageSize*maxPages)
}

// Post makes a call with a document and returns what the engine answers.
func (c *Conn) Post(ctx context.Context, op, subject, path string, body []byte, correlation string) ([]byte, error) {
	r := Request{Op: op, Subject: subject, Method: http.MethodPost, Path: path, Body: body}
	if correlation != "" {
		r.Query = Query("correlation_id", correlation)
	}
	return c.Do(ctx, r)
}

// Act carries out a verb of an entity. The engine answers 200 also to an action that failed, so its document counts.
func (c *Conn) Act(ctx context.Context, op, subject, path string, body []byte) error {
	if body == nil {
		body = []byte("<action/>")
	}
	out, err := c.Post(ctx, op, subject, path, body, "")
	if err != nil {
		return err
	}
	if detail := faultDetail(out); detail != "" {
		return refused(Request{Op: op, Subject: subject}, http.StatusConflict, out)
	}
	return nil
}

// Remove deletes an entity; one that is gone is fine, so the call may be repeated.
func (c *Conn) Remove(ctx context.Context, op, subject, path string, pairs ...string) error {
	_, err := c.Do(ctx, Request{Op: op, Subject: subject, Method: http.MethodDelete, Path: path, Query: Query(pairs...), Repeat: true})
	if Gone(err) {
		return nil
	}
	return err
}
