package nbd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/internal/fault"
)

// listen calls talk for every connection to the address it returns.
func listen(t testing.TB, talk func(c net.Conn)) Config {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(shortTemp(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				talk(c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return Config{Network: "unix", Address: l.Addr().String(), Export: "d", Connections: 1}
}

// agree is a server's part of a good handshake: an export of 1 MiB with two contexts (ids 0 and 1).
func agree(t testing.TB, c net.Conn) bool { return agreeTLS(t, c, nil) != nil }

// agreeTLS does the same over TLS if there is a configuration; it returns the connection to go on with.
func agreeTLS(t testing.TB, c net.Conn, server *tls.Config) net.Conn {
	s := NewServer(ServerOptions{TLS: server})
	if err := s.Add(Export{Name: "d", Backend: NewMemory(1<<20, nil), Contexts: []string{BaseAllocation, "qemu:dirty-bitmap:b"}}); err != nil {
		t.Error(err)
		return nil
	}
	sc := &serverConn{server: s, nc: c, raw: c}
	if sc.handshake() != nil {
		return nil
	}
	return sc.nc
}

// request28 is what a client sends for one request without payload.
type request28 struct {
	kind   uint16
	cookie uint64
}

func nextRequest(c net.Conn) (request28, error) {
	var b [28]byte
	_, err := io.ReadFull(c, b[:])
	return request28{be.Uint16(b[6:]), be.Uint64(b[8:])}, err
}

// chunkOf makes a chunk; parts are uint16, uint32, uint64 or []byte.
func chunkOf(cookie uint64, flags, kind uint16, parts ...any) []byte {
	var p []byte
	for _, x := range parts {
		switch x := x.(type) {
		case uint16:
			p = be.AppendUint16(p, x)
		case uint32:
			p = be.AppendUint32(p, x)
		case uint64:
			p = be.AppendUint64(p, x)
		case []byte:
			p = append(p, x...)
		}
	}
	return append(chunkHead(command{cookie: cookie}, flags, kind, len(p)), p...)
}

// header makes a chunk's header with any length.
func header(cookie uint64, flags, kind uint16, length uint32) []byte {
	return be.AppendUint32(chunkHead(command{cookie: cookie}, flags, kind, 0)[:16], length)
}

func join(b ...[]byte) []byte { return bytes.Join(b, nil) }

const (
	done     = uint16(chunkFlagDone)
	readAt   = 8192 // what the client reads in these tests
	readSize = 4096
)

func TestRepliesAgainstTheProtocol(t *testing.T) {
	data := bytes.Repeat([]byte{7}, readSize)
	errorChunk := func(ck uint64) []byte { return chunkOf(ck, 0, chunkError, uint32(EIO), uint16(0)) }
	tests := map[string]func(ck uint64) []byte{
		"no magic":                     func(uint64) []byte { return make([]byte, 20) },
		"unknown cookie":               func(ck uint64) []byte { return chunkOf(ck+1, done, chunkNone) },
		"simple reply to a read":       func(ck uint64) []byte { return append(simpleHead(command{cookie: ck}, 0), data...) },
		"data before the range":        func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetData, uint64(readAt-1), data) },
		"data behind the range":        func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetData, uint64(readAt+1), data) },
		"data at an offset that wraps": func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetData, uint64(1<<64-4096), data) },
		"no data":                      func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetData, uint64(readAt)) },
		"data of 4 GiB":                func(ck uint64) []byte { return append(header(ck, done, chunkOffsetData, 1<<32-1), make([]byte, 8)...) },
		"data shorter than an offset":  func(ck uint64) []byte { return header(ck, done, chunkOffsetData, 3) },
		"data twice":                   func(ck uint64) []byte { c := chunkOf(ck, 0, chunkOffsetData, uint64(readAt), data); return join(c, c) },
		"data incomplete":              func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetData, uint64(readAt), data[1:]) },
		"nothing at all":               func(ck uint64) []byte { return chunkOf(ck, done, chunkNone) },
		"empty chunk that is not last": func(ck uint64) []byte { return chunkOf(ck, 0, chunkNone) },
		"empty chunk with payload":     func(ck uint64) []byte { return chunkOf(ck, done, chunkNone, uint64(0)) },
		"unknown flags":                func(ck uint64) []byte { return chunkOf(ck, 3, chunkNone) },
		"unknown type":                 func(ck uint64) []byte { return chunkOf(ck, done, 77) },
		"block status for a read":      func(ck uint64) []byte { return chunkOf(ck, done, chunkBlockStatus, uint32(0), uint32(1), uint32(0)) },
		"hole of the wrong length":     func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetHole, uint64(readAt)) },
		"empty hole":                   func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetHole, uint64(readAt), uint32(0)) },
		"hole beyond the range":        func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetHole, uint64(readAt), uint32(readSize+1)) },
		"hole over data": func(ck uint64) []byte {
			return join(chunkOf(ck, 0, chunkOffsetData, uint64(readAt), data[:10]), chunkOf(ck, done, chunkOffsetHole, uint64(readAt+9), uint32(readSize-9)))
		},
		"error number 0":            func(ck uint64) []byte { return chunkOf(ck, done, chunkError, uint32(0), uint16(0)) },
		"error too short":           func(ck uint64) []byte { return chunkOf(ck, done, chunkError, uint32(5)) },
		"error with a long message": func(ck uint64) []byte { return chunkOf(ck, done, chunkError, uint32(5), uint16(9), []byte("short")) },
		"error with bytes too many": func(ck uint64) []byte { return chunkOf(ck, done, chunkError, uint32(5), uint16(1), []byte("more")) },
		"error of 4 GiB":            func(ck uint64) []byte { return header(ck, done, chunkError, 1<<32-1) },
		"error elsewhere":           func(ck uint64) []byte { return chunkOf(ck, done, chunkErrorOffset, uint32(5), uint16(0), uint64(1)) },
		"errors without end":        func(ck uint64) []byte { return bytes.Repeat(errorChunk(ck), maxErrorChunks+1) },
	}
	for name, reply := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := listen(t, func(c net.Conn) {
				if !agree(t, c) {
					return
				}
				r, err := nextRequest(c)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = c.Write(reply(r.cookie))
				_, _ = nextRequest(c) // until the client hangs up
			})
			c, err := Dial(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err = c.Read(t.Context(), make([]byte, readSize), readAt)
			runtime.ReadMemStats(&after)
			if !errors.Is(err, ErrProtocol) {
				t.Errorf("Read = %v, want ErrProtocol", err)
			}
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes were allocated", n)
			}
			if m, a := fault.Explanation(err); m == "" || a == "" {
				t.Error("no explanation")
			}
			if err := c.Read(t.Context(), make([]byte, 1), 0); !errors.Is(err, ErrProtocol) {
				t.Errorf("next Read = %v, want ErrProtocol", err)
			}
		})
	}
}

