package nbd

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
)

// negotiation is the client's half of a handshake on one connection.
type negotiation struct {
	cfg  Config
	nc   net.Conn
	info Info
	ids  map[uint32]string // metadata context id -> name
}

// optReply is one reply to an option.
type optReply struct {
	kind uint32
	data []byte
}

// run does the whole handshake; after it the connection is in the transmission phase.
func (n *negotiation) run() error {
	if err := n.greet(); err != nil {
		return err
	}
	if n.cfg.TLS != nil {
		if err := n.startTLS(); err != nil {
			return err
		}
	}
	if err := n.structuredReplies(); err != nil {
		return err
	}
	if n.info.Structured && len(n.cfg.Contexts) > 0 {
		if err := n.metaContexts(); err != nil {
			return err
		}
	}
	return n.export()
}

func (n *negotiation) greet() error {
	var b [18]byte
	if _, err := io.ReadFull(n.nc, b[:16]); err != nil {
		return err
	}
	if be.Uint64(b[:]) != magicServer {
		return protocolError("greeting is not NBD's")
	}
	switch be.Uint64(b[8:]) {
	case magicOption:
	case magicOldStyle:
		return fault.New(fault.Unsupported, "negotiate", n.cfg.subject(), "the server speaks the oldstyle handshake")
	default:
		return protocolError("greeting has an unknown second word")
	}
	if _, err := io.ReadFull(n.nc, b[16:]); err != nil {
		return err
	}
	flags := be.Uint16(b[16:])
	if flags&handshakeFixedNewstyle == 0 {
		return fault.New(fault.Unsupported, "negotiate", n.cfg.subject(), "the server does not speak the fixed newstyle handshake")
	}
	_, err := n.nc.Write(be.AppendUint32(nil, uint32(flags&(handshakeFixedNewstyle|handshakeNoZeroes))))
	return err
}

func (n *negotiation) send(opt uint32, data []byte) error {
	b := be.AppendUint64(nil, magicOption)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, uint32(len(data)))
	_, err := n.nc.Write(append(b, data...))
	return err
}

func (n *negotiation) reply(opt uint32) (optReply, error) {
	var b [20]byte
	if _, err := io.ReadFull(n.nc, b[:]); err != nil {
		return optReply{}, err
	}
	if be.Uint64(b[:]) != magicOptReply {
		return optReply{}, protocolError("option reply without its magic")
	}
	if got := be.Uint32(b[8:]); got != opt {
		return optReply{}, protocolError("reply to option %d, %d was asked", got, opt)
	}
	data, err := readPayload(n.nc, be.Uint32(b[16:]), maxOptionPayload)
	return optReply{be.Uint32(b[12:]), data}, err
}

// ask sends an option and calls each with every reply before the final one, which it returns.
func (n *negotiation) ask(opt uint32, data []byte, each func(optReply) error) (optReply, error) {
	if err := n.send(opt, data); err != nil {
		return optReply{}, err
	}
	for range maxOptionReplies {
		r, err := n.reply(opt)
		if err != nil {
			return optReply{}, err
		}
		if r.kind == repAck || r.kind&repErrBit != 0 {
			if r.kind == repAck && len(r.data) != 0 {
				return optReply{}, protocolError("acknowledgement of option %d has %d bytes", opt, len(r.data))
			}
			return r, nil
		}
		if err := each(r); err != nil {
			return optReply{}, err
		}
	}
	return optReply{}, protocolError("more than %d replies to option %d", maxOptionReplies, opt)
}

func unexpected(opt uint32) func(optReply) error {
	return func(r optReply) error { return protocolError("reply of type %d to option %d", r.kind, opt) }
}

func (n *negotiation) startTLS() error {
	r, err := n.ask(optStartTLS, nil, unexpected(optStartTLS))
	if err != nil {
		return err
	}
	if r.kind != repAck {
		e := fault.New(fault.Denied, "start TLS with", n.cfg.subject(), "the server refused: %s", refusal(r))
		return e.Explain("The server does not offer TLS, and reading the disk in the clear is not allowed here.",
			"Switch TLS on for the hypervisor's NBD server.")
	}
	cfg := n.cfg.TLS.Clone()
	cfg.MinVersion = max(cfg.MinVersion, tls.VersionTLS12)
	tc := tls.Client(n.nc, cfg)
	if err := tc.Handshake(); err != nil {
		return tlsError(n.cfg.subject(), err)
	}
	n.nc = tc
	return nil
}

func tlsError(subject string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		return err
	}
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return err
	}
	return fault.Wrap(fault.Denied, "TLS handshake with", subject, err).Explain(
		"Who the server is could not be proven, or it did not accept our certificate.",
		"Check the CA, the server's name in its certificate and our client certificate.")
}

func (n *negotiation) structuredReplies() error {
	r, err := n.ask(optStructuredReply, nil, unexpected(optStructuredReply))
	if err != nil {
		return err
	}
	if r.kind == repErrTLSReqd {
		return n.refused("negotiate", r)
	}
	n.info.Structured = r.kind == repAck
	return nil
}

