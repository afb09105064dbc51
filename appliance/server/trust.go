package server

import (
	"context"
	"errors"
	"strings"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/erasure"
)

// TrustMembers implements httpapi.Core. The audit log has who said so before anything happens, and what came of it.
func (a *Appliance) TrustMembers(ctx context.Context, who fleet.Who, id string, members []string) (httpapi.RepositoryInfo, error) {
	row, err := a.catalog.Repository(ctx, id)
	if err == nil {
		err = a.mayOpen(ctx, id)
	}
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	if row.Kind != catalog.KindSet {
		return httpapi.RepositoryInfo{}, fault.New(fault.Unsupported, "trust members of repository", row.Name, "it lies in one directory").Explain(
			"This repository is not on a set, so it has no members.", "Verify it to look for damage.")
	}
	if err := a.catalog.RepositoryIdle(ctx, id); err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	a.repositories.adding.Lock()
	defer a.repositories.adding.Unlock()
	ctx = context.WithoutCancel(ctx)
	err = a.audited(ctx, trustEntry(who, row.Name, members), func() error {
		err := erasure.Trust(ctx, setMembers(row.Members), a.setOptions(row), members...)
		if err != nil {
			err = fault.Context("trust members of repository", row.Name, err)
		}
		return err
	})
	if err != nil {
		return httpapi.RepositoryInfo{}, err
	}
	if err := a.repositories.drop(id); err != nil { // it is opened anew, by what counts now
		a.log.WarnContext(ctx, "repository was not closed", "repository", row.Name, "err", err)
	}
	if _, _, err := a.protector.Reconcile(ctx, id); err != nil {
		a.log.WarnContext(ctx, "restore points were not read", "repository", row.Name, "err", err)
	}
	return a.GetRepository(ctx, id)
}

func trustEntry(who fleet.Who, repository string, members []string) catalog.AuditEntry {
	return catalog.AuditEntry{
		Actor: who.User, Source: who.Source, Action: "repository.trust", Subject: repository,
		Detail: "what they have is to count as all there is: " + strings.Join(members, ", "),
	}
}

// audited does something after it is in the audit log, and adds to the log if it failed.
func (a *Appliance) audited(ctx context.Context, entry catalog.AuditEntry, do func() error) error {
	if err := a.catalog.Audit(ctx, entry); err != nil {
		return err
	}
	if err := do(); err != nil {
		entry.Refused, entry.Detail = true, err.Error()
		return errors.Join(err, a.catalog.Audit(ctx, entry))
	}
	return nil
}
