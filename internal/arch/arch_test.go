package arch

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTreeKeepsTheRules(t *testing.T) {
	violations, files, err := Check("../..")
	if err != nil {
		t.Fatal(err)
	}
	if files < 20 {
		t.Fatalf("only %d files were read: is this the top of the tree?", files)
	}
	for _, v := range violations {
		t.Error(v)
	}
}

func TestPlantedViolationsAreFound(t *testing.T) {
	tests := []struct {
		name, file, imports string
		want                bool
	}{
		{"store knows no VMs", "store/x.go", Module + "/hypervisors", true},
		{"driver imports no other driver", "hypervisors/kvm/x.go", Module + "/hypervisors/all", true},
		{"mover sees root types only", "datamover/transfer/x.go", Module + "/hypervisors/kvm", true},
		{"mover sees root types", "datamover/transfer/x.go", Module + "/hypervisors", false},
		{"gorm has one home", "appliance/protect/x.go", "gorm.io/gorm", true},
		{"gorm at home", "appliance/catalog/x.go", "gorm.io/gorm", false},
		{"echo has one home", "store/x.go", "github.com/labstack/echo/v4", true},
		{"nothing imports lab", "appliance/server/x.go", Module + "/lab/kvmlab", true},
		{"tests may import lab", "appliance/server/x_test.go", Module + "/lab/kvmlab", false},
		{"internal stands alone", "internal/x/x.go", Module + "/store", true},
		{"unknown folder", "misc/x.go", Module + "/store", true},
		{"prefix is not a parent", "storefront/x.go", Module + "/internal/fault", true},
		{"own package", "store/pack/x.go", Module + "/store/blob", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, tt.file)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte("package x\nimport _ \""+tt.imports+"\"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			violations, files, err := Check(root)
			if err != nil || files != 1 {
				t.Fatalf("Check = %d files, %v", files, err)
			}
			if got := len(violations) > 0; got != tt.want {
				t.Errorf("violation found = %v, want %v: %s", got, tt.want, strings.Join(violations, "; "))
			}
		})
	}
}

// Every package says what it is in a comment that starts with its name.
func TestPackagesHaveComments(t *testing.T) {
	missing, err := packagesWithoutComment("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range missing {
		t.Errorf("%s has no package comment", m)
	}
}
