package identity

import (
	"context"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// ScopeMetrics is the scope of a token that can only read /metrics. The scope "" is everything its user may do.
const ScopeMetrics = "metrics"

// IssueToken makes an API token for the caller's user; lifetime 0 is 90 days.
func (s *Service) IssueToken(ctx context.Context, c Caller, name, scope string, lifetime time.Duration) (Issued, error) {
	if lifetime == 0 {
		lifetime = defaultLifetime
	}
	return s.issue(ctx, catalog.User{ID: c.UserID, Name: c.User}, name, scope, lifetime)
}

func (s *Service) issue(ctx context.Context, user catalog.User, name, scope string, lifetime time.Duration) (Issued, error) {
	secret := randomSecret(TokenPrefix)
	expires := time.Now().UTC().Add(lifetime)
	t := catalog.Token{Hash: hashSecret(secret), Name: name, Scope: scope, UserID: user.ID, ExpiresAt: &expires}
	if err := s.store.CreateToken(ctx, &t); err != nil {
		return Issued{}, err
	}
	return Issued{Token: t, User: user.Name, Secret: secret}, nil
}

// Tokens lists the tokens of the caller's user, newest first.
func (s *Service) Tokens(ctx context.Context, c Caller, p catalog.Page) (catalog.List[catalog.Token], error) {
	return s.store.Tokens(ctx, c.UserID, p)
}

// Token returns a token of the caller's user; those of others are NotFound.
func (s *Service) Token(ctx context.Context, c Caller, id string) (catalog.Token, error) {
	t, err := s.store.Token(ctx, id)
	if err == nil && t.UserID != c.UserID || fault.KindOf(err) == fault.NotFound {
		return catalog.Token{}, fault.New(fault.NotFound, "look up token", id, "you have no such token").Explain(
			"It was deleted, or is another one's.", "List your tokens, and name one of those.")
	}
	return t, err
}

// DeleteToken removes a token of the caller's user; it may be the one in use.
func (s *Service) DeleteToken(ctx context.Context, c Caller, id string) error {
	t, err := s.Token(ctx, c, id)
	if err != nil {
		return err
	}
	return s.store.DeleteToken(ctx, t.ID)
}

// Authenticate returns whose token this is. Its error is Denied and matches ErrCredentials when it is nobody's.
func (s *Service) Authenticate(ctx context.Context, secret string) (Caller, error) {
	if !strings.HasPrefix(secret, TokenPrefix) || len(secret) > 128 {
		return Caller{}, denied("it is no token of this appliance")
	}
	return s.AuthenticateHash(ctx, hashSecret(secret))
}

// AuthenticateHash looks a caller up again by Caller.TokenHash.
func (s *Service) AuthenticateHash(ctx context.Context, hash string) (Caller, error) {
	t, err := s.store.TokenByHash(ctx, hash)
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return Caller{}, denied("the token is unknown or was deleted")
		}
		return Caller{}, err
	}
	now := time.Now()
	if t.ExpiresAt == nil || !now.Before(*t.ExpiresAt) {
		return Caller{}, denied("the token has expired")
	}
	user, err := s.store.User(ctx, t.UserID)
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return Caller{}, denied("the token's user is gone")
		}
		return Caller{}, err
	}
	s.remember(ctx, t, now)
	return Caller{UserID: user.ID, User: user.Name, TokenID: t.ID, TokenHash: hash, Scope: t.Scope, ExpiresAt: *t.ExpiresAt}, nil
}

func denied(meaning string) error {
	return fault.Wrap(fault.Denied, "", "", ErrCredentials).Explain(
		strings.ToUpper(meaning[:1])+meaning[1:]+".", "Log in, or use another API token.")
}

// remember writes that a token was used, at most once in usedGranularity. A request is not refused because that
// could not be written.
func (s *Service) remember(ctx context.Context, t catalog.Token, now time.Time) {
	s.mu.Lock()
	last := s.used[t.ID]
	if t.LastUsed != nil && t.LastUsed.After(last) {
		last = *t.LastUsed
	}
	due := now.Sub(last) >= usedGranularity
	if due {
		if len(s.used) >= maxRemembered {
			clear(s.used)
		}
		s.used[t.ID] = now
	}
	s.mu.Unlock()
	if !due {
		return
	}
	if err := s.store.TouchToken(ctx, t.ID, now.UTC()); err != nil {
		s.log.WarnContext(ctx, "use of token not written", "err", err)
	}
}
