package nbd

import (
	"encoding/binary"
	"io"
)

var be = binary.BigEndian

// appendString appends a string with its length in 32 bits before it.
func appendString(b []byte, s string) []byte {
	return append(be.AppendUint32(b, uint32(len(s))), s...)
}

// cutString takes such a string off b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := be.Uint32(b)
	if n > maxString || int(n) > len(b)-4 {
		return "", nil, false
	}
	return string(b[4 : 4+n]), b[4+n:], true
}

// readPayload reads n bytes after checking n against limit, before anything is allocated.
func readPayload(r io.Reader, n uint32, limit int) ([]byte, error) {
	if int64(n) > int64(limit) {
		return nil, protocolError("payload of %d bytes, at most %d are allowed", n, limit)
	}
	p := make([]byte, n)
	_, err := io.ReadFull(r, p)
	return p, err
}
