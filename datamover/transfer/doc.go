// Package transfer moves one disk: from a frozen disk into an image of the repository, and from an image to a new disk.
//
// It is one pipeline in both directions: extents are cut into segments of at most BufferBytes, workers take segments,
// each reads into its one buffer and writes from it. It opens and closes nothing and knows no transport.
//
// Its invariants: memory is Workers x BufferBytes whatever the disk's size; when a function returns, none of its
// goroutines is left; a range is skipped only where the source says Unchanged, the image has it already (Durable), or an image
// says zero.
package transfer