func TestUnusualRepliesThatAreAllowed(t *testing.T) {
	data := bytes.Repeat([]byte{7}, readSize)
	half := append(bytes.Clone(data[:readSize/2]), make([]byte, readSize/2)...)
	tests := map[string]struct {
		reply func(ck uint64) []byte
		want  []byte
		errno Errno
	}{
		"in two pieces, the last first": {func(ck uint64) []byte {
			return join(chunkOf(ck, 0, chunkOffsetHole, uint64(readAt+readSize/2), uint32(readSize/2)),
				chunkOf(ck, 0, chunkOffsetData, uint64(readAt), data[:readSize/2]), chunkOf(ck, done, chunkNone))
		}, half, 0},
		"every other byte first": {func(ck uint64) []byte {
			var b []byte
			for _, start := range []uint64{0, 8} {
				for at := start; at < readSize; at += 16 {
					b = append(b, chunkOf(ck, 0, chunkOffsetData, readAt+at, data[:8])...)
				}
			}
			return append(b, chunkOf(ck, done, chunkNone)...)
		}, data, 0},
		"error after some data": {func(ck uint64) []byte {
			return join(chunkOf(ck, 0, chunkOffsetData, uint64(readAt), data[:100]),
				chunkOf(ck, done, chunkErrorOffset, uint32(EIO), uint16(3), []byte("bad"), uint64(readAt+100)))
		}, nil, EIO},
		"unknown kind of error": {func(ck uint64) []byte {
			return chunkOf(ck, done, chunkErrBit|99, uint32(ENOSPC), uint16(2), []byte("hmand more"))
		}, nil, ENOSPC},
		"unknown number": {func(ck uint64) []byte { return chunkOf(ck, done, chunkError, uint32(4711), uint16(0)) }, nil, 4711},
		"error first, all data later": {func(ck uint64) []byte {
			return join(chunkOf(ck, 0, chunkError, uint32(EIO), uint16(0)), chunkOf(ck, done, chunkOffsetData, uint64(readAt), data))
		}, nil, EIO},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := listen(t, func(c net.Conn) {
				if !agree(t, c) {
					return
				}
				for {
					r, err := nextRequest(c)
					if err != nil || r.kind == cmdDisc {
						return
					}
					_, _ = c.Write(tt.reply(r.cookie))
				}
			})
			c, err := Dial(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			for range 2 { // the stream is in step afterwards
				got := bytes.Repeat([]byte{1}, readSize)
				err := c.Read(t.Context(), got, readAt)
				if tt.errno != 0 {
					if !errors.Is(err, tt.errno) {
						t.Errorf("Read = %v, want %v", err, tt.errno)
					}
				} else if err != nil || !bytes.Equal(got, tt.want) {
					t.Errorf("Read = %v, data equal: %v", err, bytes.Equal(got, tt.want))
				}
			}
		})
	}
}

