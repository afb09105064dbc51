package store

import (
	"context"
	"encoding/hex"

	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/seal"
)

// Identify reads the identity of the repository in b and proves with the key that it is that repository's. It opens
// nothing and takes no lock. When the key does not prove it, the identity that is claimed comes along with the error;
// it is "" when there is none to be read.
func Identify(ctx context.Context, b blob.Store, by Opener) (string, error) {
	_, id, _, err := loadConfig(ctx, b, by)
	if id == (seal.ID{}) {
		return "", err
	}
	return hex.EncodeToString(id[:]), err
}
