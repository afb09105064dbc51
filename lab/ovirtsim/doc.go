// Package ovirtsim is an oVirt engine for tests, demos and training: its REST API over TLS, with sessions, locks, phases
// that take their time, jobs, events, and every failure that a backup has to live with.
//
// It is no engine: it knows the calls that a backup product makes, answers XML only, and keeps its state in memory. Disks
// are real, though: qcow2 chains under a real qemu-storage-daemon (lab/ovirtsim/storage), read and written over the
// imageio protocol (lab/ovirtsim/imageio). It was written from the engine's own sources and API model as far as they
// are known, never beside a real engine.
//
// Its invariants: what an engine refuses is refused, with its status; nothing is done by the time the reply is sent that
// an engine does later; and a failure strikes only where it was injected, and counts how often it did.
//
// One lock (Engine.mu) guards the whole state. Handlers and the steps of operations run under it; work on disks runs
// beside it, while the entities are locked as the engine locks them.
package ovirtsim
