package imageiotransport

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"hash"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/blake2b"
)

// The daemon's checksum of an image is the BLAKE2b-256 of the BLAKE2b-256 of its blocks one after the other. A block may have 1 to
// 16 MiB; larger ones need less memory here.
const (
	minBlock   = 1 << 20
	maxBlock   = 16 << 20
	manyBlocks = 1 << 18 // whose digests are 8 MiB
	// maxPending is what is kept of pieces whose predecessors in their block have not come yet.
	maxPending = 64 << 20
	// slowest is how many bytes a second we expect a host to read at least while it makes a checksum.
	slowest = 4 << 20
)

// digests takes a disk's content in any order and makes its checksum.
type digests struct {
	size, block int64

	mu      sync.Mutex
	done    []byte          // 32 bytes a block
	have    []uint64        // bits of blocks that are done
	open    map[int64]*part // of blocks that are not
	pending int64
	gaveUp  bool
	zeros   [32]byte // of a whole block
}

// part is a block of which something has come.
type part struct {
	hash  hash.Hash
	next  int64            // up to there it is hashed
	later map[int64][]byte // pieces behind it
	holes map[int64]int64  // zeros behind it: their lengths
}

func newDigests(size int64) *digests {
	d := &digests{size: size, block: minBlock, open: map[int64]*part{}}
	for d.block < maxBlock && (size+d.block-1)/d.block > manyBlocks {
		d.block *= 2
	}
	n := (size + d.block - 1) / d.block
	d.done, d.have = make([]byte, 32*n), make([]uint64, (n+63)/64)
	d.zeros = blake2b.Sum256(make([]byte, d.block))
	return d
}

// data takes a piece that was read.
func (d *digests) data(off int64, p []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for len(p) > 0 && !d.gaveUp {
		i := off / d.block
		n := min(int64(len(p)), (i+1)*d.block-off)
		if !d.has(i) {
			d.add(i, off, n, p[:n])
		}
		p, off = p[n:], off+n
	}
}

// zero takes a range of zeros that is not read.
func (d *digests) zero(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n > 0 && !d.gaveUp {
		i := off / d.block
		part := min(n, (i+1)*d.block-off)
		switch {
		case d.has(i):
		case part == d.block && d.open[i] == nil:
			d.finish(i, d.zeros[:])
		default:
			d.add(i, off, part, nil)
		}
		off, n = off+part, n-part
	}
}

func (d *digests) has(i int64) bool { return d.have[i/64]&(1<<(i%64)) != 0 }

func (d *digests) finish(i int64, sum []byte) {
	copy(d.done[32*i:], sum)
	d.have[i/64] |= 1 << (i % 64)
	delete(d.open, i)
}

// add puts a piece of a block where it belongs: into the hash, or aside until what is before it has come. Pieces may overlap, for
// a small hole is read as well as listed.
func (d *digests) add(i, off, n int64, p []byte) {
	b := d.open[i]
	if b == nil {
		h, _ := blake2b.New256(nil) // has no error without a key
		b = &part{hash: h, next: i * d.block, later: map[int64][]byte{}, holes: map[int64]int64{}}
		d.open[i] = b
	}
	if off > b.next {
		if p == nil {
			b.holes[off] = max(b.holes[off], n)
		} else if int64(len(b.later[off])) < n {
			d.pending += n - int64(len(b.later[off]))
			b.later[off] = bytes.Clone(p)
		}
		if d.pending > maxPending {
			d.gaveUp, d.open = true, nil
		}
		return
	}
	d.feed(b, off, n, p)
	for d.follow(b) {
	}
	if b.next == min((i+1)*d.block, d.size) {
		for _, rest := range b.later {
			d.pending -= int64(len(rest))
		}
		d.finish(i, b.hash.Sum(nil))
	}
}

// feed hashes what is new of a piece that begins at or before the end of what is hashed.
func (d *digests) feed(b *part, off, n int64, p []byte) {
	skip := b.next - off
	if n <= skip {
		return
	}
	if p == nil {
		_, _ = io.CopyN(b.hash, zeros{}, n-skip)
	} else {
		_, _ = b.hash.Write(p[skip:])
	}
	b.next = off + n
}

// follow hashes a piece that was put aside and has its turn.
func (d *digests) follow(b *part) bool {
	for off, p := range b.later {
		if off <= b.next {
			delete(b.later, off)
			d.pending -= int64(len(p))
			d.feed(b, off, int64(len(p)), p)
			return true
		}
	}
	for off, n := range b.holes {
		if off <= b.next {
			delete(b.holes, off)
			d.feed(b, off, n, nil)
			return true
		}
	}
	return false
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// total returns the checksum; ok is false if not all of the disk has come.
func (d *digests) total() (sum string, block int64, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range int64(len(d.done) / 32) {
		if !d.has(i) {
			return "", 0, false
		}
	}
	all := blake2b.Sum256(d.done)
	return hex.EncodeToString(all[:]), d.block, true
}

// checksum asks the daemon for that of the image. It reads all of it first and says nothing meanwhile.
func (l *link) checksum(ctx context.Context, block int64) (sum string, err error) {
	req := call{
		method: http.MethodGet, path: l.path + "/checksum?algorithm=blake2b&block_size=" + strconv.FormatInt(block, 10),
		stall: patience*l.stall + time.Duration(l.size/slowest)*time.Second,
	}
	err = l.do(ctx, false, func(ctx context.Context, c *conn) error {
		return c.exchange(ctx, req, func(r *http.Response) error {
			var err error
			sum, err = decodeChecksum(r.Body, block)
			return err
		}, http.StatusOK)
	})
	return sum, err
}

// decodeChecksum reads the daemon's answer; it must be of what was asked for.
func decodeChecksum(r io.Reader, block int64) (string, error) {
	var answer struct {
		Checksum  string `json:"checksum"`
		Algorithm string `json:"algorithm"`
		BlockSize int64  `json:"block_size"`
	}
	if err := json.NewDecoder(io.LimitReader(r, maxText)).Decode(&answer); err != nil {
		return "", badAnswer("its checksum: %w", err)
	}
	if answer.Algorithm != "blake2b" || answer.BlockSize != block {
		return "", badAnswer("its checksum is one by %q of blocks of %d bytes", answer.Algorithm, answer.BlockSize)
	}
	return answer.Checksum, nil
}
