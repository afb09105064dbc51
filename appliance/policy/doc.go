// Package policy has the rules of protection: which VMs a policy covers, when it is due, in which windows it may begin,
// which restore points its retention keeps and why, and whether a VM is as well protected as was promised.
//
// It is pure: no clock, no database, no platform, no goroutine. Everything it needs is an argument, so that the scheduler, the
// API, `cairn plan` and the tests get the same answer from the same function; docs/policies.md is the manual of its two
// small languages. It reads the time zone database, and nothing else.
//
// Its invariants: a text that was accepted once is always accepted; no function answers differently when it is asked twice;
// and retention never gives up the newest good restore point of a VM.
package policy
