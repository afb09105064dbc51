// Package remote speaks to one appliance through the generated client.
//
// It prints nothing and asks nobody. Its one invariant: a request, and with it the token, is sent only over TLS to a
// server whose certificate was verified, and every error comes back with a kind and words for the person who reads it.
package remote

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/profile"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// Session is one appliance and the right to ask it.
type Session struct {
	*client.Client
	Server    string
	transport *http.Transport
}

// Open prepares a session; no connection is made yet. Close it.
func Open(c profile.Context) (*Session, error) {
	cfg, err := trust(c)
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSClientConfig:     cfg,
		TLSHandshakeTimeout: 15 * time.Second,
		ForceAttemptHTTP2:   true,
	}
	doer := &http.Client{Transport: transport, CheckRedirect: noRedirect}
	sign := func(_ context.Context, r *http.Request) error {
		r.Header.Set("User-Agent", "cairn/"+version.Version)
		if c.Token != "" {
			r.Header.Set("Authorization", "Bearer "+c.Token.Value())
		}
		return nil
	}
	cl, err := client.NewClient(c.Server+api.BasePath, client.WithHTTPClient(&matching{next: doer, seen: map[string]string{}}), client.WithRequestEditorFn(sign))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "connect", c.Server, err)
	}
	return &Session{Client: cl, Server: c.Server, transport: transport}, nil
}

// Close closes idle connections.
func (s *Session) Close() { s.transport.CloseIdleConnections() }

// noRedirect keeps the token from following a redirect to another place.
func noRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// bodyLimit bounds what is read of an answer.
const bodyLimit = 64 << 20

// Decode reads the answer to a call of the generated client.
func Decode[T any](s *Session, resp *http.Response, err error) (T, error) {
	var v T
	body, err := read(s, resp, err)
	if err != nil {
		return v, err
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fault.Wrap(fault.Internal, "read answer of", s.Server, err).
			Explain("The server answers, but not as an appliance of this version does.", "Check the address, and update cairn.")
	}
	return v, nil
}

// Done reads the answer to a call that answers nothing.
func Done(s *Session, resp *http.Response, err error) error {
	_, err = read(s, resp, err)
	return err
}

// Bytes reads the answer to a call that answers a file.
func Bytes(s *Session, resp *http.Response, err error) ([]byte, error) { return read(s, resp, err) }

func read(s *Session, resp *http.Response, err error) ([]byte, error) {
	if err != nil {
		return nil, explain(s.Server, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, bodyLimit))
	if err != nil {
		return nil, explain(s.Server, err)
	}
	if resp.StatusCode >= 300 {
		return nil, Problem(s.Server, resp, body)
	}
	return body, nil
}

// All reads every page of a list.
func All[T any](page func(token *string) (items []T, next string, err error)) ([]T, error) {
	var all []T
	var token *string
	for {
		items, next, err := page(token)
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
		if next == "" {
			return all, nil
		}
		if token != nil && *token == next {
			return nil, fault.New(fault.Internal, "read list", "", "the server repeats its pages")
		}
		token = &next
	}
}

// Problem turns an answer that is not a success into an error.
func Problem(server string, resp *http.Response, body []byte) error {
	media, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	var p client.Problem
	if media != "application/problem+json" || json.Unmarshal(body, &p) != nil || p.Title == "" {
		return fault.New(kindOfStatus(resp.StatusCode), "ask", server, "the answer is %s", resp.Status).
			Explain("What answers at this address is not an appliance, or something stands between.", "Check the address of the server.")
	}
	what := p.Detail
	if what == "" {
		what = p.Title
	}
	for _, f := range p.Errors {
		where := f.Parameter
		if f.Pointer != "" {
			where = strings.TrimPrefix(f.Pointer, "#/")
		}
		line := strings.TrimPrefix(where+": ", ": ") + f.Detail
		if raw := f.Pointer + ": " + f.Detail; f.Pointer != "" && strings.Contains(what, raw) { // said already
			what = strings.ReplaceAll(what, raw, line)
			continue
		}
		what += "\n" + line
	}
	kind := kindOfType(p.Type, resp.StatusCode)
	meaning, advice := p.Meaning, p.Advice
	switch {
	case resp.StatusCode == http.StatusUnauthorized && advice == "":
		advice = fmt.Sprintf("Log in with \"cairn login %s\".", server)
	case kind == fault.Internal && advice == "":
		meaning = "The appliance failed at this; it is not your mistake."
		advice = fmt.Sprintf("Look for request %s in the appliance's log.", p.RequestID)
	}
	return fault.New(kind, "", "", "%s", what).Explain(meaning, advice)
}

// kindOfType reads the kind out of a problem type such as "/problems/conflict" or "/problems/exists/set-up".
func kindOfType(problemType string, status int) fault.Kind {
	name, _, _ := strings.Cut(strings.TrimPrefix(problemType, "/problems/"), "/")
	if k, ok := fault.KindNamed(name); ok {
		return k
	}
	return kindOfStatus(status)
}

func kindOfStatus(status int) fault.Kind {
	switch status {
	case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType:
		return fault.Invalid
	case http.StatusUnauthorized, http.StatusForbidden:
		return fault.Denied
	case http.StatusNotFound, http.StatusGone:
		return fault.NotFound
	case http.StatusConflict, http.StatusPreconditionFailed:
		return fault.Conflict
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusBadGateway, http.StatusGatewayTimeout:
		return fault.Transient
	case http.StatusNotImplemented:
		return fault.Unsupported
	}
	return fault.Internal
}

// explain gives a failed exchange its kind and words.
func explain(server string, err error) error {
	const connect = "connect to"
	if errors.Is(err, context.Canceled) {
		return fault.Wrap(fault.Canceled, connect, server, context.Canceled)
	}
	if errors.Is(err, errPin) {
		return fault.Wrap(fault.Denied, connect, server, errPin).
			Explain("This is another server than the one you logged in to, its CA was made anew, or somebody is in between.",
				"Compare with the CA fingerprint that the appliance prints when it starts; if it has changed for a good reason, log in again.")
	}
	if cert := certificateError(err); cert != nil {
		return fault.Wrap(fault.Denied, connect, server, cert).
			Explain("The server's certificate is not trusted, so nothing was sent.",
				"Use the host name that the certificate is for, and give the CA with --ca-fingerprint or --cacert (also CAIRN_CA_FINGERPRINT, CAIRN_CACERT).")
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op
	}
	return fault.Wrap(fault.Transient, connect, server, err).
		Explain("The appliance does not answer.", "Check that cairnd runs, the address, and what lies between.")
}
