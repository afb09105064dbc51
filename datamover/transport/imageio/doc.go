// Package imageiotransport opens oVirt's image transfers: frozen disks for reading, new disks for writing. It is a client of
// ovirt-imageio's HTTP API.
//
// It starts and ends no transfer, which is the driver's work, and keeps no ticket longer than the disk is open. It never follows a
// redirect.
//
// Its invariants:
//
//   - A broken connection or an error of the daemon's never loses data in silence. Reads are repeated, for a frozen disk does not
//     change. What was written since the last flush is kept (up to Options.JournalBytes, then it is flushed). The flush counts if the
//     connection that it was answered on is older than all of it, for then the daemon has lived all that time, and if no write has
//     failed. Else all of it is written again, each write flushed by itself.
//   - No more connections are open than the daemon allows, and none after Close has returned: the platform can end the transfer.
//   - A ticket is in no error and no log. What the daemon sends is bounded before it is kept.
package imageiotransport
