package jobs

import (
	"fmt"
	"testing"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestSweepOfMoreConnectionsThanAPageHas(t *testing.T) {
	f := newFixture(t, nil)
	for i := range catalog.MaxLimit {
		conn := catalog.Connection{Name: fmt.Sprintf("c%04d", i), Platform: memplatform.PlatformName}
		if err := f.catalog.CreateConnection(t.Context(), &conn, ""); err != nil {
			t.Fatal(err)
		}
	}
	swept, err := f.journal.Sweep(t.Context())
	if err != nil || len(swept) != catalog.MaxLimit+1 || swept[len(swept)-1].Name != "lab" {
		t.Errorf("%d connections were swept, %v", len(swept), err)
	}
}
