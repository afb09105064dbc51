package store

import (
	"encoding/json"
	"log/slog"
	"time"

	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// Hash names a chunk, a tree node, an image or a document by its content. It is hex in JSON.
type Hash = chunk.Hash

// CreateOptions are choices that stay for the life of a repository.
type CreateOptions struct {
	Name       string
	ChunkBytes int // 16, 32, 64, 128 or 256 KiB; 0 is 64 KiB, or that of Domain

	// Domain, if not nil, is an open repository whose ids this one shall share: either can then heal the other. Their
	// data and signing keys stay their own.
	Domain *Repository
}

// Options are choices of one Open.
type Options struct {
	IndexDir string // where the index is kept between opens; read-only: where a temporary one is made beside; "" keeps it in memory
	ReadOnly bool   // take no lock, write nothing; works beside an owner
	Log      *slog.Logger
	Workers  int         // goroutines of what reads much (Verify, Sweep, Stream, Collect, a new index); 0 is one per CPU
	Cipher   seal.Cipher // what is written is sealed with it; 0 is what this CPU is fastest with
	// Compression is how what is written is compressed: one of pack.Compressions, "" is pack.Standard. What does not
	// shrink by 5 % is stored as it is. SetCompression changes it.
	Compression string

	packBytes int // when a pack is full, for tests; 0 is packTarget

	windowChunks int // of a stream, for tests; 0 is windowChunks

	memoryEntries int64 // of an index in memory that should be on disk, for tests; 0 is memoryLimit
}

// SessionOptions describe who writes.
type SessionOptions struct {
	Series string // what the restore points to come are a history of
	Writer string // who writes, for people reading leases

	// Resumable keeps a journal of images that are begun with a key, so that another owner can Resume the session.
	Resumable bool
}

// ImageRef names one disk at one instant. Equal content in one repository has an equal Root, whatever its history.
type ImageRef struct {
	Root      Hash  `json:"root"`
	SizeBytes int64 `json:"size_bytes"`
}

// ImageOptions describe the image to be written.
type ImageOptions struct {
	SizeBytes int64
	Parent    *ImageRef // ranges not written are as in it; nil: zeros. It must be in a published restore point
	// Anew begins an image anew that was begun with the same key: none of it counts as written, though what is stored
	// is not stored again. For a source that may have changed since.
	Anew bool
}

// ImageStats count what an ImageWriter was given and what came of it.
type ImageStats struct {
	BytesWritten int64 `json:"bytes_written"` // given to Write and Zero
	BytesZero    int64 `json:"bytes_zero"`    // of these, zeros
	BytesNew     int64 `json:"bytes_new"`     // new to the repository, before compression
	BytesStored  int64 `json:"bytes_stored"`  // new to the repository, as stored; lags behind until Finish
	Chunks       int64 `json:"chunks"`        // chunks given that are not zeros
	ChunksNew    int64 `json:"chunks_new"`    // of these, stored
	ChunksRefs   int64 `json:"chunks_refs"`   // of those, stored partly by references to blocks of other chunks
}

// Document is a named byte string that belongs to a restore point, such as a domain XML.
type Document struct {
	Name      string `json:"name"`
	MediaType string `json:"media_type"`
	SizeBytes int64  `json:"size_bytes"`
	Data      []byte `json:"-"` // given to Publish; read with Repository.Document
}

// NamedImage is one disk of a restore point.
type NamedImage struct {
	Name string          `json:"name"`
	Ref  ImageRef        `json:"ref"`
	Meta json.RawMessage `json:"meta,omitempty"`
}

// Manifest is what a restore point says. The store keeps Description and Meta as they are.
type Manifest struct {
	Series      string            `json:"series"`
	Time        time.Time         `json:"time"` // the instant the disks were frozen
	Labels      map[string]string `json:"labels,omitempty"`
	Documents   []Document        `json:"documents,omitempty"`
	Description json.RawMessage   `json:"description,omitempty"`
	Images      []NamedImage      `json:"images"`
	Meta        json.RawMessage   `json:"meta,omitempty"`
}

// RestorePoint is a published manifest.
type RestorePoint struct {
	ID        string    `json:"id"`       // rp_<ulid>
	Sequence  uint64    `json:"sequence"` // 1, 2, 3 ... within the series
	Previous  string    `json:"previous,omitempty"`
	Published time.Time `json:"published"`
	Manifest
}

// Extent is a range of an image. A zero extent reads as zeros and takes no space.
type Extent struct {
	Offset, Length int64
	Zero           bool
}

// Damage is a piece of stored data that is not what was written.
type Damage struct {
	Image  string `json:"image,omitempty"`
	Offset int64  `json:"offset"` // in the image
	Length int64  `json:"length"`
	Cause  string `json:"cause"` // names pack and offset in it where known
}

// VerifyReport is the outcome of reading a restore point back.
type VerifyReport struct {
	RestorePoint string   `json:"restore_point"`
	Bytes        int64    `json:"bytes"` // of disks and documents whose content is proven
	Chunks       int64    `json:"chunks"`
	Damage       []Damage `json:"damage,omitempty"` // at most 1000 are listed

	// Touched are all restore points that are not whole because of any damage known now, this one among them.
	Touched []TouchedPoint `json:"touched,omitempty"`
}

// CheckReport is the outcome of a look at the structure.
type CheckReport struct {
	RestorePoints int      `json:"restore_points"`
	Packs         int      `json:"packs"`
	Problems      []string `json:"problems,omitempty"` // what restores will stumble over
	Notes         []string `json:"notes,omitempty"`    // odd, but harmless
}

// CollectOptions are choices of one Collect.
type CollectOptions struct {
	DryRun bool
	// Compact is the share of a pack's bytes, from 0 to 1, that must be needed for it to stay as it is: of packs with less,
	// what is needed is moved into new ones. Less than 0: no pack is rewritten. 0 is one half, and as long as more than a
	// twentieth of all packs' bytes is needed by nothing, four fifths, those packs first of which least is needed.
	Compact float64
	// Budget bounds how many bytes are moved out of packs, but for one pack at least; what is left waits for the next Collect. 0: no bound.
	Budget int64
}

// CollectReport is what a Collect found and did. A pack's bytes are shared out among its entries (see DESIGN.md), so
// LiveBytes and DeadBytes add up to the size of all packs as they were found. A dry run answers the same numbers but BytesWritten.
type CollectReport struct {
	DryRun    bool  `json:"dry_run"`
	LiveBytes int64 `json:"live_bytes"` // of packs, needed
	DeadBytes int64 `json:"dead_bytes"` // of packs, needed by nothing; a part goes now
	LeftBytes int64 `json:"left_bytes"` // of DeadBytes, what stays because its pack does

	PacksFreed     int   `json:"packs_freed"` // removed: nothing in them was needed
	BytesFreed     int64 `json:"bytes_freed"`
	PacksCompacted int   `json:"packs_compacted"` // removed: what was needed of them is in new packs
	BytesCompacted int64 `json:"bytes_compacted"` // the size they had
	BytesRewritten int64 `json:"bytes_rewritten"` // of that, what was needed
	BytesWritten   int64 `json:"bytes_written"`   // the size of the new packs

	PacksKept       int   `json:"packs_kept"`       // for restore points, readers and sessions
	BytesKept       int64 `json:"bytes_kept"`       // of these and of those waiting
	PacksWaiting    int   `json:"packs_waiting"`    // not referenced, but a running session may come to need them
	PacksPinned     int   `json:"packs_pinned"`     // of those kept, would be rewritten but for a running session
	PacksSuspect    int   `json:"packs_suspect"`    // of those kept, would be rewritten but for damage found in them
	PacksLater      int   `json:"packs_later"`      // of those kept, would be rewritten but for the budget
	PacksUnreadable int   `json:"packs_unreadable"` // of those kept, nobody knows what is in them
	NoRoom          bool  `json:"no_room"`          // the repository is too full to rewrite packs, or all that should be
}

// Usage is how full a repository is.
type Usage struct {
	RestorePoints int   `json:"restore_points"`
	Packs         int   `json:"packs"`
	StoredBytes   int64 `json:"stored_bytes"`  // of packs
	LogicalBytes  int64 `json:"logical_bytes"` // sizes of all disks of all restore points
}