func TestBlockStatusAgainstTheProtocol(t *testing.T) {
	one := func(ck uint64, flags uint16, id uint32) []byte {
		return chunkOf(ck, flags, chunkBlockStatus, id, uint32(readSize), uint32(0))
	}
	tests := map[string]func(ck uint64) []byte{
		"unknown context": func(ck uint64) []byte { return one(ck, done, 9) },
		"context missing": func(ck uint64) []byte { return one(ck, done, 0) },
		"context twice":   func(ck uint64) []byte { return join(one(ck, 0, 0), one(ck, done, 0)) },
		"no extents":      func(ck uint64) []byte { return chunkOf(ck, done, chunkBlockStatus, uint32(0)) },
		"odd length": func(ck uint64) []byte {
			return chunkOf(ck, done, chunkBlockStatus, uint32(0), uint32(1), uint32(0), uint16(0))
		},
		"4 GiB of extents": func(ck uint64) []byte { return header(ck, done, chunkBlockStatus, 1<<32-4) },
		"empty extent":     func(ck uint64) []byte { return chunkOf(ck, done, chunkBlockStatus, uint32(0), uint32(0), uint32(0)) },
		"extents behind the range": func(ck uint64) []byte {
			return chunkOf(ck, done, chunkBlockStatus, uint32(0), uint32(readSize), uint32(0), uint32(1), uint32(0))
		},
		"data":         func(ck uint64) []byte { return chunkOf(ck, done, chunkOffsetData, uint64(readAt), uint64(0)) },
		"simple reply": func(ck uint64) []byte { return simpleHead(command{cookie: ck}, 0) },
	}
	for name, reply := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := listen(t, func(c net.Conn) {
				if !agree(t, c) {
					return
				}
				r, _ := nextRequest(c)
				_, _ = c.Write(reply(r.cookie))
				_, _ = nextRequest(c)
			})
			cfg.Contexts = []string{BaseAllocation, "qemu:dirty-bitmap:b"}
			c, err := Dial(t.Context(), cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.Close() }()
			if _, err := c.BlockStatus(t.Context(), readAt, readSize); !errors.Is(err, ErrProtocol) {
				t.Errorf("BlockStatus = %v, want ErrProtocol", err)
			}
		})
	}
}

