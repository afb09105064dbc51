package fault

// Points names every place where a test can stop or kill the program: `Point(name)` stands right there in the
// code. Builds without the tag `faultpoints` contain none of this; releases are built without it.
var Points = []string{
	"backup.claimed",           // task is running, nothing touched yet
	"backup.owed",              // first owed clean-up committed, nothing created yet
	"backup.frozen",            // snapshot/checkpoint exists on the platform
	"backup.configured",        // configuration documents saved
	"backup.transfer-started",  // first bytes read
	"backup.transfer-middle",   // first pack durable or half of the disk read
	"backup.transferred",       // every disk read, nothing published
	"backup.packs-durable",     // store: packs are durable, index is not written
	"backup.index-written",     // store: index written, manifest is not
	"backup.manifest-written",  // store: manifest is durable, catalog does not know
	"backup.published",         // catalog row committed, old checkpoint still there
	"backup.checkpoint-kept",   // old checkpoint dropped, export still open
	"backup.released",          // platform is clean, owed rows not struck off
	"backup.struck-off",        // owed rows gone, task not closed
	"restore.claimed",          // task is running, nothing touched yet
	"restore.owed",             // first owed clean-up committed, nothing created yet
	"restore.volume-created",   // first volume exists
	"restore.exports-open",     // volumes are open for writing
	"restore.transfer-middle",  // part of the data is written
	"restore.transferred",      // all data is written and flushed
	"restore.defined",          // the VM is defined, owed rows not struck off
	"restore.original-removed", // in place: the replaced disks are gone
	"restore.struck-off",       // owed rows gone, task not closed
	"restore.started",          // the VM was started, task not closed
	"transfer.chosen",          // a mover and a transport are chosen, nothing is plugged in
	"deploy.token",             // the join token is made, nothing on the platform
	"deploy.started",           // the mover's VM runs, nobody has enrolled
	"deploy.enrolled",          // the mover is recorded, owed rows not struck off
}
