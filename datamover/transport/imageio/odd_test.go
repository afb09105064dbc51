package imageiotransport

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/crypto/blake2b"
)

// odd is a second daemon, made of nothing but what the protocol says. It does as much as possible otherwise than the simulator's: raw
// sockets, headers in small letters and another order, chunked bodies in odd pieces, interim answers, extents that are not joined,
// a connection that ends after some requests, and one writer at a time. It keeps its image in memory, and what was not flushed apart.
type odd struct {
	t        testing.TB
	listener net.Listener
	ticket   string
	wg       sync.WaitGroup

	mu        sync.Mutex
	fewer     *sync.Cond // when a connection has ended
	durable   []byte
	now       []byte // durable and what was written since
	unflushed [][2]int64
	dirty     map[int64]bool
	conns     map[net.Conn]int // requests so far
	opened    int
	perConn   int  // requests until a connection ends; 0 is any number
	gone      bool // the ticket
	oldOne    bool // no OPTIONS, no PATCH
	blind     bool // the ticket does not allow reading
	most      int  // connections at once
	requests  map[string]int
	spoil     []*spoiler
	atGet     func()
	lost      int64
}

// spoiler makes requests with a method fail: the skip-th and those after it.
type spoiler struct {
	method      string
	skip, times int
	what        string // "drop", "half", "500", "crash", "forget", "403"
	fired       int
}

const oddBlock = 64 << 10

func newOdd(t testing.TB, cert tls.Certificate, size int64) *odd {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	o := &odd{
		t: t, listener: l, ticket: "odd-" + strings.Repeat("7", 32), durable: make([]byte, size), now: make([]byte, size), perConn: 50,
		dirty: map[int64]bool{}, conns: map[net.Conn]int{}, requests: map[string]int{},
	}
	o.fewer = sync.NewCond(&o.mu)
	o.wg.Go(o.accept)
	t.Cleanup(func() {
		_ = l.Close()
		o.hangUp()
		o.wg.Wait()
	})
	return o
}

func (o *odd) accept() {
	for {
		c, err := o.listener.Accept()
		if err != nil {
			return
		}
		o.mu.Lock()
		o.conns[c] = 0
		o.opened++
		o.most = max(o.most, len(o.conns))
		o.mu.Unlock()
		o.wg.Go(func() { o.talk(c) })
	}
}

func (o *odd) hangUp() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.conns {
		_ = c.Close()
	}
}

func (o *odd) talk(c net.Conn) {
	defer func() {
		_ = c.Close()
		o.mu.Lock()
		delete(o.conns, c)
		o.fewer.Broadcast()
		o.mu.Unlock()
	}()
	in := bufio.NewReader(c)
	for o.one(c, in) {
	}
}

// answer is what one request comes to.
type answer struct {
	code    int
	headers []string
	body    []byte
	chunked bool
	last    bool // the connection ends
}

// one serves a request; false ends the connection.
func (o *odd) one(c net.Conn, in *bufio.Reader) bool {
	tp := textproto.NewReader(in)
	line, err := tp.ReadLine()
	if err != nil {
		return false
	}
	head, err := tp.ReadMIMEHeader()
	if err != nil {
		return false
	}
	n, _ := strconv.Atoi(head.Get("Content-Length"))
	body := make([]byte, n)
	if _, err := io.ReadFull(in, body); err != nil {
		return false
	}
	words := strings.Split(line, " ")
	o.mu.Lock()
	atGet := o.atGet
	o.mu.Unlock()
	if words[0] == "GET" && atGet != nil {
		atGet()
	}
	what := o.spoiled(words[0])
	switch what {
	case "drop":
		return false
	case "crash":
		o.crash()
		return false
	}
	var a answer
	switch what {
	case "500":
		a = answer{code: 500, body: []byte("something broke in " + o.ticket)}
	case "403":
		a = answer{code: 403, body: []byte("no"), last: true}
	default:
		a = o.serve(words[0], words[1], head, body)
	}
	o.mu.Lock()
	o.conns[c]++
	if o.perConn > 0 && o.conns[c] >= o.perConn {
		a.last = true
	}
	o.mu.Unlock()
	if what == "forget" {
		return false
	}
	return o.send(c, a, what == "half") && !a.last
}

func (o *odd) spoiled(method string) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.requests[method]++
	for _, s := range o.spoil {
		if s.method != method {
			continue
		}
		if s.skip--; s.skip < 0 && s.fired < s.times {
			s.fired++
			return s.what
		}
	}
	return ""
}

// send writes an answer; half of it breaks the connection.
func (o *odd) send(c net.Conn, a answer, half bool) bool {
	var b bytes.Buffer
	if a.chunked {
		b.WriteString("HTTP/1.1 100 Continue\r\n\r\n")
	}
	fmt.Fprintf(&b, "HTTP/1.1 %d whatever\r\n", a.code)
	if a.last {
		b.WriteString("connection:close\r\n")
	}
	for _, h := range a.headers {
		b.WriteString(h + "\r\n")
	}
	if a.chunked {
		b.WriteString("transfer-encoding: chunked\r\nserver: odd\r\n\r\n")
		for p, n := a.body, 1; len(p) > 0; n = n*3 + 1 {
			part := p[:min(len(p), n)]
			p = p[len(part):]
			fmt.Fprintf(&b, "%X;odd=1\r\n%s\r\n", len(part), part)
		}
		b.WriteString("0\r\n\r\n")
	} else {
		fmt.Fprintf(&b, "server: odd\r\ncontent-length: %d\r\n\r\n%s", len(a.body), a.body)
	}
	p := b.Bytes()
	if half {
		p = p[:len(p)-len(a.body)/2-6]
	}
	_, err := c.Write(p)
	return err == nil && !half
}