// optionReply makes a server's reply to an option.
func optionReply(opt, kind uint32, data []byte) []byte {
	b := be.AppendUint64(nil, magicOptReply)
	b = be.AppendUint32(b, opt)
	b = be.AppendUint32(b, kind)
	return append(be.AppendUint32(b, uint32(len(data))), data...)
}

func greeting() []byte {
	b := be.AppendUint64(nil, magicServer)
	b = be.AppendUint64(b, magicOption)
	return be.AppendUint16(b, handshakeFixedNewstyle|handshakeNoZeroes)
}

// exportOf is an INFO reply with a size, and one with block sizes if there are any.
func exportOf(size uint64, blocks ...uint32) []byte {
	b := optionReply(optGo, repInfo, be.AppendUint16(be.AppendUint64(be.AppendUint16(nil, infoExport), size), flagHasFlags))
	if len(blocks) > 0 {
		d := be.AppendUint16(nil, infoBlockSize)
		for _, x := range blocks {
			d = be.AppendUint32(d, x)
		}
		b = append(b, optionReply(optGo, repInfo, d)...)
	}
	return b
}

func TestHandshakesAgainstTheProtocol(t *testing.T) {
	ack := func(opt uint32) []byte { return optionReply(opt, repAck, nil) }
	meta := func(id uint32, name string) []byte {
		return optionReply(optSetMetaContext, repMetaContext, append(be.AppendUint32(nil, id), name...))
	}
	before := join(greeting(), ack(optStructuredReply))
	contexts := join(before, meta(1, BaseAllocation), ack(optSetMetaContext))
	long := be.AppendUint32(optionReply(optStructuredReply, repAck, nil)[:16], 1<<32-1)
	tests := map[string]struct {
		talk []byte
		kind fault.Kind
		is   error
	}{
		"another service":           {[]byte("SSH-2.0-OpenSSH_9.2\r\n"), fault.Internal, ErrProtocol},
		"hangs up":                  {nil, fault.Transient, nil},
		"hangs up later":            {before, fault.Transient, nil},
		"oldstyle":                  {be.AppendUint64(be.AppendUint64(nil, magicServer), magicOldStyle), fault.Unsupported, nil},
		"unknown second word":       {be.AppendUint64(be.AppendUint64(nil, magicServer), 1), fault.Internal, ErrProtocol},
		"not fixed":                 {append(greeting()[:16], 0, 0), fault.Unsupported, nil},
		"reply without magic":       {join(greeting(), make([]byte, 20)), fault.Internal, ErrProtocol},
		"reply to another option":   {join(greeting(), ack(optGo)), fault.Internal, ErrProtocol},
		"reply of 4 GiB":            {join(greeting(), long), fault.Internal, ErrProtocol},
		"acknowledgement with data": {join(greeting(), optionReply(optStructuredReply, repAck, []byte{1})), fault.Internal, ErrProtocol},
		"replies without end":       {join(contexts, bytes.Repeat(exportOf(1), maxOptionReplies+1)), fault.Internal, ErrProtocol},
		"context not asked for":     {join(before, meta(1, "x:y")), fault.Internal, ErrProtocol},
		"context twice":             {join(before, meta(1, BaseAllocation), meta(2, BaseAllocation)), fault.Internal, ErrProtocol},
		"context without name":      {join(before, optionReply(optSetMetaContext, repMetaContext, []byte{0, 0, 0, 1})), fault.Internal, ErrProtocol},
		"no size":                   {join(contexts, ack(optGo)), fault.Internal, ErrProtocol},
		"negative size":             {join(contexts, exportOf(1<<63), ack(optGo)), fault.Internal, ErrProtocol},
		"short export information":  {join(contexts, optionReply(optGo, repInfo, make([]byte, 9))), fault.Internal, ErrProtocol},
		"empty information":         {join(contexts, optionReply(optGo, repInfo, nil)), fault.Internal, ErrProtocol},
		"minimum block 0":           {join(contexts, exportOf(1<<20, 0, 4096, 1<<20), ack(optGo)), fault.Internal, ErrProtocol},
		"minimum block 3":           {join(contexts, exportOf(1<<20, 3, 4096, 1<<20), ack(optGo)), fault.Internal, ErrProtocol},
		"minimum block 128 KiB":     {join(contexts, exportOf(1<<20, 1<<17, 1<<17, 1<<20), ack(optGo)), fault.Internal, ErrProtocol},
		"maximum below minimum":     {join(contexts, exportOf(1<<20, 4096, 4096, 512), ack(optGo)), fault.Internal, ErrProtocol},
		"maximum not in blocks":     {join(contexts, exportOf(1<<20, 4096, 4096, 5000), ack(optGo)), fault.Internal, ErrProtocol},
		"size not in blocks":        {join(contexts, exportOf(1000, 512, 4096, 1<<20), ack(optGo)), fault.Unsupported, nil},
		"no such export":            {join(contexts, optionReply(optGo, repErrUnknown, []byte("gone"))), fault.NotFound, nil},
		"policy":                    {join(contexts, optionReply(optGo, repErrPolicy, nil)), fault.Denied, nil},
		"shutting down":             {join(contexts, optionReply(optGo, repErrShutdown, nil)), fault.Transient, nil},
		"TLS wanted":                {join(greeting(), optionReply(optStructuredReply, repErrTLSReqd, nil)), fault.Denied, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			cfg := listen(t, func(c net.Conn) {
				_, _ = c.Write(tt.talk)
				_ = c.(*net.UnixConn).CloseWrite()
				_, _ = io.Copy(io.Discard, c)
			})
			cfg.Contexts = []string{BaseAllocation}
			c, err := Dial(t.Context(), cfg)
			if err == nil {
				_ = c.Close()
				t.Fatal("Dial worked")
			}
			if got := fault.KindOf(err); got != tt.kind || tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("Dial = %v, kind %v; want kind %v, is %v", err, got, tt.kind, tt.is)
			}
		})
	}
}

