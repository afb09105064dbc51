package store

import (
	"crypto/subtle"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/seal"
)

// newKeys makes the keys of a new repository and settles its chunk size. One of another's domain takes over the key
// of its ids, so that the same content has the same ids in both, and nothing else: neither opens what the other wrote.
func (o *CreateOptions) newKeys(location string) (*seal.KeySet, error) {
	keys := seal.NewKeySet(1)
	if o.Domain != nil {
		if o.ChunkBytes == 0 {
			o.ChunkBytes = o.Domain.ChunkBytes()
		}
		if o.ChunkBytes != o.Domain.ChunkBytes() {
			return nil, fault.New(fault.Invalid, "create repository", location, "chunks of %d bytes in the domain of a repository with chunks of %d",
				o.ChunkBytes, o.Domain.ChunkBytes())
		}
		keys.IDs = o.Domain.keys.IDs
	}
	if o.ChunkBytes == 0 {
		o.ChunkBytes = chunk.DefaultBytes
	}
	return keys, nil
}

// SameDomain reports whether the same content has the same ids in both repositories, so that each can heal the other:
// one is a copy of the other, or was created with CreateOptions.Domain.
func (r *Repository) SameDomain(other *Repository) bool {
	return subtle.ConstantTimeCompare(r.keys.IDs[:], other.keys.IDs[:]) == 1 && r.config.ChunkBytes == other.config.ChunkBytes
}
