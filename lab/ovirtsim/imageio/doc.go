// Package imageio is the imageio daemon of a simulated oVirt host, or the proxy of a simulated engine: images over HTTPS, opened by
// tickets.
//
// It answers as ovirt-imageio 2.5 does, as far as a client of backups and restores can tell: methods, ranges, extents, checksums, texts
// of errors, what closes a connection, and when a ticket ends. The control socket of the real daemon is the Server's methods here. It
// makes no transfers and knows no disks, only what is behind a ticket.
//
// Its invariant: what a client was told is written and flushed is with the ticket's backend. What was written and not flushed is lost
// in a Crash if the ticket is Volatile.
//
// Every fault that can be injected counts how often it fired.
package imageio
