package catalog

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A transaction of gorm's own is not alone on PostgreSQL: what it has read may change before it writes.
func TestTransactionsGoThroughOneDoor(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if name != "transaction.go" && !strings.HasSuffix(name, "_test.go") && strings.Contains(string(src), ".Transaction(") {
			t.Errorf("%s begins a transaction of its own; use Catalog.transaction", name)
		}
	}
}
