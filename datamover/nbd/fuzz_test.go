package nbd

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

func shortTemp(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// tape is a connection whose other side has already said everything.
type tape struct {
	net.Conn
	mu  sync.Mutex
	in  *bytes.Reader
	out bytes.Buffer
}

func newTape(b []byte) *tape { return &tape{in: bytes.NewReader(b)} }

func (t *tape) Read(p []byte) (int, error) { return t.in.Read(p) }
func (t *tape) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.Write(p)
}
func (t *tape) Close() error                     { return nil }
func (t *tape) SetDeadline(time.Time) error      { return nil }
func (t *tape) SetReadDeadline(time.Time) error  { return nil }
func (t *tape) SetWriteDeadline(time.Time) error { return nil }

func FuzzReplies(f *testing.F) {
	data := bytes.Repeat([]byte{7}, 4096)
	for _, off := range []uint64{0, 4095, 4096, 8191, 8192, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		f.Add(true, chunkOf(1, done, chunkOffsetData, off, data))
		f.Add(true, chunkOf(1, done, chunkOffsetData, off, data[:1]))
		f.Add(true, chunkOf(1, done, chunkOffsetHole, off, uint32(4096)))
		f.Add(true, chunkOf(1, done, chunkErrorOffset, uint32(5), uint16(0), off))
	}
	for _, n := range []uint32{0, 1, 7, 8, 9, 11, 12, 13, 4103, 4104, 4105, 1 << 31, 1<<32 - 1} {
		f.Add(true, append(header(1, done, chunkOffsetData, n), data...))
		f.Add(true, append(header(2, done, chunkBlockStatus, n), data...))
		f.Add(true, append(header(3, done, chunkError, n), data...))
		f.Add(true, chunkOf(2, done, chunkBlockStatus, uint32(0), n, uint32(3)))
		f.Add(true, chunkOf(1, done, chunkOffsetHole, uint64(4096), n))
	}
	f.Add(false, append(simpleHead(command{cookie: 1}, 0), data...))
	f.Add(false, simpleHead(command{cookie: 3}, EIO))
	f.Fuzz(func(t *testing.T, structured bool, b []byte) {
		guarded := bytes.Repeat([]byte{0xaa}, 64+4096+64)
		pending := map[uint64]*request{
			1: {cmd: cmdRead, offset: 4096, length: 4096, buf: guarded[64 : 64+4096]},
			2: {cmd: cmdBlockStatus, offset: 0, length: 1 << 20},
			3: {cmd: cmdWrite, offset: 0, length: 4096},
		}
		all := []*request{pending[1], pending[2], pending[3]}
		for _, r := range all {
			r.finished = make(chan struct{})
		}
		c := newConn(&negotiation{nc: newTape(b), info: Info{Structured: structured}, ids: map[uint32]string{0: "a"}})
		c.pending = pending
		for c.receiveReply() == nil {
		}
		for _, x := range append(guarded[:64:64], guarded[64+4096:]...) {
			if x != 0xaa {
				t.Fatal("a reply wrote outside the buffer")
			}
		}
		for _, r := range all {
			select {
			case <-r.finished:
			default:
				continue
			}
			if r.err == nil && r.cmd == cmdRead && structured && r.got.total != r.length {
				t.Fatalf("a read succeeded after %d bytes", r.got.total)
			}
			total := int64(0)
			for _, e := range r.extents["a"] {
				total += e.Length
			}
			if r.err == nil && r.cmd == cmdBlockStatus && (total == 0 || total > r.length) {
				t.Fatalf("extents cover %d bytes", total)
			}
		}
	})
}

func FuzzNegotiate(f *testing.F) {
	ok := join(greeting(), optionReply(optStructuredReply, repAck, nil),
		optionReply(optSetMetaContext, repMetaContext, append([]byte{0, 0, 0, 0}, BaseAllocation...)), optionReply(optSetMetaContext, repAck, nil))
	f.Add(join(ok, exportOf(1<<20), optionReply(optGo, repAck, nil)))
	for _, n := range []uint32{0, 1, 3, 512, 1 << 16, 1 << 17, 1 << 31, 1<<32 - 1} {
		f.Add(join(ok, exportOf(1<<20, n, max(n, 4096), 1<<25), optionReply(optGo, repAck, nil)))
		f.Add(join(ok, exportOf(1<<20, 1, 4096, n), optionReply(optGo, repAck, nil)))
		f.Add(join(greeting(), be.AppendUint32(optionReply(optStructuredReply, repAck, nil)[:16], n)))
	}
	for _, size := range []uint64{0, 1, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		f.Add(join(ok, exportOf(size), optionReply(optGo, repAck, nil)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n := &negotiation{cfg: Config{Export: "d", Contexts: []string{BaseAllocation}}, nc: newTape(b)}
		if n.run() != nil {
			return
		}
		i := n.info
		if i.Size < 0 || i.MinBlock < 1 || i.MaxBlock < i.MinBlock || i.MaxBlock > maxPayload || i.Size%int64(i.MinBlock) != 0 || len(i.Contexts) > 1 {
			t.Fatalf("accepted %+v", i)
		}
	})
}

func FuzzServer(f *testing.F) {
	option := func(opt uint32, data []byte) []byte {
		return append(be.AppendUint32(be.AppendUint32(be.AppendUint64(nil, magicOption), opt), uint32(len(data))), data...)
	}
	request := func(kind uint16, off uint64, n uint32) []byte {
		b := be.AppendUint32(nil, magicRequest)
		b = be.AppendUint16(be.AppendUint16(b, 0), kind)
		return be.AppendUint32(be.AppendUint64(be.AppendUint64(b, 1), off), n)
	}
	open := join([]byte{0, 0, 0, 3}, option(optStructuredReply, nil),
		option(optSetMetaContext, join(appendString(nil, "d"), []byte{0, 0, 0, 1}, appendString(nil, BaseAllocation))),
		option(optGo, append(appendString(nil, "d"), 0, 1, 0, 3)))
	for _, off := range []uint64{0, 1, 65535, 65536, 1<<63 - 1, 1 << 63, 1<<64 - 1} {
		for _, n := range []uint32{0, 1, 65535, 65536, 65537, 1<<32 - 1} {
			for _, kind := range []uint16{cmdRead, cmdFlush, cmdTrim, cmdWriteZeroes, cmdBlockStatus} {
				f.Add(join(open, request(kind, off, n)))
			}
		}
	}
	f.Add(join(open, request(cmdWrite, 0, 4), []byte("data"), request(cmdDisc, 0, 0)))
	f.Add(join([]byte{0, 0, 0, 3}, option(optList, nil), option(optInfo, nil), option(optExportName, []byte("d"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := NewServer(ServerOptions{})
		if err := s.Add(Export{Name: "d", Backend: NewMemory(64<<10, nil), Contexts: []string{BaseAllocation}}); err != nil {
			t.Fatal(err)
		}
		c := newTape(b)
		sc := &serverConn{server: s, nc: c, raw: c}
		_ = sc.run(context.Background())
		if n := c.out.Len(); n > 1<<20+len(b)*(64<<10) {
			t.Fatalf("%d bytes answer %d", n, len(b))
		}
		_, _ = io.Copy(io.Discard, &c.out)
	})
}