// silent is a server that agrees and then answers nothing, but reports that a request came.
func silent(t testing.TB, arrived chan<- struct{}) Config {
	return listen(t, func(c net.Conn) {
		if !agree(t, c) {
			return
		}
		for {
			r, err := nextRequest(c)
			if err != nil || r.kind == cmdDisc {
				return
			}
			arrived <- struct{}{}
		}
	})
}

func TestCancelReturnsThoughTheServerIsSilent(t *testing.T) {
	arrived := make(chan struct{}, 1)
	c, err := Dial(t.Context(), silent(t, arrived))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if err := c.Read(ctx, make([]byte, 512), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("Read = %v", err)
	}
}

func TestCancelInTheMiddleOfAReply(t *testing.T) {
	t.Run("plain", func(t *testing.T) { cancelMidReply(t, nil, nil) })
	t.Run("TLS", func(t *testing.T) {
		server, client := nbdtest.TLS(t, nbdtest.Certificates(t))
		cancelMidReply(t, server, client)
	})
}

func cancelMidReply(t *testing.T, server, client *tls.Config) {
	cancels := make(chan context.CancelFunc, 1)
	var rest sync.WaitGroup
	rest.Add(1)
	cfg := listen(t, func(raw net.Conn) {
		c := agreeTLS(t, raw, server)
		if c == nil {
			return
		}
		first, _ := nextRequest(c)
		reply := chunkOf(first.cookie, done, chunkOffsetData, uint64(readAt), bytes.Repeat([]byte{7}, readSize))
		_, _ = c.Write(reply[:1000]) // the client is now reading into the caller's buffer, or soon will
		(<-cancels)()
		rest.Wait() // the caller has its buffer back
		_, _ = c.Write(reply[1000:])
		second, err := nextRequest(c)
		if err != nil {
			t.Error(err)
			return
		}
		_, _ = c.Write(chunkOf(second.cookie, done, chunkOffsetData, uint64(0), bytes.Repeat([]byte{9}, 512)))
		_, _ = nextRequest(c)
	})
	cfg.TLS = client
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	cancels <- cancel
	buf := make([]byte, readSize)
	if err := c.Read(ctx, buf, readAt); !errors.Is(err, context.Canceled) {
		t.Fatalf("Read = %v", err)
	}
	for i := range buf {
		buf[i] = 1
	}
	rest.Done()
	next := make([]byte, 512)
	if err := c.Read(t.Context(), next, 0); err != nil {
		t.Fatalf("the next Read = %v", err)
	}
	if !bytes.Equal(next, bytes.Repeat([]byte{9}, 512)) || !bytes.Equal(buf, bytes.Repeat([]byte{1}, readSize)) {
		t.Error("the cancelled read's data went somewhere")
	}
}

