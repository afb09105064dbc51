package deploy

import (
	"encoding/json"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/internal/fault"
)

// SessionsOf returns the sessions that a deployment was asked for with, as guest.Config has them: with their secrets.
func SessionsOf(c *catalog.Catalog, t catalog.Task) (catalog.Secret, error) {
	var spec Spec
	if err := json.Unmarshal(t.Spec, &spec); err != nil {
		return "", fault.Wrap(fault.Internal, "read request of task", t.ID, err)
	}
	return c.Unseal(sessionsOf(spec), spec.Sealed)
}
