package command

import (
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/api/client"
)

func TestAppliancePages(t *testing.T) {
	a := newAppliance(t)
	held := client.Appliance{
		ID: "app_01", Incarnation: 2, State: client.ApplianceHeld, RecoveredAt: noon.Add(-time.Hour), RecoveredFrom: "repository main, as of 2026-11-21T10:00:00Z",
		Configuration: []client.ConfigurationSave{
			{RepositoryID: "repo_01", Repository: "main", State: client.ConfigurationSaved, SavedAt: noon.Add(-time.Minute)},
			{RepositoryID: "repo_02", Repository: "full", State: client.ConfigurationFailed, Error: client.Failure{Detail: "no space left on device"}},
		},
	}
	a.get("/appliance", held)
	a.HandleFunc("POST /appliance/resume", func(w http.ResponseWriter, _ *http.Request) {
		held.State = client.ApplianceSuperseded
		held.SupersededAt, held.SupersededBy = noon, "on b, as of 2026-11-21T12:00:00Z"
		reply(w, 200, held)
	})
	for _, page := range []string{"appliance show", "appliance resume"} {
		got := a.run(t, strings.Fields(page)...)
		if got.code != 0 {
			t.Fatalf("%s: exit code %d, stderr %q", page, got.code, got.stderr)
		}
		compare(t, filepath.Join("testdata", "pages", strings.ReplaceAll(page, " ", "_")+".txt"), got.stdout)
	}
}
