// Package server puts the appliance together: catalog, repositories, drivers of connections, the job queue with the
// handlers of backup, restore and upkeep, the built-in mover, identity and the REST interface. It implements httpapi.Core.
//
// It decides little itself: what a backup is, protect knows; what is due after a crash, jobs. Its invariant: one
// process at a time works on a data directory, and before a task on a repository begins the catalog agrees with it, if it can
// be opened, and the tasks of earlier processes on it have ended. Alone on SQLite that is so before the first request is answered;
// where several managers share a PostgreSQL, it is for whoever owns the repository (package peers).
//
// The data directory:
//
//	lock           held while a process works on it
//	catalog.db     the catalog and the queue, unless they are in PostgreSQL
//	keys/          catalog.key seals credentials in the catalog; repo_….key is the key of a repository,
//	               repo_….key.new the one that takes its place while it is rotated
//	tls/           the certificate authority and the server's certificate
//	index/repo_…/  caches of repositories' indexes; can be deleted
//	setup-token    hash of the set-up token, until it is used
package server
