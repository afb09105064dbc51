package httpapi

import (
	"errors"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/internal/fault"
)

const (
	problemPath = "/problems/"
	problemType = "application/problem+json"
	// statusCanceled is what nginx made usual for a client that went away; nobody reads the answer.
	statusCanceled = 499
	retryAfter     = 4 * time.Second
)

// rejected is an error of the interface itself: it says more about the request than a kind can.
type rejected struct {
	cause  *fault.Error
	status int    // 0: as the kind has it
	what   string // second part of the problem's type, may be ""
	fields []server.ProblemField
}

func (r *rejected) Error() string { return r.cause.Error() }

// Unwrap returns the error with its kind.
func (r *rejected) Unwrap() error { return r.cause }

// reject makes an error of the interface itself. status 0 is the kind's own, what the second part of the type.
func reject(kind fault.Kind, status int, what, detail string) *rejected {
	return &rejected{cause: fault.New(kind, "", "", "%s", detail), status: status, what: what}
}

// statusOf is the one place where a kind becomes an HTTP status.
func statusOf(kind fault.Kind) int {
	switch kind {
	case fault.Invalid:
		return http.StatusUnprocessableEntity
	case fault.NotFound:
		return http.StatusNotFound
	case fault.Exists, fault.Conflict:
		return http.StatusConflict
	case fault.Denied:
		return http.StatusForbidden
	case fault.Unsupported:
		return http.StatusNotImplemented
	case fault.Transient:
		return http.StatusServiceUnavailable
	case fault.Canceled:
		return statusCanceled
	}
	return http.StatusInternalServerError
}

var titles = map[fault.Kind]string{
	fault.Internal:    "Something went wrong inside the appliance",
	fault.Invalid:     "The request is not right",
	fault.NotFound:    "There is no such thing",
	fault.Exists:      "It is there already",
	fault.Conflict:    "The present state does not allow it",
	fault.Denied:      "Not allowed",
	fault.Unsupported: "This cannot be done here",
	fault.Transient:   "Not possible right now",
	fault.Corrupt:     "Stored data is damaged",
	fault.Canceled:    "It was cancelled",
}

// problemOf turns an error into what the client reads. An Internal error shows nothing of itself.
func problemOf(err error) server.Problem {
	err = fromEcho(err)
	kind := fault.KindOf(err)
	p := server.Problem{
		Type: problemPath + kind.String(), Title: titles[kind], Status: statusOf(kind), Retryable: kind.Retryable(),
	}
	if kind != fault.Internal {
		why := catalog.FailureOf(err)
		p.Detail, p.Meaning, p.Advice = why.What, why.Meaning, why.Advice
	}
	if _, ok := errors.AsType[*identity.Throttled](err); ok {
		p.Status, p.Type = http.StatusTooManyRequests, p.Type+"/throttled"
	}
	if errors.Is(err, identity.ErrSetUpDone) {
		p.Type += "/set-up"
	}
	if r, ok := errors.AsType[*rejected](err); ok {
		p.Errors = r.fields
		if r.status != 0 {
			p.Status = r.status
		}
		if r.what != "" {
			p.Type += "/" + r.what
		}
	}
	return p
}

// fromEcho gives echo's own errors (no such route, wrong method, a parameter that does not parse) a kind.
func fromEcho(err error) error {
	he, ok := errors.AsType[*echo.HTTPError](err)
	if !ok {
		return err
	}
	detail, ok := he.Message.(string)
	if !ok {
		detail = http.StatusText(he.Code)
	}
	switch he.Code {
	case http.StatusNotFound:
		return reject(fault.NotFound, he.Code, "route", "there is no such path")
	case http.StatusMethodNotAllowed:
		return reject(fault.Invalid, he.Code, "method", "this path does not know this method")
	case http.StatusUnauthorized:
		return reject(fault.Denied, he.Code, "", detail)
	}
	if he.Code >= http.StatusBadRequest && he.Code < http.StatusInternalServerError {
		return reject(fault.Invalid, he.Code, "", detail)
	}
	return err
}
