package server

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

func TestMoreConnectionsAndRepositoriesThanAPageHas(t *testing.T) {
	b := stillBench(t)
	ctx := t.Context()
	for i := range catalog.MaxLimit {
		conn := catalog.Connection{Name: fmt.Sprintf("c%04d", i), Platform: memplatform.PlatformName, Address: "mem://none"}
		if err := b.catalog.CreateConnection(ctx, &conn, ""); err != nil {
			t.Fatal(err)
		}
		repo := catalog.Repository{Name: fmt.Sprintf("r%04d", i), Path: fmt.Sprintf("/none/%d", i)}
		if err := b.catalog.CreateRepository(ctx, &repo); err != nil {
			t.Fatal(err)
		}
	}
	out, err := b.maintainInventory(ctx, catalog.Maintenance{}, time.Now())
	if want := fmt.Sprintf("of %d connections read", catalog.MaxLimit+1); !strings.Contains(out.text, want) {
		t.Errorf("inventory: %q, want %q, %v", out.text, want, err)
	}
	if rows, err := b.ownRepositories(ctx, &maintained{}); err != nil || len(rows) != catalog.MaxLimit+1 {
		t.Errorf("%d repositories, %v", len(rows), err)
	}
}
