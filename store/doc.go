// Package store is the repository engine: deduplicated, encrypted images of disks and the restore points made of them.
//
// It knows chunks, images and restore points, and nothing of virtual machines. Its invariant: a restore point is
// visible only when everything it needs is durable, and every byte is proven before it is handed out. The format of
// what it stores is in FORMAT.md, what was decided and why in DESIGN.md.
//
// # Who may do what at the same time
//
// One process owns a repository: it holds the backend's lock and the highest epoch, and asks for the epoch again
// before each publish and each removal. Readers in other processes (read-only opens) take nothing and may be
// overtaken by a removal: they then answer an error, never wrong bytes. Within the owner:
//
//	                what makes it safe
//	session beside  Packs have random ids and one writer each. Both may store the same chunk: readers, marks and the
//	  session       index know several copies. A session relies on another's finished packs only through the index,
//	                with a pin, so an Abort or a Collect does not take them away.
//	session beside  Whoever comes to rely on a pack holds gc shared while it looks the pack up and pins it (has), or
//	  collect       names a parent image (keep). Collect marks without a lock; then, with gc held exclusively, it marks
//	                what roots have come up meanwhile, until there are none, chooses packs that are neither marked nor
//	                pinned, and makes the index forget them before it lets go. Later look-ups do not find them. A pack
//	                being written is pinned before its file exists; one that is not in the index is never chosen.
//	publish beside  Publish holds gc shared from before the manifest is written until it is among the points; the
//	  collect       session's pins end after that. So a choice sees the pins or the point, or both.
//	prune beside    collecting lets one of them run at a time.
//	  collect
//	prune beside    The session's parents stay roots until it ends, whether or not a restore point still has them.
//	  session       The chain may then name a predecessor that is gone; Check notes it.
//	publish beside  publishing lets one at a time read the head of a series and follow it.
//	  publish
//	restore, verify An open ImageReader makes its image a root: a Collect of this process keeps it. Prune beside it is
//	  beside all    harmless. Verify opens its images; its documents may be collected under it after a prune.
//	crash beside    Nothing is undone by hand. What is visible was durable first; the next owner removes temporary
//	  all           files and stale leases and makes visible entries durable before it builds on them.
//
// References between chunks: a stored chunk may need blocks of chunks in other packs. Marks follow them (one step:
// they name only blocks that are physically there), a dedup hit pins their packs too (needs), and a copy whose
// references lead nowhere, the remainder of something collected, is not a hit and not read. Tree nodes need no such
// rule: a session stores or finds every child itself before it relies on the node above it.
//
// # Damage
//
// A pack in which damage was read is suspect until a Verify reads all of it as good, or it goes. Restores still try
// every copy. Sessions do not rely on suspect packs, neither for chunks and nodes nor for blocks, and while there is
// any, they rely on other packs only after reading what they rely on: so the next full read stores again what is
// damaged, which heals the older restore points too. What a session takes over from a parent image unread it trusts:
// after damage was found, a backup has to read whole disks. Publish looks at every pack the session relies on, and
// refuses if one is gone, has another size or was found damaged meanwhile. Verify begins by comparing the index with
// the packs that are there, and reads from the backend, not from caches.
package store
