package httpapi

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/cairn-backup/cairn/api/server"
)

// StreamEvents answers with a stream that lasts until the client goes, the token ends or the server closes.
func (h *handlers) StreamEvents(ctx context.Context, r server.StreamEventsRequestObject) (server.StreamEventsResponseObject, error) {
	return &eventStream{s: h.s, ctx: ctx, topics: value(r.Params.Topics), seen: value(r.Params.LastEventID)}, nil
}

// eventStream is one answer of /events. It keeps the request's context because the generated interface has no room
// for it; it lives no longer than the request.
type eventStream struct {
	s      *Server
	ctx    context.Context //nolint:containedctx // see above
	topics []server.Topic
	seen   string
}

const eventStreamType = "text/event-stream"

// VisitStreamEventsResponse writes the stream. It starts no goroutine.
func (e *eventStream) VisitStreamEventsResponse(w http.ResponseWriter) error {
	if e.s.metrics != nil {
		defer e.s.metrics.Stream()()
	}
	w.Header().Set("Content-Type", eventStreamType)
	w.Header().Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	out := &eventWriter{w: w, control: http.NewResponseController(w)}
	at, reset := e.s.stream.position(e.seen)
	beat := time.NewTicker(e.s.heartbeat)
	defer beat.Stop()
	// The first comment tells the client that it is heard, before anything happens.
	if out.write([]byte(": follow\n\n")) != nil {
		return nil
	}
	for {
		if reset {
			out.reset(at)
		}
		events, next, lost, change := e.s.stream.from(at)
		for _, ev := range events {
			if len(e.topics) == 0 || slices.Contains(e.topics, ev.topic) {
				out.event(ev.event)
			}
		}
		at, reset = next, lost
		if out.err != nil || e.s.streamWait(e.ctx, lost, change, beat.C, out) {
			return nil // the client is gone, or is to come again: there is nobody to tell
		}
	}
}

// streamWait waits for the next event and beats meanwhile. It returns true when the stream ends.
func (s *Server) streamWait(ctx context.Context, lost bool, change <-chan struct{}, beat <-chan time.Time, out *eventWriter) bool {
	for !lost {
		select {
		case <-change:
			return false
		case <-ctx.Done():
			return true
		case <-s.closing:
			return true
		case <-beat:
			if _, err := s.identity.AuthenticateHash(ctx, askedOf(ctx).caller.TokenHash); err != nil {
				return true
			}
			if out.write([]byte(": beat\n\n")) != nil {
				return true
			}
		}
	}
	return false
}

// eventWriter writes and flushes; after the first error it does nothing any more.
type eventWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	err     error
}

func (o *eventWriter) write(b []byte) error {
	if o.err != nil {
		return o.err
	}
	// A client that does not read is cut off; it can come again and resume. Recorders have no deadline.
	_ = o.control.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, o.err = o.w.Write(b); o.err == nil {
		o.err = o.control.Flush()
	}
	return o.err
}

func (o *eventWriter) event(e server.StreamEvent) {
	b, err := frame(e.Topic, e)
	if err != nil {
		o.err = err
		return
	}
	_ = o.write(b) // kept in o.err
}

// topicReset tells the client to read the lists again.
const topicReset = "reset"

func (o *eventWriter) reset(at uint64) {
	o.event(server.StreamEvent{ID: strconv.FormatUint(at-1, 10), Topic: topicReset, Time: time.Now().UTC()})
}
