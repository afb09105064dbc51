package identity

import (
	"context"
	"errors"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// said writes to the audit log how a log-in or the set-up went.
func (s *Service) said(ctx context.Context, action, source, user string, err error) {
	if s.audit == nil || errors.Is(err, context.Canceled) {
		return
	}
	e := catalog.AuditEntry{Actor: user, Source: source, Action: action, Subject: user}
	if err != nil {
		e.Actor, e.Refused, e.Detail = "", true, err.Error()
	}
	s.audit(ctx, e)
}

// knownName is the name of a user that there is. Others are not written down: now and then one is a password.
func (s *Service) knownName(ctx context.Context, name string) string {
	if user, err := s.store.UserByName(ctx, name); err == nil {
		return user.Name
	}
	return ""
}
