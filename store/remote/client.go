package remote

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// ClientOptions are choices of a Client. Ticket is needed.
type ClientOptions struct {
	Ticket string
	// Files, if not nil, is the repository's backend as it is mounted on this machine: packs are written and read there.
	Files Files
	// Mounted, if not nil, finds the Files of the repository with an id, for writing or for reading only; it may answer nil.
	Mounted func(repository string, write bool) Files
	// Patience is how long a lost connection or a busy owner is waited for in one call in which nothing moves; 0 is two
	// minutes.
	Patience time.Duration
	Log      *slog.Logger // nil: none
}

// Files is a backend's directory, of which a mover creates and reads packs. A blob.Store is one.
type Files interface {
	Create(ctx context.Context, name string) (blob.Writer, error)
	ReadAt(ctx context.Context, name string, p []byte, off int64) error
	Stat(ctx context.Context, name string) (blob.Info, error)
}

// Client does one transfer with a ticket. It may be used from several goroutines.
type Client struct {
	rpc     mover.RepositoryClient
	o       ClientOptions
	opener  string
	terms   store.Terms
	write   bool
	content *chunk.Content
	coder   *pack.Coder
	bufs    *sync.Pool

	mu    sync.Mutex
	image *ImageWriter // that is not finished
}

// Dial are options for the connection: it is made again soon after it broke, and found dead when nothing comes.
func Dial() []grpc.DialOption {
	again := backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second}
	return []grpc.DialOption{
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: 10 * time.Second}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 30 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithInitialWindowSize(1 << 20), grpc.WithInitialConnWindowSize(4 << 20),
	}
}

// Open begins to use a ticket over a connection, which stays the caller's. The caller closes the client.
func Open(ctx context.Context, conn grpc.ClientConnInterface, o ClientOptions) (*Client, error) {
	if o.Patience <= 0 {
		o.Patience = 2 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{rpc: mover.NewRepositoryClient(conn), o: o, opener: rand.Text()}
	a, err := call(ctx, c, "use ticket", &mover.OpenRequest{}, c.rpc.Open)
	if err != nil {
		return nil, err
	}
	if err := c.accept(a); err != nil {
		return nil, err
	}
	if err := c.chooseFiles(ctx, a.GetLease()); err != nil {
		return nil, err
	}
	if c.coder, err = pack.NewCoder(c.terms.Compression); err != nil {
		return nil, fault.Wrap(fault.Internal, "use ticket", "", err)
	}
	c.content, c.bufs = chunk.NewContent(c.terms.Keys), pack.NewBufferPool(c.terms.FrameBytes)
	return c, nil
}

// accept takes the terms that the owner names.
func (c *Client) accept(a *mover.OpenResponse) error {
	k, size := a.GetHashKeys(), int(a.GetChunkBytes())
	if len(a.GetRepository()) != 16 || len(k) != 96 || !chunk.ValidSize(size) ||
		a.GetFrameBytes() < uint32(size) || a.GetFrameBytes() > pack.MaxFrame || a.GetPackBytes() > pack.MaxPack/2 {
		return malformed("use ticket", "the repository names chunks of %d, frames of %d and packs of %d bytes", size, a.GetFrameBytes(), a.GetPackBytes())
	}
	c.write = a.GetWrite()
	how, err := pack.ParseCompression(a.GetCompression())
	if err != nil {
		return fault.Wrap(fault.Unsupported, "use ticket", "", err)
	}
	c.terms = store.Terms{
		Repository: seal.ID(a.GetRepository()), ChunkBytes: size, FrameBytes: int(a.GetFrameBytes()), PackBytes: int(a.GetPackBytes()),
		Compression: how, Keys: chunk.Keys{Chunk: [32]byte(k), Fingerprint: [32]byte(k[32:]), Mask: [32]byte(k[64:])},
	}
	return nil
}

// chooseFiles settles whether packs go by the wire.
func (c *Client) chooseFiles(ctx context.Context, lease string) error {
	if c.o.Files != nil {
		return c.sameRepository(ctx, lease)
	}
	if c.o.Mounted == nil {
		return nil
	}
	c.o.Files = c.o.Mounted(hexID(c.terms.Repository), c.write)
	if c.o.Files == nil {
		return nil
	}
	if err := c.sameRepository(ctx, lease); err != nil {
		meaning, advice := fault.Explanation(err)
		c.o.Log.WarnContext(ctx, "what is mounted here is not used, and packs go to the manager", "err", err, "meaning", meaning, "advice", advice)
		c.o.Files = nil
	}
	return nil
}

// sameRepository refuses a mounted directory that is not the repository that the ticket is for, or is a copy of it: that
// has not what was made for this session just now.
func (c *Client) sameRepository(ctx context.Context, lease string) error {
	id, err := RepositoryIn(ctx, c.o.Files)
	if err != nil {
		return err
	}
	if want := hexID(c.terms.Repository); id != want {
		return fault.New(fault.Invalid, "look at the mounted repository", "", "it is %s, not %s", id, want).Explain(
			"What is mounted on the mover is another repository than the one this backup goes to.", "Mount the right directory, or none.")
	}
	if lease == "" {
		return nil
	}
	if _, err := c.o.Files.Stat(ctx, lease); err != nil {
		return fault.Context("look at the mounted repository", "", err).Explain(
			"What is mounted on the mover does not have what the repository wrote just now: it is a copy, or cannot be read.",
			"Mount the repository's own storage on the mover, or take the directory out of its configuration.")
	}
	return nil
}

// RepositoryIn returns the id of the repository that lies in files. It proves nothing about who owns it.
func RepositoryIn(ctx context.Context, files Files) (id string, err error) {
	const limit = 1 << 20
	info, err := files.Stat(ctx, "config")
	if err == nil && info.Size > limit {
		err = malformed("look at the mounted repository", "its configuration has %d bytes", info.Size)
	}
	if err != nil {
		return "", fault.Context("look at the mounted repository", "", err)
	}
	p := make([]byte, info.Size)
	if err := files.ReadAt(ctx, "config", p, 0); err != nil {
		return "", fault.Context("look at the mounted repository", "", err)
	}
	var config struct {
		Config struct {
			Repository string `json:"repository"`
		} `json:"config"`
	}
	if err := json.Unmarshal(p, &config); err != nil {
		return "", fault.Wrap(fault.Invalid, "look at the mounted repository", "", err)
	}
	return config.Config.Repository, nil
}

// leaving bounds what Close says to an owner that may not be there.
const leaving = 5 * time.Second

// Close gives up an image that is not finished, as far as it is not durable, and frees what the client holds. No transfer
// may be running.
func (c *Client) Close() error {
	c.mu.Lock()
	w := c.image
	c.image = nil
	c.mu.Unlock()
	var err error
	if w != nil {
		ctx, cancel := context.WithTimeout(context.Background(), leaving)
		defer cancel()
		err = w.Close(ctx)
	}
	c.coder.Close()
	return err
}

// with puts the ticket into a call.
func (c *Client) with(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, ticketKey, c.o.Ticket, openerKey, c.opener)
}

