// Package schedule begins what policies make due: it turns the calendar into turns of VMs, and turns into runs.
//
// It does not know what a backup is, and keeps nothing: policies, turns and breakers are rows of the catalog, a run is
// submitted by a function it was given. Its invariants: an instant at which a policy is due is noticed once, whichever and however
// many managers look; every turn ends as done, failed, missed or cancelled, with the reason; a VM is never in two tasks at once.
//
// decide.go is the core: a pure function from what the catalog says at an instant to what is to be done. scheduler.go carries it
// out. Whatever it does is done only if the row is still as it was read, so that two managers, or one whose decision is old, do no harm.
//
// Clocks: an instant that has passed while nobody looked is caught up or reported, as the policy says. When the clock is put back a
// little, what was noticed is not noticed again. When it turns out to have been far ahead (more than a day), what was noticed
// beyond the present is forgotten.
package schedule
