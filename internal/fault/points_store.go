package fault

// StorePoints names the places in the repository engine; store/campaign kills a process at each.
var StorePoints = []string{
	"store.create.keys-wrapped",      // the wrapped keys are there, nothing else
	"store.create.reserve-written",   // all but config is there: it is not a repository yet
	"store.open.locked",              // the lock is taken, no epoch yet
	"store.open.epoch-written",       // the new epoch counts, old ones are there
	"store.open.stale-removed",       // one stale lease or epoch is gone
	"store.open.index-opened",        // index is open, not compared with the packs
	"store.open.pack-indexed",        // one pack the index did not know is in it
	"store.open.index-agrees",        // index knows the packs that are there
	"store.open.points-read",         // restore points are proven
	"store.close.index-closed",       // index is written, the lock is held
	"store.session.lease-written",    // the lease is durable, nothing is written
	"store.session.pack-created",     // a pack is begun
	"store.session.frame-written",    // a frame is in the unfinished pack
	"store.session.pack-full",        // a pack has reached its size
	"store.session.pack-durable",     // a full pack is durable, not indexed
	"store.session.pack-indexed",     // a full pack can be found
	"store.session.lease-removed",    // published or aborted, and the lease is gone
	"store.image.data-stored",        // an image's data is in packs, its tree is not
	"store.image.tree-stored",        // its tree is stored, its head is not
	"store.publish.documents-stored", // documents are in frames
	"store.publish.meta-stored",      // all frames are in packs, the last packs are unfinished
	"store.publish.pins-checked",     // all packs relied on are there
	"store.publish.fenced",           // this owner is the newest, the manifest is not written
	"store.abort.packs-removed",      // unfinished packs are removed, the lease is there
	"store.prune.fenced",             // this owner is the newest, the manifest is there
	"store.prune.recorded",           // it is written that restore points go, they are there
	"store.prune.unpublished",        // one manifest is gone durably
	"store.collect.marked",           // everything needed is marked, nothing chosen
	"store.collect.forgotten",        // the index has forgotten what goes
	"store.collect.put-aside",        // one pack is in trash/
	"store.collect.all-put-aside",    // all of them are
	"store.collect.unlinked",         // one object of trash/ is gone
	"store.collect.trash-empty",      // all are gone, the index is not swept
	"store.compact.pack-created",     // a pack for what moves is begun
	"store.compact.pack-durable",     // it is durable, nobody knows it
	"store.compact.moved",            // what is needed of sparse packs is in new ones, durable
	"store.compact.proven",           // the new packs were read back
	"store.compact.forgotten",        // the index knows the new packs only, the old ones are there
	"store.collect.swept",            // the index is swept
	"store.file.created",             // backend: a temporary file is made
	"store.file.synced",              // backend: its content is durable, it has no name
	"store.file.linked",              // backend: it has its name, not durably
	"store.file.entry-durable",       // backend: the name is durable, the temporary one is there
	"store.file.folder-made",         // backend: a folder is made, not durable
	"store.file.renamed",             // backend: an object is renamed, not durably
	"store.file.unlinked",            // backend: an object is removed, not durably
	"store.file.leftover-removed",    // backend: an unfinished file of a dead process is removed
	"store.index.pack-added",         // index: a pack's entries are in memory
	"store.keys.added",               // a wrapping is durable, not read back
	"store.keys.proven",              // the new key opens the repository, the old one too
	"store.keys.removed",             // the old wrapping is gone
	"store.heal.record-waits",        // a good record waits in quarantine/, the damaged one has its name
	"store.heal.record-aside",        // the damaged record is put aside, the good one still waits
	"store.heal.packs-durable",       // what is healed is in new packs, durable, not indexed nor read back
	"store.heal.quarantined",         // damaged packs are put aside, the index is not swept

	"store.erasure.absence-recorded", // an owner has noted who is away, nothing is settled
	"store.erasure.session-placed",   // an owner's number is announced, or begun, on all members of a set
	"store.erasure.shards-pending",   // enough shards of an object are durable, none has its name
	"store.erasure.first-named",      // one shard has its name: the object is there
	"store.erasure.need-reached",     // enough have it, nobody was told
	"store.erasure.delete-marked",    // enough members know that the object is gone, its shards are there
	"store.erasure.shards-removed",   // its shards are gone, the marks are there
	"store.erasure.shard-renamed",    // one shard has its new name
	"store.erasure.shard-proven",     // repair: a new shard is durable and read back, the bad one has the name
	"store.erasure.old-shard-aside",  // repair: the bad one has given up its name, the new one has not got it
	"store.erasure.shard-exchanged",  // repair: the new one has the name, the bad one is still there
	"store.erasure.shard-rebuilt",    // rebuild: one object has its shard on the member again
	"store.erasure.member-enlisted",  // replace: the new member says who it is, the set does not know it
	"store.erasure.document-placed",  // a member has a new description of the set
	"store.erasure.member-replaced",  // replace: enough have the description, nothing is filled
	"store.erasure.group-described",  // grow: the new members have the description, the others do not
	"store.erasure.group-added",      // grow: enough have it

	"store.index.flushed", // index: written to its directory
}