func (o *odd) crash() {
	o.mu.Lock()
	for _, w := range o.unflushed {
		if !bytes.Equal(o.now[w[0]:w[1]], o.durable[w[0]:w[1]]) {
			o.lost += w[1] - w[0]
		}
		copy(o.now[w[0]:w[1]], o.durable[w[0]:w[1]])
	}
	o.unflushed = nil
	o.mu.Unlock()
	o.hangUp()
}

// flush makes durable what was written; mu is held.
func (o *odd) flush() {
	for _, w := range o.unflushed {
		copy(o.durable[w[0]:w[1]], o.now[w[0]:w[1]])
	}
	o.unflushed = nil
}

func (o *odd) serve(method, target string, head textproto.MIMEHeader, body []byte) answer {
	path, query, _ := strings.Cut(target, "?")
	rest, ok := strings.CutPrefix(path, "/images/"+o.ticket)
	o.mu.Lock()
	defer o.mu.Unlock()
	if !ok || o.gone {
		return answer{code: 403, body: []byte("You are not allowed to access this resource: " + o.ticket), last: true}
	}
	if o.blind && method == "GET" {
		return answer{code: 403, body: []byte("forbids read"), last: true}
	}
	if o.oldOne && (method == "OPTIONS" || method == "PATCH" || rest != "") {
		return answer{code: 405}
	}
	switch method + rest {
	case "OPTIONS":
		return answer{code: 200, headers: []string{"allow: OPTIONS, PUT,PATCH , GET"}, chunked: true, body: []byte(
			` { "max_writers" : 1, "later" : {"x":[1,2]}, "features":["zero","extents","new-thing","flush","checksum"],` + "\n" + `"max_readers":2 } `)}
	case "GET":
		return o.read(head.Get("Range"))
	case "GET/extents":
		return o.list(strings.Contains(query, "context=dirty"))
	case "GET/checksum":
		return o.checksum(query)
	case "PUT":
		off, _ := strconv.ParseInt(strings.Split(strings.TrimPrefix(head.Get("Content-Range"), "bytes "), "-")[0], 10, 64)
		return o.write(off, body, query != "flush=n")
	case "PATCH":
		return o.patch(body)
	}
	return answer{code: 405}
}

func (o *odd) read(h string) answer {
	var from, to int64
	if _, err := fmt.Sscanf(h, "bytes=%d-%d", &from, &to); err != nil || to >= int64(len(o.now)) || from > to {
		return answer{code: 416, headers: []string{fmt.Sprintf("content-range: bytes */%d", len(o.now))}}
	}
	return answer{
		code: 206, headers: []string{fmt.Sprintf("content-range: bytes %d-%d/%d", from, to, len(o.now))},
		body: bytes.Clone(o.now[from : to+1]), chunked: from%2 == 0,
	}
}

func (o *odd) write(off int64, p []byte, flush bool) answer {
	if off < 0 || off+int64(len(p)) > int64(len(o.now)) {
		return answer{code: 416}
	}
	copy(o.now[off:], p)
	for b := off / oddBlock; b*oddBlock < off+int64(len(p)); b++ {
		o.dirty[b] = true
	}
	o.unflushed = append(o.unflushed, [2]int64{off, off + int64(len(p))})
	if flush {
		o.flush()
	}
	return answer{code: 200}
}

func (o *odd) patch(body []byte) answer {
	var m struct {
		Op           string
		Offset, Size int64
		Flush        bool
	}
	if json.Unmarshal(body, &m) != nil {
		return answer{code: 400}
	}
	if m.Op == "flush" {
		o.flush()
		return answer{code: 200, chunked: true}
	}
	return o.write(m.Offset, make([]byte, m.Size), m.Flush)
}

// list has an extent for every block, and all that a newer daemon might add.
func (o *odd) list(dirty bool) answer {
	var b bytes.Buffer
	b.WriteString("[\n")
	for at := 0; at < len(o.now); at += oddBlock {
		p := o.now[at:min(len(o.now), at+oddBlock)]
		if at > 0 {
			b.WriteString(" ,")
		}
		zero := len(bytes.Trim(p, "\x00")) == 0
		if dirty {
			fmt.Fprintf(&b, `{"new":"x", "zero":%v,"dirty": %v,"length":%d,"start":%d}`, zero, o.dirty[int64(at/oddBlock)], len(p), at)
		} else {
			fmt.Fprintf(&b, `{"length":%d, "hole":%v,"zero":%v,"start":%d}`, len(p), !zero, zero, at)
		}
	}
	b.WriteString("]\r\n")
	return answer{code: 200, body: b.Bytes(), chunked: true}
}

func (o *odd) checksum(query string) answer {
	block := 4 << 20
	for _, kv := range strings.Split(query, "&") {
		if v, ok := strings.CutPrefix(kv, "block_size="); ok {
			block, _ = strconv.Atoi(v)
		}
	}
	var sums []byte
	for p := o.now; len(p) > 0; p = p[min(len(p), block):] {
		s := blake2b.Sum256(p[:min(len(p), block)])
		sums = append(sums, s[:]...)
	}
	s := blake2b.Sum256(sums)
	return answer{code: 200, body: []byte(fmt.Sprintf(`{"block_size":%d,"checksum":"%s","algorithm":"blake2b"}`, block, hex.EncodeToString(s[:])))}
}
