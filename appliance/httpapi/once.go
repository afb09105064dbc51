package httpapi

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/labstack/echo/v4"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Requests keeps requests with an Idempotency-Key and their answers for 24 hours. *catalog.Catalog is one.
type Requests interface {
	BeginKeyed(ctx context.Context, user, key, fingerprint string) (known catalog.KeyedRequest, found bool, err error)
	AnswerKeyed(ctx context.Context, user, key string, answer catalog.Secret) error
	AnswerOf(r catalog.KeyedRequest) (catalog.Secret, error)
	ForgetKeyed(ctx context.Context, user, key string) error
}

const headerKey = "Idempotency-Key"

// keptAnswer is what is kept of an answer. Its body may hold a secret that is shown only once.
type keptAnswer struct {
	Status   int    `json:"status"`
	Location string `json:"location,omitempty"`
	Body     []byte `json:"body,omitempty"`
}

// onlyOnce does what makes something only once for one Idempotency-Key. What starts a run is told by the run instead, which
// is stored together with the key.
func (s *Server) onlyOnce(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		op := s.contract.operations[r.Method+" "+c.Path()]
		key := r.Header.Get(headerKey)
		if op == nil || key == "" || op.starts || op.params[headerKey].in != "header" {
			return next(c)
		}
		a := askedOf(r.Context())
		known, found, err := s.requests.BeginKeyed(r.Context(), a.caller.User, key, a.fingerprint)
		if err != nil {
			return err
		}
		if found {
			return s.repeat(c, known, a.fingerprint)
		}
		ctx := context.WithoutCancel(r.Context())
		answered := false
		defer func() { // also after a panic
			if answered {
				return
			}
			if err := s.requests.ForgetKeyed(ctx, a.caller.User, key); err != nil {
				s.log.WarnContext(ctx, "request was not forgotten", "request_id", requestID(c), "err", err)
			}
		}()
		h, err := hold(c, next)
		if err != nil || h.status >= http.StatusMultipleChoices {
			return sendUnless(err, c, h)
		}
		kept, err := json.Marshal(keptAnswer{h.status, c.Response().Header().Get(echo.HeaderLocation), h.body.Bytes()})
		if err == nil {
			err = s.requests.AnswerKeyed(ctx, a.caller.User, key, catalog.Secret(kept))
		}
		answered = true // it was done: without an answer a repetition is a Conflict, and not done again
		if err != nil {
			s.log.WarnContext(ctx, "answer was not kept", "request_id", requestID(c), "err", err)
		}
		return h.send(c)
	}
}

// repeat answers a request that came before.
func (s *Server) repeat(c echo.Context, known catalog.KeyedRequest, fingerprint string) error {
	if known.Fingerprint != fingerprint {
		return otherRequest()
	}
	answer, err := s.requests.AnswerOf(known)
	if err != nil {
		return err
	}
	if answer == "" {
		e := reject(fault.Conflict, 0, "under-way", "the request with this Idempotency-Key has no answer yet")
		e.cause.Explain("It is under way, or the appliance was stopped in it: then it may be done or not.",
			"Wait and try again. If it stays so, look whether it was done; if not, ask with a new key.")
		return e
	}
	var kept keptAnswer
	if err := json.Unmarshal([]byte(string(answer)), &kept); err != nil {
		return err
	}
	if kept.Location != "" {
		c.Response().Header().Set(echo.HeaderLocation, kept.Location)
	}
	return c.JSONBlob(kept.Status, kept.Body)
}

// otherRequest is the error for a key that stands for something else.
func otherRequest() error {
	e := reject(fault.Invalid, 0, "idempotency-key", "this Idempotency-Key belongs to another request")
	e.cause.Explain("A key stands for one request for 24 hours, and this one is not the same.", "Use a new key.")
	return e
}
