package ovirtsim

import (
	"fmt"
	"net/http"
)

// refusal is what the engine answers instead of doing something.
type refusal struct {
	status int
	reason string
	detail string
}

func (r *refusal) Error() string { return fmt.Sprintf("%d %s: %s", r.status, r.reason, r.detail) }

func (r *refusal) node() *node {
	return el("fault", some("detail", r.detail), txt("reason", r.reason))
}

func refuse(status int, reason, format string, args ...any) error {
	return &refusal{status, reason, fmt.Sprintf(format, args...)}
}

// conflict is how the engine answers when a command's validation says no: the message in brackets.
func conflict(format string, args ...any) error {
	return refuse(http.StatusConflict, "Operation Failed", "["+format+"]", args...)
}

func badRequest(format string, args ...any) error {
	return refuse(http.StatusBadRequest, "Operation Failed", "["+format+"]", args...)
}

func notFound(kind, id string) error {
	return refuse(http.StatusNotFound, "Operation Failed", "Entity not found: %s: id=%s", kind, id)
}

// incomplete is the answer to a body that lacks what a call needs.
func incomplete(kind, fields, method string) error {
	return refuse(http.StatusBadRequest, "Incomplete parameters", "%s [%s] required for %s", kind, fields, method)
}
