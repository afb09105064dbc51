package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"
)

// serverConn is one client of a Server.
type serverConn struct {
	server *Server
	nc     net.Conn
	raw    net.Conn // under TLS
	cancel context.CancelFunc
	done   chan struct{}

	export     *Export // Server.mu until the handshake is over
	structured bool
	contexts   []string // selected, of contextsOf; the index is the id
	contextsOf string
}

// errGoodbye ends a connection in good order.
var errGoodbye = errors.New("the client said goodbye")

func (c *serverConn) run(ctx context.Context) error {
	_ = c.raw.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := c.handshake(); err != nil {
		if errors.Is(err, errGoodbye) {
			return nil
		}
		return err
	}
	_ = c.raw.SetDeadline(time.Time{})
	return c.transmit(ctx)
}

func (c *serverConn) handshake() error {
	b := be.AppendUint64(nil, magicServer)
	b = be.AppendUint64(b, magicOption)
	b = be.AppendUint16(b, handshakeFixedNewstyle|handshakeNoZeroes)
	if _, err := c.nc.Write(b); err != nil {
		return err
	}
	var f [4]byte
	if _, err := io.ReadFull(c.nc, f[:]); err != nil {
		return err
	}
	flags := be.Uint32(f[:])
	if flags&^(handshakeFixedNewstyle|handshakeNoZeroes) != 0 {
		return protocolError("client flags %#x", flags)
	}
	for {
		var h [16]byte
		if _, err := io.ReadFull(c.nc, h[:]); err != nil {
			return err
		}
		if be.Uint64(h[:]) != magicOption {
			return protocolError("option without its magic")
		}
		opt := be.Uint32(h[8:])
		data, err := readPayload(c.nc, be.Uint32(h[12:]), maxOptionPayload)
		if err != nil {
			return err
		}
		if opt == optExportName {
			return c.exportName(string(data), flags&handshakeNoZeroes != 0)
		}
		if done, err := c.option(opt, data); done || err != nil {
			return err
		}
	}
}

func (c *serverConn) answer(opt, kind uint32, data []byte) error {
	b := be.AppendUint64(nil, magicOptReply)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, kind)
	b = be.AppendUint32(b, uint32(len(data)))
	_, err := c.nc.Write(append(b, data...))
	return err
}

// secure reports whether the client may ask for exports.
func (c *serverConn) secure() bool { return c.server.tls == nil || c.nc != c.raw }

// option answers one option; done means that the transmission phase begins.
func (c *serverConn) option(opt uint32, data []byte) (done bool, err error) {
	if opt == optAbort {
		_ = c.answer(opt, repAck, nil)
		return false, errGoodbye
	}
	if opt != optStartTLS && !c.secure() {
		return false, c.answer(opt, repErrTLSReqd, nil)
	}
	switch opt {
	case optStartTLS:
		return false, c.startTLS(data)
	case optList:
		return false, c.list(data)
	case optStructuredReply:
		if len(data) != 0 {
			return false, c.answer(opt, repErrInvalid, nil)
		}
		c.structured = true
		return false, c.answer(opt, repAck, nil)
	case optListMetaContext, optSetMetaContext:
		return false, c.metaContext(opt, data)
	case optInfo, optGo:
		ok, err := c.info(opt, data)
		return ok && opt == optGo, err
	}
	return false, c.answer(opt, repErrUnsup, nil)
}

func (c *serverConn) startTLS(data []byte) error {
	switch {
	case c.server.tls == nil:
		return c.answer(optStartTLS, repErrPolicy, nil)
	case len(data) != 0 || c.nc != c.raw:
		return c.answer(optStartTLS, repErrInvalid, nil)
	}
	if err := c.answer(optStartTLS, repAck, nil); err != nil {
		return err
	}
	c.structured, c.contexts = false, nil // what was agreed on before counts no more
	tc := tls.Server(c.raw, c.server.tls)
	if err := tc.Handshake(); err != nil {
		return err
	}
	c.nc = tc
	return nil
}