func TestSilentServerIsGivenUp(t *testing.T) {
	arrived := make(chan struct{}, 1)
	cfg := silent(t, arrived)
	cfg.StallTimeout = 20 * time.Millisecond
	c, err := Dial(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	err = c.Read(t.Context(), make([]byte, 512), 0)
	if !errors.Is(err, ErrConnectionLost) || !strings.Contains(err.Error(), "no answer") {
		t.Errorf("Read = %v", err)
	}
}

func TestCloseFailsWhatIsInFlight(t *testing.T) {
	arrived := make(chan struct{}, 1)
	cfg := silent(t, arrived)
	for range 200 { // the server hangs up on the goodbye, now and then before the client does
		c, err := Dial(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			<-arrived
			_ = c.Close()
		}()
		if err := c.Read(t.Context(), make([]byte, 512), 0); !errors.Is(err, ErrClosed) {
			t.Fatalf("Read = %v", err)
		}
	}
}

func TestCoverage(t *testing.T) {
	type r = [2]int64
	tests := []struct {
		add  []r
		want []r
		bad  bool
	}{
		{[]r{{0, 5}, {5, 9}}, []r{{0, 9}}, false},
		{[]r{{5, 9}, {0, 5}}, []r{{0, 9}}, false},
		{[]r{{0, 2}, {4, 6}, {2, 4}}, []r{{0, 6}}, false},
		{[]r{{0, 2}, {4, 6}, {8, 9}}, []r{{0, 2}, {4, 6}, {8, 9}}, false},
		{[]r{{0, 2}, {1, 3}}, nil, true},
		{[]r{{4, 6}, {0, 5}}, nil, true},
		{[]r{{4, 6}, {0, 9}}, nil, true},
		{[]r{{0, 9}, {4, 6}}, nil, true},
		{[]r{{0, 2}, {4, 6}, {2, 5}}, nil, true},
	}
	for _, tt := range tests {
		var v coverage
		var err error
		for _, x := range tt.add {
			if err = v.add(x[0], x[1]); err != nil {
				break
			}
		}
		if (err != nil) != tt.bad {
			t.Errorf("%v: %v", tt.add, err)
		}
		if !tt.bad && !equalRanges(v.ranges, tt.want) {
			t.Errorf("%v: %v, want %v", tt.add, v.ranges, tt.want)
		}
	}
}

func equalRanges(a, b [][2]int64) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i] != b[i] {
			return false
		}
	}
	return true
}
