// Package chunk has the units of deduplication: 4 KiB blocks, chunks of 16 to 256 KiB, and their keyed hashes.
//
// It does no I/O and knows no packs. Its invariant: a chunk's id is a function of the repository's id key and the
// chunk's bytes alone, and proves them; a block's fingerprint is one too, but only says where to find equal blocks.
// Whatever is read back costs one pass over its chunks; fingerprints are for what is new.
package chunk