// metaContexts selects the contexts; the server picks those it has.
func (n *negotiation) metaContexts() error {
	data := appendString(nil, n.cfg.Export)
	data = be.AppendUint32(data, uint32(len(n.cfg.Contexts)))
	for _, c := range n.cfg.Contexts {
		data = appendString(data, c)
	}
	n.ids = map[uint32]string{}
	r, err := n.ask(optSetMetaContext, data, n.metaContext)
	if err != nil {
		return err
	}
	switch r.kind {
	case repAck:
		return nil
	case repErrUnsup:
		n.ids, n.info.Contexts = nil, nil
		return nil
	}
	return n.refused("select metadata of", r)
}

func (n *negotiation) metaContext(r optReply) error {
	if r.kind != repMetaContext || len(r.data) < 5 || len(r.data) > 4+maxString {
		return protocolError("reply of type %d with %d bytes to a metadata context query", r.kind, len(r.data))
	}
	id, name := be.Uint32(r.data), string(r.data[4:])
	if !slices.Contains(n.cfg.Contexts, name) {
		return protocolError("metadata context %q was not asked for", name)
	}
	if _, dup := n.ids[id]; dup || slices.Contains(n.info.Contexts, name) {
		return protocolError("metadata context %q or its id %d appears twice", name, id)
	}
	n.ids[id] = name
	n.info.Contexts = append(n.info.Contexts, name)
	return nil
}

// export asks for the export's properties, and with optGo enters the transmission phase.
func (n *negotiation) export() error {
	n.info.MinBlock, n.info.PreferredBlock, n.info.MaxBlock = 1, 4096, maxPayload
	data := appendString(nil, n.cfg.Export)
	data = be.AppendUint16(data, 2)
	data = be.AppendUint16(data, infoBlockSize)
	data = be.AppendUint16(data, infoDescription)
	seen := false
	r, err := n.ask(optGo, data, func(r optReply) error {
		if r.kind != repInfo || len(r.data) < 2 {
			return protocolError("reply of type %d with %d bytes to a query of an export", r.kind, len(r.data))
		}
		kind := be.Uint16(r.data)
		seen = seen || kind == infoExport
		return n.exportInfo(kind, r.data[2:])
	})
	switch {
	case err != nil:
		return err
	case r.kind != repAck:
		return n.refused("open export", r)
	case !seen:
		return protocolError("the server did not tell the export's size")
	case n.info.Size%int64(n.info.MinBlock) != 0:
		return fault.New(fault.Unsupported, "open export", n.cfg.subject(),
			"size %d is no multiple of the smallest block %d, so its end cannot be read", n.info.Size, n.info.MinBlock)
	}
	return nil
}

func (n *negotiation) exportInfo(kind uint16, b []byte) error {
	switch kind {
	case infoExport:
		if len(b) != 10 || be.Uint64(b) > 1<<63-1 {
			return protocolError("export information of %d bytes", len(b))
		}
		n.info.Size = int64(be.Uint64(b))
		n.info.setFlags(be.Uint16(b[8:]))
	case infoBlockSize:
		if len(b) != 12 {
			return protocolError("block sizes of %d bytes", len(b))
		}
		return n.info.setBlockSizes(be.Uint32(b), be.Uint32(b[4:]), be.Uint32(b[8:]))
	case infoDescription:
		n.info.Description = string(b[:min(len(b), maxString)])
	}
	return nil // kinds we did not ask for are allowed and ignored
}

// refusal returns the server's words for an error reply.
func refusal(r optReply) string {
	names := map[uint32]string{
		repErrUnsup: "unknown option", repErrPolicy: "forbidden by policy", repErrInvalid: "invalid request",
		repErrTLSReqd: "TLS required", repErrUnknown: "no such export", repErrShutdown: "shutting down", repErrTooBig: "too big",
	}
	s, ok := names[r.kind]
	if !ok {
		s = fmt.Sprintf("error %#x", r.kind)
	}
	if len(r.data) > 0 && len(r.data) <= maxString {
		s += fmt.Sprintf(" (%q)", r.data)
	}
	return s
}

func (n *negotiation) refused(op string, r optReply) error {
	e := fault.New(fault.Transient, op, n.cfg.subject(), "the server refused: %s", refusal(r))
	switch r.kind {
	case repErrUnknown:
		e.Kind = fault.NotFound
		e.Explain("The server no longer has this disk's export.", "Start the task again; if that does not help, check the connection.")
	case repErrTLSReqd:
		e.Kind = fault.Denied
		e.Explain("The server speaks only TLS.", "Give the connection the CA and the client certificate to use.")
	case repErrPolicy:
		e.Kind = fault.Denied
	case repErrUnsup:
		e.Kind = fault.Unsupported
	case repErrInvalid, repErrTooBig:
		e.Kind = fault.Invalid
	}
	return e
}
