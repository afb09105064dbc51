// Package campaign proves the repository on real things: file systems that lose power, processes that are killed,
// disks that are full, bytes that rot.
//
// It is tests and what they run; only tests import it. Its invariant: a campaign that reports nothing has
// injected something. Each prints one line, "campaign: name=... injected=... fired=... lost=0", from which
// docs/reliability.md is made (scripts/reliability.sh), and each shows by a planted fault that it can fail.
//
// The workload is a process of its own (worker): it is killed, and its file system is cut off, as that of a real one.
package campaign
