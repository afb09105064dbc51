// Package nbdtransport opens a platform's exports over NBD: frozen disks for reading, new disks for writing.
//
// It adds to package nbd what a transfer of hours needs: a connection that breaks is made anew and the work goes on. It
// is no pipeline; package transfer is.
//
// Its invariant: a broken connection never loses data in silence.
//
//   - Reads and block status are repeated; a frozen disk does not change.
//   - After a reconnect the export must look as before (size, contexts, block sizes, read-only); else the disk fails.
//   - Writes and zeros are repeated too, they are idempotent. What was written since the last successful flush may be
//     lost with the server that had acknowledged it, so a target keeps it (up to Options.JournalBytes, then it flushes)
//     and writes it again on the new connection, before anything else. Where the server has no FLUSH nothing can be
//     promised, and a connection lost after the first write fails the disk.
//   - A server that stays away for all attempts is gone for good: the error is Transient, for the whole task may be
//     repeated, and says so in words.
package nbdtransport
