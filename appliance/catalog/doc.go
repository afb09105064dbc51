// Package catalog is what the manager knows: connections, repositories, VMs, runs and tasks, restore points, owed
// clean-ups, policies, users and tokens, kept by gorm in SQLite, or in PostgreSQL, where several managers share it.
//
// It is no truth about restore points: the repository is, and the catalog's rows of them can be made again from it.
// It does no work either; it stores and answers. Its invariant: what a method returned nil for is durable
// (synchronous=FULL), and a task's state only ever moves along the table in state.go.
//
// There is one open connection to SQLite, so a method must never be called while another one's transaction is open in
// the same goroutine: the callbacks given to a method get what they need from its arguments.
package catalog
