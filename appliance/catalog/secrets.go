package catalog

import (
	"context"
	"errors"
)

// Secrets returns every secret that is sealed in the catalog for long: credentials of connections and files that managers share.
// Those that can be opened are returned together with the error about the others. They are for looking for them where they must not be.
func (c *Catalog) Secrets(ctx context.Context) (out []Secret, err error) {
	var connections []Connection
	var files []SharedFile
	if err := c.db.WithContext(ctx).Find(&connections).Error; err != nil {
		return nil, failure("read secrets", "", err)
	}
	if err := c.db.WithContext(ctx).Find(&files).Error; err != nil {
		return nil, failure("read secrets", "", err)
	}
	open := func(owner string, sealed []byte) {
		secret, openErr := c.seal.open(owner, sealed)
		err = errors.Join(err, openErr)
		if secret != "" {
			out = append(out, secret)
		}
	}
	for _, row := range connections {
		open(row.ID, row.SealedSecret)
	}
	for _, row := range files {
		open(row.Name, row.Sealed)
	}
	return out, err
}
