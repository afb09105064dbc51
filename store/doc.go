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
// overtaken by a removal: they then look again, and answer an error if it is gone, never wrong bytes. Within the owner:
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
//	prune beside    A collect takes the points for roots as they are when it decides; one removed later frees its packs
//	  collect       at the next. After a removal that may or may not last (unsafe), which is asked for again under gc,
//	                no collect decides anything. pruning lets one prune run at a time, collecting one collect.
//	compaction      A collect that rewrites a pack first makes the new one durable and known to the index, and proves
//	  beside all    what it holds; then, with gc held exclusively and new roots marked, it makes the index forget the
//	                old one, unless it is pinned, suspect, or more of it is needed now. Then the old one goes. So an
//	                object is found at any time. Who has a place of before in its hands and misses the file looks the
//	                object up again (moving); readers in other processes look at the packs again first (catchUp).
//	carrier beside  Its claims are its own, so it waits for nobody; whoever takes its image over ends it (its life lock
//	  all           waits for its calls), and what it had not made durable is owed. Its packs are in the index and pinned,
//	                or withheld: from before a mover may write one until the index has it, whoever lists packs (collect,
//	                sweep, verify, heal, check) does not see it, so nobody relies on what is removed, behind the fence,
//	                when the carrier ends. What a caller that goes away has begun is done without it.
//	session of an   Its journal names only what is durable. Before anything else runs, an open pins what that needs, and
//	  owner before  the parents that can be read, until it is resumed, forgotten or ends. Its lease goes before its manifest
//	                comes: it publishes once. Lease and records are removed, and records written, behind the fence; a name
//	                that an overtaken owner took in between is passed over, and a lease that it took away then costs the
//	                next owner's successor the resuming, nothing else.
//	owner beside    A read-only process may know restore points and packs that the owner has removed. Before anything
//	  its readers   is called damaged there, both are looked at again (current): NotFound if the point is gone.
//	space beside    Space and WouldFree hold collecting: packs stand still but for new ones, which no point needs yet.
//	  all           Both keep what leaves need in the index, as a collect does: last come, equal content.
//	prune beside    The session's parents stay roots until it ends, whether or not a restore point still has them.
//	  session       The chain may then name a predecessor that is gone; Check notes it.
//	publish beside  publishing lets one at a time read the head of a series and follow it.
//	  publish
//	restore, verify An open ImageReader makes its image a root: a Collect of this process keeps it. Prune beside it is
//	  beside all    harmless. Verify opens its images; its documents may be collected under it after a prune.
//	crash beside    Nothing is undone by hand. What is visible was durable first; the next owner removes temporary
//	  all           files and stale leases (not those to be resumed) and makes visible entries durable before it builds on them.
//
// References between chunks: a stored chunk may need blocks of chunks in other packs. Marks follow them (one step:
// they name only blocks that are physically there), a dedup hit pins their packs too (needs), and a copy whose
// references lead nowhere, the remainder of something collected, is not a hit and not read. Tree nodes need no such
// rule: a session stores or finds every child itself before it relies on the node above it.
//
// # Damage
//
// A pack in which damage was read is suspect until a Verify or Sweep reads all of it as good, or it goes. Restores
// still try every copy. Sessions do not rely on suspect packs, neither for chunks and nodes nor for blocks, and while
// there is any, they rely on other packs only after reading what they rely on: so the next full read stores again what
// is damaged, which heals the older restore points too. What a session takes over from a parent image unread it
// trusts: NeedsFullRead says when that would inherit known damage. Publish looks at every pack the session relies on,
// and refuses if one is gone, has another size or was found damaged meanwhile. Verify begins by comparing the index
// with the packs that are there, and reads from the backend, not from caches.
//
// LastVerified names no restore point that the damage known now touches, whoever has read it: a proof is good until
// something in it was seen to be otherwise, and again when that is healed.
//
// Whatever comes upon damage first asks the backend to repair the object (blob.Repairer) and reads it again. Sweep
// reads packs, not restore points: each once in a cycle, from end to end, also against its stored-bytes hash. A chunk
// without references is proven by its id, and its fingerprints with it; one with references by the fingerprints of its
// blocks, which were sealed with its id and must be those of the blocks here and those that the packs with the others
// have of them. At the end of a cycle everything that restore points need is looked for in the packs it has proven;
// Touched names what is not whole, from trees alone. Heal stores what is needed of damaged packs anew: from the damaged
// pack itself, or by id from another repository of the domain. Then, and not before the new packs are durable and read
// back, packs from which nothing is needed go to quarantine/. Nothing is deleted but by EmptyQuarantine. While
// something stays missing, so do the packs that have to do with it; while a tree or record cannot be read, all damaged
// packs.
//
//	sweep beside    Reads packs only. One that a Collect takes meanwhile is skipped; a loss counts only if it is found
//	  all           again without a Collect running.
//	heal beside     Holds collecting, so no Collect or compaction runs, and pruning while it puts records back, so that
//	  all           none comes back that was pruned. What is new while it looks (points, readers) it looks at too, until
//	                with gc held exclusively there is nothing more; then it chooses, and spares what sessions have
//	                pinned. A crash leaves packs in place or in quarantine, and of a record the good copy, which the
//	                next open puts in its place.
package store