// retry runs a call until it succeeds, fails for good, or the connection was waited for long enough. try waits for the
// connection; its context ends with the patience.
func (c *Client) retry(ctx context.Context, op string, try func(ctx context.Context) error) error {
	return c.retryMoving(ctx, op, func(ctx context.Context, _ func(int64)) error { return try(ctx) })
}

// fruitless is how often a call may break, having moved something and got no further than before.
const fruitless = 8

// retryMoving is retry for a call that carries data and takes as long as the line takes: patience begins anew whenever try
// says that something has moved, and how much in this attempt so far. A line that breaks at the same place again and again
// is given up all the same.
func (c *Client) retryMoving(ctx context.Context, op string, try func(ctx context.Context, moved func(n int64)) error) error {
	var until atomic.Int64 // Unix nanoseconds
	until.Store(time.Now().Add(c.o.Patience).UnixNano())
	left := func() time.Duration { return time.Duration(until.Load() - time.Now().UnixNano()) }
	vain, furthest := 0, int64(0)
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, 2*time.Second) {
		limited, cancel := context.WithCancel(c.with(ctx))
		end := time.AfterFunc(left(), cancel)
		var at atomic.Int64
		err := fromWire(op, try(limited, func(n int64) {
			at.Add(n)
			until.Store(time.Now().Add(c.o.Patience).UnixNano())
			end.Reset(c.o.Patience)
		}))
		if err != nil && limited.Err() != nil && ctx.Err() == nil {
			err = fault.Wrap(fault.Transient, op, "", err)
		}
		end.Stop()
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if got := at.Load(); got > furthest {
			vain, furthest = 0, got
		} else if got > 0 {
			vain++
		}
		if fault.KindOf(err) != fault.Transient || left() <= wait || vain == fruitless {
			return err
		}
		c.o.Log.Debug("call is made again", "call", op, "err", err)
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return ctx.Err()
		}
	}
}

// call makes a call that may be repeated.
func call[Q, A any](ctx context.Context, c *Client, op string, q Q, do func(context.Context, Q, ...grpc.CallOption) (A, error)) (out A, err error) {
	err = c.retry(ctx, op, func(ctx context.Context) (err error) {
		out, err = do(ctx, q, grpc.WaitForReady(true))
		return err
	})
	return out, err
}
