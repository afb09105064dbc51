package imageiotransport

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

// features is what a daemon can do with an image.
type features struct {
	extents, checksum, zero, flush bool
	readers, writers               int
	mayWrite                       bool
	socket                         string // path of a Unix socket on its host, "" if it has none
}

const (
	maxOptions     = 64 << 10 // bytes of an answer to OPTIONS
	maxConnections = 64       // that we would believe a daemon allows
)

// old are the features of a daemon that has no OPTIONS: nothing but reading and writing, where every write is flushed.
var old = features{readers: 1, writers: 1, mayWrite: true}

// options asks what can be done with the image.
func (l *link) options(ctx context.Context, c *conn) (features, error) {
	out := old
	err := c.exchange(ctx, call{method: http.MethodOptions, path: l.path, stall: l.stall}, func(r *http.Response) error {
		if r.StatusCode != http.StatusOK {
			_, err := io.Copy(io.Discard, io.LimitReader(r.Body, maxText))
			return err
		}
		b, err := io.ReadAll(io.LimitReader(r.Body, maxOptions+1))
		if err != nil {
			return err
		}
		out, err = parseOptions(b, r.Header.Get("Allow"))
		return err
	}, http.StatusOK, http.StatusNoContent, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented)
	return out, err
}

// parseOptions reads an answer to OPTIONS. An empty one is that of an old daemon.
func parseOptions(b []byte, allow string) (features, error) {
	if len(b) == 0 {
		return old, nil
	}
	var o struct {
		UnixSocket string   `json:"unix_socket"`
		Features   []string `json:"features"`
		MaxReaders int      `json:"max_readers"`
		MaxWriters int      `json:"max_writers"`
	}
	if len(b) > maxOptions {
		return features{}, badAnswer("its options are longer than %d bytes", maxOptions)
	}
	if err := json.Unmarshal(b, &o); err != nil {
		return features{}, badAnswer("its options are no JSON of theirs: %v", err)
	}
	has := func(s string) bool { return slices.Contains(o.Features, s) }
	f := features{
		extents: has("extents"), checksum: has("checksum"), zero: has("zero"), flush: has("flush"),
		readers: min(max(o.MaxReaders, 1), maxConnections), writers: min(max(o.MaxWriters, 1), maxConnections),
		mayWrite: allow == "" || strings.Contains(allow, http.MethodPut),
	}
	if strings.HasPrefix(o.UnixSocket, "/") && len(o.UnixSocket) < 100 && !strings.ContainsAny(o.UnixSocket, "\x00\n") {
		f.socket = o.UnixSocket
	}
	return f, nil
}

// badAnswer is an answer that the protocol does not allow.
func badAnswer(format string, args ...any) error {
	return fault.Wrap(fault.Internal, "read answer of imageio", "", fmt.Errorf(format, args...)).Explain(
		"The server that serves the disk sent an answer that oVirt's imageio does not send, so none of it was used.",
		"Check that the address belongs to an oVirt host or engine and nothing on the way changes the data.")
}