func (c *serverConn) list(data []byte) error {
	if len(data) != 0 {
		return c.answer(optList, repErrInvalid, nil)
	}
	for _, name := range c.server.Exports() {
		e := c.find(name)
		if e == nil {
			continue // removed meanwhile
		}
		if err := c.answer(optList, repServer, append(appendString(nil, name), e.Description...)); err != nil {
			return err
		}
	}
	return c.answer(optList, repAck, nil)
}

func (c *serverConn) find(name string) *Export {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	return c.server.exports[name]
}

// claim binds the connection to an export, if that is still offered.
func (c *serverConn) claim(e *Export) bool {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if e == nil || c.server.exports[e.Name] != e {
		return false
	}
	c.export = e
	return true
}

func (c *serverConn) metaContext(opt uint32, data []byte) error {
	name, queries, ok := parseMetaQuery(data)
	if !ok || !c.structured && opt == optSetMetaContext {
		return c.answer(opt, repErrInvalid, nil)
	}
	e := c.find(name)
	if e == nil {
		return c.answer(opt, repErrUnknown, nil)
	}
	var picked []string
	for _, have := range e.Contexts {
		if slices.ContainsFunc(queries, func(q string) bool { return matches(opt, q, have) }) || opt == optListMetaContext && len(queries) == 0 {
			picked = append(picked, have)
		}
	}
	if opt == optSetMetaContext {
		c.contexts, c.contextsOf = picked, name
	}
	for id, p := range picked {
		if err := c.answer(opt, repMetaContext, append(be.AppendUint32(nil, uint32(id)), p...)); err != nil {
			return err
		}
	}
	return c.answer(opt, repAck, nil)
}

// matches reports whether a query asks for a context. Only a list may ask for all of a namespace ("base:").
func matches(opt uint32, query, name string) bool {
	return query == name || opt == optListMetaContext && strings.HasSuffix(query, ":") && strings.HasPrefix(name, query)
}

func parseMetaQuery(b []byte) (name string, queries []string, ok bool) {
	if name, b, ok = cutString(b); !ok || len(b) < 4 {
		return "", nil, false
	}
	n := be.Uint32(b)
	b = b[4:]
	for range n {
		var q string
		if q, b, ok = cutString(b); !ok {
			return "", nil, false
		}
		queries = append(queries, q)
	}
	return name, queries, len(b) == 0
}

// info answers optInfo and optGo.
func (c *serverConn) info(opt uint32, data []byte) (bool, error) {
	name, b, ok := cutString(data)
	if !ok || len(b) < 2 || len(b) != 2+2*int(be.Uint16(b)) {
		return false, c.answer(opt, repErrInvalid, nil)
	}
	e := c.find(name)
	if e == nil || opt == optGo && !c.claim(e) {
		return false, c.answer(opt, repErrUnknown, []byte("no such export"))
	}
	minimum, preferred, maximum := e.blocks()
	if err := c.answer(opt, repInfo, exportInfo(e)); err != nil {
		return false, err
	}
	for b = b[2:]; len(b) > 0; b = b[2:] {
		var r []byte
		switch kind := be.Uint16(b); {
		case kind == infoBlockSize:
			r = be.AppendUint16(nil, kind)
			r = be.AppendUint32(r, uint32(minimum))
			r = be.AppendUint32(r, uint32(preferred))
			r = be.AppendUint32(r, uint32(maximum))
		case kind == infoDescription && e.Description != "":
			r = append(be.AppendUint16(nil, kind), e.Description...)
		default:
			continue
		}
		if err := c.answer(opt, repInfo, r); err != nil {
			return false, err
		}
	}
	if opt == optGo && c.contextsOf != name {
		c.contexts = nil
	}
	return true, c.answer(opt, repAck, nil)
}

func exportInfo(e *Export) []byte {
	r := be.AppendUint16(nil, infoExport)
	r = be.AppendUint64(r, uint64(e.Backend.Size()))
	return be.AppendUint16(r, e.flags())
}

// exportName is the old way into the transmission phase; it has no way to refuse but hanging up.
func (c *serverConn) exportName(name string, noZeroes bool) error {
	if !c.secure() || !c.claim(c.find(name)) {
		return protocolError("client wants export %q, which it cannot have", name)
	}
	if c.contextsOf != name {
		c.contexts = nil
	}
	b := exportInfo(c.export)[2:]
	if !noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	_, err := c.nc.Write(b)
	return err
}
