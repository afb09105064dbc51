// Package chunk has the units of deduplication: 4 KiB blocks, chunks of 16 to 256 KiB, and their keyed hashes.
//
// It does no I/O and knows no packs. Its invariant: a chunk's id is a function of the repository's id key and the
// chunk's bytes alone, computed over the hashes of its blocks, so that one pass of hashing serves both grains.
package chunk
