package policy

import (
	"errors"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

var web = VM{
	ID: "vm_1", Name: "web-01", Connection: "lab", ConnectionID: "conn_1", Platform: "ovirt", DataCenter: "dc", Cluster: "prod", Host: "h1",
	Folder: "/shop/front", State: "on", Tags: []string{"gold", "tier 1"}, Datastores: []string{"fast", "slow"},
}

func TestFilterMatch(t *testing.T) {
	tests := []struct {
		filter string
		want   bool
	}{
		{"all", true},
		{"not all", false},
		{"name = web-01", true},
		{"name = web", false},
		{"name = WEB-01", false},
		{"name ~ web-*", true},
		{"name ~ web-0?", true},
		{"name ~ web", false},
		{"name !~ db*", true},
		{"name != web-01", false},
		{"connection = lab and connection = conn_1", true},
		{"connection != lab", false},
		{"tag = gold", true},
		{`tag = "tier 1"`, true},
		{"tag != gold", false},
		{"tag != bronze", true},
		{"tag in (silver, gold)", true},
		{"tag not in (silver, gold)", false},
		{"NOT tag = bronze AND state = on", true},
		{"not (tag = bronze or state = on)", false},
		{"cluster = test or cluster = prod and host = h2", false},
		{"(cluster = test or cluster = prod) and host = h1", true},
		{"folder ~ /shop/*", true},
		{"folder = /shop", false},
		{"datastore = slow", true},
		{"state ~ o* and state !~ of? and state in (on, paused)", true},
		{"data_center = dc and platform = ovirt and id = vm_1", true},
		{`name = "web\"01"`, false},
	}
	for _, tt := range tests {
		f, err := ParseFilter(tt.filter)
		if err != nil {
			t.Errorf("%s: %v", tt.filter, err)
			continue
		}
		if got := f.Match(web); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.filter, got, tt.want)
		}
	}
	if (Filter{}).Match(web) {
		t.Error("the filter that says nothing selects a VM")
	}
}

func TestFilterErrors(t *testing.T) {
	tests := []struct{ filter, want string }{
		{"", `at character 1: expected "all", "not", "(" or one of cluster, connection, data_center, datastore, folder, host, id, label, name, platform, state, tag, got the end`},
		{"clustr = prod", `at character 1: expected "all", "not", "(" or one of cluster, connection, data_center, datastore, folder, host, id, label, name, platform, state, tag, got 'c'`},
		{"cluster prod", `at character 9: expected "=", "!=", "~", "!~" or "in" after cluster, got 'p'`},
		{"cluster =", "at character 10: expected a value, got the end"},
		{"cluster = prod tag = x", `at character 16: expected "and", "or" or the end, got 't'`},
		{"(cluster = prod", `at character 16: expected "and", "or" or ")", got the end`},
		{`name = "web`, `at character 12: expected the closing ", got the end`},
		{`name = "a\n"`, `at character 11: expected \" or \\, got 'n'`},
		{"tag in (a b)", `at character 11: expected "," or ")", got 'b'`},
		{"tag not = a", `at character 9: expected "in", got '='`},
		{"name = ü and ö", `at character 14: expected "all", "not", "(" or one of cluster, connection, data_center, datastore, folder, host, id, label, name, platform, state, tag, got 'ö'`},
		{strings.Repeat("(", 100), "at character 66: expected fewer parentheses and nots around each other, got '('"},
		{"name = a\xff", "at character 9: expected UTF-8, got '?'"},
		{"state = foo", `at character 9: expected a value of state (one of on, off, paused, other), got "foo"`},
		{"name = a or STATE != ON", `at character 22: expected a value of state (one of on, off, paused, other), got "ON"`},
		{`state not in (on, "run ning")`, `at character 19: expected a value of state (one of on, off, paused, other), got "run ning"`},
		{"state ~ f*", `at character 9: expected a value of state (one of on, off, paused, other), got "f*"`},
		{"state = o*", `at character 9: expected a value of state (one of on, off, paused, other), got "o*"`},
		{"not (platform = kmv or state = x)", `at character 17: expected a value of platform (one of kvm, ovirt), got "kmv"`},
	}
	for _, tt := range tests {
		_, err := ParseFilter(tt.filter)
		s, ok := errors.AsType[*SyntaxError](err)
		if !ok || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%q: got error %v", tt.filter, err)
			continue
		}
		if s.Error() != tt.want {
			t.Errorf("%q: got  %s\nwant %s", tt.filter, s.Error(), tt.want)
		}
	}
}

func TestStoredFilterMayAskForWhatNoVMHas(t *testing.T) {
	f, err := StoredFilter("state = running or name = web-01")
	if err != nil || !f.Match(web) {
		t.Errorf("filter = %v, %v", f, err)
	}
	spec := Spec{Filter: "state = running", Schedule: "daily"}
	if _, err := Understand(spec); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a new policy: got error %v", err)
	}
	if r, err := Stored(spec); err != nil || r.Filter.Match(web) {
		t.Errorf("a stored policy: %+v, %v", r.Filter, err)
	}
}

func TestGlobIsNotExponential(t *testing.T) {
	pattern := strings.Repeat("*a", 1000) + "b"
	if glob(pattern, strings.Repeat("a", 2000)) { // a matcher that tries every way does not come back from here
		t.Error("it matches")
	}
}

// FuzzFilter reads texts; what is accepted means the same in its canonical form, and that is its own.
func FuzzFilter(f *testing.F) {
	for _, text := range []string{
		`cluster = prod and not tag in (scratch, "no backup")`, `(name ~ web-* or name !~ "db?") and state != off`, "all", "not not all", `tag not in (a)`,
		`name = "q\"\\"`, "folder ~ /a/*", "((all))", "name = 4294967295",
	} {
		f.Add(text)
		for p := range boundary.Text([]byte(text)) {
			f.Add(string(p))
		}
	}
	vms := []VM{web, {}, {Name: "db1", State: "off", Tags: []string{"scratch"}}, {Folder: "/a/b", Cluster: "prod"}}
	f.Fuzz(func(t *testing.T, text string) {
		filter, err := ParseFilter(text)
		if err != nil {
			if fault.KindOf(err) != fault.Invalid {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := ParseFilter(filter.Canonical())
		if err != nil {
			if len(filter.Canonical()) > maxText || strings.Contains(err.Error(), "fewer parentheses") {
				return // the canonical form is longer, and has parentheses that the text had not
			}
			t.Fatalf("%q is not a filter: %v", filter.Canonical(), err)
		}
		if again.Canonical() != filter.Canonical() {
			t.Errorf("%q becomes %q", filter.Canonical(), again.Canonical())
		}
		for _, v := range vms {
			if again.Match(v) != filter.Match(v) {
				t.Errorf("%q and %q differ for %+v", text, again, v)
			}
		}
	})
}
