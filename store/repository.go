package store

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/cache"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// Limits of caches, in bytes.
const (
	directoryCache = 48 << 20
	printCache     = 48 << 20
	frameCache     = 64 << 20
	nodeCache      = 16 << 20
)

// Repository is an open repository. Its methods may be called from several goroutines.
type Repository struct {
	b       blob.Store
	log     *slog.Logger
	o       Options
	config  configBody
	id      seal.ID
	keys    *seal.KeySet
	hasher  *chunk.Hasher
	coding  atomic.Pointer[coding]
	bufs    *sync.Pool
	idx     *index.Index
	decoded atomic.Int64 // frames of packs, for tests
	blocks  int          // per chunk
	sparse  bool         // whether sessions look for blocks by the sparse index

	packsSeen atomic.Int64 // counts looks at the packs that found others than before

	directories *cache.Cache[seal.ID, *pack.Reader]
	prints      *cache.Cache[seal.ID, *pack.Blocks]
	frames      *cache.Cache[frameKey, []byte]
	nodes       *cache.Cache[Hash, *tree.Node]

	release func() error // the owner lock
	epoch   uint64       // the owner's fencing token

	// gc is held shared by whoever comes to rely on a pack (see doc.go), exclusively while a collect decides.
	gc         sync.RWMutex
	publishing sync.Mutex // one publish at a time: chains and sequences
	collecting sync.Mutex // one collect at a time, and nothing that must see packs stand still beside it
	pruning    sync.Mutex // one prune at a time
	catching   sync.Mutex // guards caughtUp, and lets one reader at a time look at the packs again
	caughtUp   time.Time
	sweeping   sync.Mutex // one sweep at a time
	saving     sync.Mutex // one Save at a time: the times of versions

	running  sync.WaitGroup // calls that Close waits for
	mu       sync.Mutex
	closed   bool
	unsafe   error // a delete of a manifest may or may not be durable: no collect before the next open
	points   map[string]*point
	sessions map[*Session]struct{}
	asleep   map[string]*suspended // sessions of owners before
	calls    map[*context.CancelFunc]struct{}
	reading  map[ImageRef]int    // images of open ImageReaders
	waiting  map[string]bool     // restore points whose good records Heal has put aside; none are after an open
	unmended map[string]struct{} // damaged objects that the backend could not repair

	withheld withheld
}

type frameKey struct {
	pack  seal.ID
	frame uint32
}

// Open opens a repository. Unless it is read-only, the caller becomes its one owner until Close, and what a crashed
// owner left behind is put in order. b stays the caller's to close, after Close.
func Open(ctx context.Context, b blob.Store, by Opener, o Options) (*Repository, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Workers <= 0 {
		o.Workers = runtime.GOMAXPROCS(0)
	}
	if o.packBytes <= 0 {
		o.packBytes = packTarget
	}
	if o.Cipher == 0 {
		o.Cipher = seal.Preferred()
	}
	if !o.Cipher.Known() {
		return nil, fault.New(fault.Invalid, "open repository", b.Location(), "there is no %v", o.Cipher)
	}
	config, id, keys, err := loadConfig(ctx, b, by)
	if err != nil {
		return nil, err
	}
	r := &Repository{
		b: b, log: o.Log.With("repository", b.Location()), o: o, config: config, id: id, keys: keys,
		hasher: chunk.NewHasher(keys.IDs), bufs: pack.NewBufferPool(pack.Standard.FrameBytes()), blocks: config.ChunkBytes / chunk.BlockBytes, sparse: true,
		directories: cache.New[seal.ID, *pack.Reader](directoryCache), prints: cache.New[seal.ID, *pack.Blocks](printCache),
		frames: cache.New[frameKey, []byte](frameCache), nodes: cache.New[Hash, *tree.Node](nodeCache),
		points: map[string]*point{}, sessions: map[*Session]struct{}{}, reading: map[ImageRef]int{},
	}
	if err := r.SetCompression(o.Compression); err != nil {
		return nil, err
	}
	if err := r.open(ctx); err != nil {
		return nil, errors.Join(err, r.shut())
	}
	return r, nil
}

func (r *Repository) open(ctx context.Context) error {
	if !r.o.ReadOnly {
		if err := r.own(ctx); err != nil {
			return err
		}
		if err := r.endRecords(ctx); err != nil {
			return err
		}
	}
	if err := r.openIndex(ctx); err != nil {
		return err
	}
	fault.Point("store.open.index-agrees")
	// A damaged restore point must not keep the others from being read.
	if err := r.refresh(ctx); err != nil {
		if fault.KindOf(err) != fault.Corrupt {
			return err
		}
		r.log.Error("restore point is damaged", "err", err)
	}
	fault.Point("store.open.points-read")
	return r.awaken(ctx)
}

// listPacks returns the sizes of all packs but those that are withheld.
func (r *Repository) listPacks(ctx context.Context) (map[seal.ID]int64, error) {
	r.withheld.listing.RLock()
	defer r.withheld.listing.RUnlock()
	there := map[seal.ID]int64{}
	for info, err := range r.b.List(ctx, pack.Folder) {
		if err != nil {
			return nil, fault.Context("list packs of repository", r.b.Location(), err)
		}
		if id, err := pack.ParseName(info.Name); err == nil {
			if !r.withheld.has(id) {
				there[id] = info.Size
			}
		} else {
			r.log.Warn("foreign file among packs", "object", info.Name)
		}
	}
	return there, nil
}

// ID returns the repository's id, 32 hex digits.
func (r *Repository) ID() string { return r.config.Repository }

// Name returns the name the repository was created with.
func (r *Repository) Name() string { return r.config.Name }

// ChunkBytes returns the size of chunks.
func (r *Repository) ChunkBytes() int { return r.config.ChunkBytes }

// Close ends the ownership. Calls that are running are cancelled and waited for, so it must not be called from a
// function that one of them calls; sessions that are still open are aborted, or left to be resumed. Later calls answer an error of kind
// Conflict, also those of ImageReaders that are still open.
func (r *Repository) Close() error {
	if !r.endCalls() {
		return nil
	}
	var open []*Session
	r.mu.Lock()
	for s := range r.sessions {
		open = append(open, s)
	}
	r.mu.Unlock()
	var errs []error
	for _, s := range open {
		errs = append(errs, s.stop(context.Background(), s.o.Resumable))
	}
	return errors.Join(append(errs, r.shut())...)
}

func (r *Repository) shut() error {
	var errs []error
	if r.idx != nil {
		errs = append(errs, r.idx.Close())
		fault.Point("store.close.index-closed")
	}
	if r.release != nil {
		errs = append(errs, r.release())
	}
	return errors.Join(errs...)
}

// writable answers why r cannot be written to.
func (r *Repository) writable(op string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.closed:
		return r.closedError(op)
	case r.o.ReadOnly:
		return fault.New(fault.Conflict, op, r.b.Location(), "the repository is open for reading only").Explain(
			"Nothing can be stored in it or removed from it now, since its directory was read-only when it was opened, or because another process owns it.",
			"Look at the system's log for why it was: a file system goes read-only after disk errors. Mount it for writing, and run the job again.")
	}
	return nil
}
