// Package jobs runs tasks: it queues them durably with River, claims them, cancels them, cleans up behind them and,
// after the manager was killed, takes up those of which it has kept something (Task.Keep) and brings the others to
// their end.
//
// It does not know what a backup or a restore is; handlers do. The task's row in the catalog is the truth about it,
// a River job only says "look at this task": claiming a task moves its row from queued to running in one transaction,
// so a job that is delivered twice does nothing the second time. Its invariant: every task that was accepted ends in
// exactly one final state, and what it owed is removed, or stays in the journal until it is.
//
// Several managers may share a catalog on PostgreSQL: a task has one manager, which claimed it, and one of a manager that is no
// more is settled by the one that took its repository over (TakeOver). Who is alive and owns what, package peers knows.
//
// Jobs are inserted in the transaction that stores their task, which is gorm's. On PostgreSQL that is why River's driver is the one for
// database/sql (riverdatabasesql) and looks for jobs, rather than riverpgxv5, which is told of them but cannot join that transaction.
//
// Concurrency:
//
//	Queue.running   worker goroutines, Cancel; under Queue.mu
//	Task            its handler's goroutines; under Task.mu
//	Journal.held    workers and the sweep; under Journal.mu: who holds a VM may change it on the platform. Among managers the
//	                catalog's VMHold does the same
//	Queue.adopted   TakeOver, one at a time; under Queue.taking
package jobs
