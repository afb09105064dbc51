// Package peers keeps this manager among those that work on one PostgreSQL: it shows that it is alive, takes over what falls to
// it, and notices when it has lost the database.
//
// It decides nothing that the database does not confirm, and does no task itself; the rules are in package catalog (Share, Adopt),
// the work in package jobs. Its invariant: before the others may take this manager for dead, it has been told to stop.
//
// Who may do what:
//
//	task      One manager runs it: claiming it is a transaction, and so is everything that others see of it. What a manager that
//	          was taken for dead tries to store is refused, also that it is about to make something on a platform.
//	VM        One task at a time for a VM: a unique index. Who changes it on the platform, task or sweep, holds it in the catalog.
//	repository One manager owns it and runs its tasks. The owner holds the backend's lock and its epoch as well, so one that was
//	          taken for dead while it stood still publishes nothing when it wakes up.
//	the rest  Sweeps are the leader's, who is the oldest manager alive. Two for a moment do no harm: each VM is held.
//
// Signs of life are given every Beat. A manager that was not seen for Lease, by the database's clock, is taken for dead, and never
// comes back under its id. One that could give no sign for two thirds of that, by its own clock, stops what it does and ends.
// What remains possible: a machine that stands still for longer than that in the middle of a call to a platform, and makes that
// call when it wakes up. Such a call carries the tag of a task that has been settled, and the sweep removes what it made.
//
// Concurrency: one goroutine gives the signs, one asks what falls to this manager, and one at a time for each repository takes
// it over, which may take as long as reading an index does.
package peers
