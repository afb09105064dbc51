package identity

import (
	"context"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
)

// Store keeps users and tokens; *catalog.Catalog is one, and its methods say what they promise.
type Store interface {
	Users
	Tokens
}

// Users is the part of Store about users.
type Users interface {
	CreateFirstUser(ctx context.Context, u *catalog.User) error
	CountUsers(ctx context.Context) (int64, error)
	User(ctx context.Context, id string) (catalog.User, error)
	UserByName(ctx context.Context, name string) (catalog.User, error)
	UpdateUser(ctx context.Context, u catalog.User) error
}

// Tokens is the part of Store about API tokens.
type Tokens interface {
	CreateToken(ctx context.Context, t *catalog.Token) error
	TokenByHash(ctx context.Context, hash string) (catalog.Token, error)
	Tokens(ctx context.Context, userID string, p catalog.Page) (catalog.List[catalog.Token], error)
	Token(ctx context.Context, id string) (catalog.Token, error)
	TouchToken(ctx context.Context, id string, at time.Time) error
	DeleteToken(ctx context.Context, id string) error
}
