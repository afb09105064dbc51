package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/peers"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// join makes this process one of the managers of the catalog.
func (a *Appliance) join(ctx context.Context) error {
	name, err := os.Hostname()
	if err != nil {
		name = "unknown"
	}
	return a.catalog.Join(ctx, &catalog.Manager{Name: name, Version: version.Version})
}

// begin begins to work: alone at once, among others with what falls to this manager.
func (a *Appliance) begin(ctx context.Context, o Options) error {
	if !a.catalog.Shared() {
		// Restore points first: whether a checkpoint is still owed depends on them.
		if err := a.openRepositories(ctx); err != nil {
			return err
		}
		return a.queue.Start(ctx)
	}
	if err := a.queue.Start(ctx); err != nil {
		return err
	}
	a.peers = peers.Start(peers.Options{
		Catalog: a.catalog, Queue: a.queue, Log: a.log, Beat: o.Beat, Lease: o.Lease,
		Open: a.takeRepository, Close: a.giveRepository, Lost: func(err error) { a.lost <- err },
	})
	return nil
}

// takeRepository opens a repository that is this manager's now, and makes the catalog agree with it.
func (a *Appliance) takeRepository(ctx context.Context, id string) error {
	if _, err := a.opened(ctx, id); err != nil {
		return err
	}
	added, removed, err := a.protector.Reconcile(ctx, id)
	if err == nil && added+removed > 0 {
		a.log.InfoContext(ctx, "catalog brought up to date", "repository", id, "added", added, "removed", removed)
	}
	return err
}

func (a *Appliance) giveRepository(_ context.Context, id string) error {
	return a.repositories.drop(id)
}

// mayOpen is an error while a repository is another manager's: a repository has one process that works with it.
func (a *Appliance) mayOpen(ctx context.Context, id string) error {
	if a.peers == nil || a.peers.Owns(id) {
		return nil
	}
	row, err := a.catalog.Repository(ctx, id)
	if err != nil {
		return err
	}
	owner, err := a.catalog.OwnerOf(ctx, id)
	if err != nil && fault.KindOf(err) != fault.NotFound {
		return err
	}
	if err != nil || owner.EndedAt != nil || owner.ID == a.catalog.ManagerID() {
		return fault.New(fault.Transient, "open repository", row.Name, "it is being taken over").Explain(
			"The manager that worked with this repository is no more, and another one takes it over.", "Try again in a moment.")
	}
	return &httpapi.Elsewhere{
		Address: owner.Address,
		Err: fault.Wrap(fault.Conflict, "open repository", row.Name, catalog.ErrElsewhere).Explain(
			"Manager "+owner.Name+" works with this repository; one at a time does.", "Ask that manager."),
	}
}

// toPeers carries requests to other managers, which have certificates of the same authority.
func (a *Appliance) toPeers() http.RoundTripper {
	if a.peers == nil {
		return nil
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.authority.Certificate())
	return &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}, TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
	}
}

// Lost tells, once, that this manager has lost the database or was taken for dead: Abandon it.
func (a *Appliance) Lost() <-chan error { return a.lost }

// Abandon ends everything at once for a manager that has lost the database: what it was at is for the others now.
func (a *Appliance) Abandon(ctx context.Context) error {
	a.closing.Do(func() {
		a.routine.end()
		err := a.queue.Abandon(ctx)
		a.peers.Stop()
		a.closeErr = errors.Join(err, a.shut(ctx, false))
	})
	return a.closeErr
}
