// Package remote lets a mover in another process write and read images of a repository that this one owns: the service
// of api/mover/repository.proto over a *store.Repository, and its client, which a transfer uses like an image of its own
// process.
//
// The mover does what costs: it finds zeros, hashes, compresses, seals and writes packs, opens, decodes and proves what
// it reads. The owner decides: what is known, how chunks are stored, where everything lies. The mover is given no data
// key, only the keys of single packs, and the keys of the hashes of content: with these it can test whether the
// repository has a content that it has itself, and read nothing. Packs come over the connection, or the mover writes
// and reads them where the backend is mounted on its machine (Files): then metadata alone is on the wire, and the
// directory's own permissions are what keeps the mover from more.
//
// Who may do what says an Authorizer, by ticket; TLS and the mover's identity are the business of whoever makes the
// connection. Invariants: nothing counts as written before the owner has read its description from the backend and found
// it to be what it asked for; no call removes anything; every byte read is proven on the mover by its
// chunk's id; every length
// from the wire is checked before it is used; and memory on both sides is bounded whatever the disk's size.
//
// # Memory
//
// The mover holds Workers segments of a transfer, a frame for each, and at most packsHeld packs: below 256 MiB with the
// default sizes. The owner holds of each image that is being carried a bit for each chunk (2 MiB a TiB), what the tree
// needs, and the chunks asked for and not durable yet, which are at most some ten thousand.
package remote
