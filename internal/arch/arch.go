// Package arch holds the import rules of ARCHITECTURE.md as data and checks a tree against them.
//
// It is not a linter for style. Its invariant: data flows one way. It parses the files itself, because a test
// that shells out to `go list` is cached by `go test` and misses violations.
package arch

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Module is the path of this module.
const Module = "github.com/cairn-backup/cairn"

// rule says what the packages below a folder may import from this module. The longest matching folder counts.
type rule struct {
	folder string
	may    []string // folders; a trailing "=" means that package only, not what is below it
}

var rules = []rule{
	{"internal", []string{"internal"}},
	{"api", []string{"api", "internal"}},
	{"hypervisors", []string{"hypervisors=", "internal"}},
	{"hypervisors/all", []string{"hypervisors", "internal"}},
	{"hypervisors/hypervisortest", []string{"hypervisors=", "internal"}},
	{"hypervisors/kvm", []string{"hypervisors=", "hypervisors/kvm", "internal"}},
	{"hypervisors/ovirt", []string{"hypervisors=", "hypervisors/ovirt", "internal"}},
	{"hypervisors/ovirt/internal", []string{"hypervisors/ovirt/internal", "internal"}},
	{"store", []string{"store", "internal"}},
	{"store/remote", []string{"store", "api/mover", "internal"}},
	{"datamover", []string{"datamover", "hypervisors=", "store", "api", "internal"}},
	{"appliance", []string{"appliance", "hypervisors=", "store", "datamover", "api", "webui", "internal"}},
	{"cmd/cairn", []string{"cmd/cairn", "api", "store", "internal"}},
	{"cmd/cairnd", []string{"appliance", "hypervisors", "datamover", "internal"}},
	{"cmd/cairn-mover", []string{"datamover", "api", "internal"}},
	{"cmd/cairn-lab", []string{"lab", "store", "internal"}},
	{"images", []string{"images", "internal"}},
	{"lab", []string{"lab", "images", "appliance", "hypervisors", "store", "datamover", "api", "internal"}},
}

// homes names the only folders that may import a library.
var homes = map[string][]string{
	"gorm.io/":                            {"appliance/catalog"},
	"github.com/glebarez/":                {"appliance/catalog"},
	"github.com/jackc/pgx":                {"appliance/catalog"},
	"github.com/riverqueue/":              {"appliance/jobs"},
	"github.com/labstack/echo":            {"appliance/httpapi", "api"},
	"libvirt.org/":                        {"hypervisors/kvm"},
	"github.com/digitalocean/":            {"hypervisors/kvm"},
	"github.com/cockroachdb/pebble":       {"store"},
	"filippo.io/age":                      {"store"},
	"rsc.io/qr":                           {"store"},
	"github.com/klauspost/reedsolomon":    {"store/erasure"},
	"github.com/hanwen/go-fuse":           {"store/campaign"},
	"github.com/vmware/govmomi":           {"hypervisors/vsphere", "lab"},
	"github.com/ovirt/go-ovirt":           {"hypervisors/ovirt", "lab/ovirtsim"},
	"github.com/spf13/cobra":              {"cmd"},
	"github.com/prometheus/client_golang": {"appliance/metrics"},
	"google.golang.org/grpc":              {"api/mover", "appliance/fleet", "appliance/server", "datamover/control", "datamover/program", "store/remote"},
	"google.golang.org/protobuf":          {"api/mover", "appliance/fleet", "datamover/control", "datamover/program", "store/remote"},
	"github.com/cairn-backup/cairn/lab":   {"lab", "cmd/cairn-lab"},
	"github.com/cairn-backup/cairn/cmd/":  {"cmd"},
	"github.com/cairn-backup/cairn/webui": {"appliance/httpapi"},
}

// Check returns every violation below root, one line each, and the number of files it read.
func Check(root string) (violations []string, files int, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "node_modules" || isModule(path)) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		files++
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		v, err := checkFile(path, filepath.ToSlash(rel))
		violations = append(violations, v...)
		return err
	})
	return violations, files, err
}

func isModule(dir string) bool {
	m, _ := filepath.Glob(filepath.Join(dir, "go.mod"))
	return len(m) > 0
}

func checkFile(path, rel string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", rel, err)
	}
	folder := filepath.ToSlash(filepath.Dir(rel))
	test := strings.HasSuffix(rel, "_test.go")
	var out []string
	for _, spec := range f.Imports {
		imported, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("parse %s: %w", rel, err)
		}
		if why := forbidden(folder, imported, test); why != "" {
			out = append(out, fmt.Sprintf("%s imports %s: %s", rel, imported, why))
		}
	}
	return out, nil
}

// forbidden says why a file in folder may not import a package; empty means it may.
func forbidden(folder, imported string, test bool) string {
	for prefix, allowed := range homes {
		if !strings.HasPrefix(imported, prefix) || slices.ContainsFunc(allowed, func(a string) bool { return below(folder, a) }) {
			continue
		}
		if test && prefix == Module+"/lab" {
			continue
		}
		return "its only home is " + strings.Join(allowed, ", ")
	}
	target, ours := strings.CutPrefix(imported, Module+"/")
	if !ours || test {
		return ""
	}
	r, found := ruleFor(folder)
	if !found {
		return "no import rule covers " + folder
	}
	for _, may := range r.may {
		if only, exact := strings.CutSuffix(may, "="); exact && target == only || !exact && below(target, may) {
			return ""
		}
	}
	return r.folder + " may import only " + strings.Join(r.may, ", ")
}

func ruleFor(folder string) (best rule, found bool) {
	for _, r := range rules {
		if below(folder, r.folder) && len(r.folder) > len(best.folder) {
			best, found = r, true
		}
	}
	return best, found
}

func below(folder, parent string) bool {
	return folder == parent || strings.HasPrefix(folder, parent+"/")
}
