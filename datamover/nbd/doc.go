// Package nbd speaks the Network Block Device protocol: a client that reads and writes an export over several
// connections with many requests in flight, and a small server that exports a Backend.
//
// It is written from the protocol's specification (fixed newstyle handshake, structured replies, metadata contexts,
// TLS by STARTTLS). It knows nothing of QEMU or of backups, and it does not reconnect: that is the transport's work.
//
// Its invariant: nothing the other side sends makes us allocate more than we asked for, write outside a caller's
// buffer, or report success for bytes that did not arrive exactly once.
//
// Who writes what in one client connection:
//
//	field                     written by             guarded by
//	the socket, outwards      requesting goroutines  conn.send (held for one whole request)
//	the socket, inwards       receive                nobody else reads
//	pending, filling, err     both                   conn.mu
//	a request's buffer        receive                request.abandoned, conn.filling (see conn.abandon)
package nbd
