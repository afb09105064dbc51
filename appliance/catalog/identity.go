package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"
)

// CreateUser stores a new user and fills in the id and time.
func (c *Catalog) CreateUser(ctx context.Context, u *User) error {
	u.ID, u.CreatedAt = NewID(PrefixUser), time.Now().UTC()
	if err := c.db.WithContext(ctx).Create(u).Error; err != nil {
		return failure("create user", u.Name, err)
	}
	return nil
}

// CreateFirstUser stores a user only if there is none yet; else it answers Exists.
func (c *Catalog) CreateFirstUser(ctx context.Context, u *User) error {
	u.ID, u.CreatedAt = NewID(PrefixUser), time.Now().UTC()
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		var n int64
		if err := tx.Model(&User{}).Count(&n).Error; err != nil {
			return err
		}
		if n > 0 {
			return gorm.ErrDuplicatedKey
		}
		return tx.Create(u).Error
	})
	if err != nil {
		return failure("create first user", u.Name, err)
	}
	return nil
}

// User returns one user by its id.
func (c *Catalog) User(ctx context.Context, id string) (User, error) {
	return first[User](ctx, c, "look up user", id, "id = ?", id)
}

// UserByName returns one user by its name.
func (c *Catalog) UserByName(ctx context.Context, name string) (User, error) {
	return first[User](ctx, c, "look up user", name, "name = ?", name)
}

// CountUsers returns how many users there are.
func (c *Catalog) CountUsers(ctx context.Context) (int64, error) {
	var n int64
	if err := c.db.WithContext(ctx).Model(&User{}).Count(&n).Error; err != nil {
		return 0, failure("count users", "", err)
	}
	return n, nil
}

// UpdateUser stores a user's password hash and last log-in.
func (c *Catalog) UpdateUser(ctx context.Context, u User) error {
	err := c.db.WithContext(ctx).Model(&User{}).Where("id = ?", u.ID).Select("password_hash", "last_login").Updates(&u).Error
	if err != nil {
		return failure("change user", u.Name, err)
	}
	return nil
}

// CreateToken stores a new token and fills in the id and time.
func (c *Catalog) CreateToken(ctx context.Context, t *Token) error {
	t.ID, t.CreatedAt = NewID(PrefixToken), time.Now().UTC()
	if err := c.db.WithContext(ctx).Create(t).Error; err != nil {
		return failure("create token", t.Name, err)
	}
	return nil
}

// TokenByHash returns the token with a hash.
func (c *Catalog) TokenByHash(ctx context.Context, hash string) (Token, error) {
	return first[Token](ctx, c, "look up token", "", "hash = ?", hash)
}

// Token returns one token by its id.
func (c *Catalog) Token(ctx context.Context, id string) (Token, error) {
	return first[Token](ctx, c, "look up token", id, "id = ?", id)
}

// Tokens lists the tokens of a user, or of all for "", the newest first.
func (c *Catalog) Tokens(ctx context.Context, userID string, p Page) (List[Token], error) {
	q := c.db.WithContext(ctx)
	if userID != "" {
		q = q.Where("user_id = ?", userID)
	}
	return page(q, p, byAge(func(v Token) string { return v.ID }, nil))
}

// TouchToken stores when a token was last used.
func (c *Catalog) TouchToken(ctx context.Context, id string, at time.Time) error {
	if err := c.db.WithContext(ctx).Model(&Token{}).Where("id = ?", id).Update("last_used", at.UTC()).Error; err != nil {
		return failure("change token", id, err)
	}
	return nil
}

// DeleteToken forgets a token.
func (c *Catalog) DeleteToken(ctx context.Context, id string) error {
	res := c.db.WithContext(ctx).Where("id = ?", id).Delete(&Token{})
	if res.Error != nil {
		return failure("delete token", id, res.Error)
	}
	if res.RowsAffected == 0 {
		return notFound("delete token", id)
	}
	return nil
}
