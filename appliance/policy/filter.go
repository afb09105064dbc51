package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// VM is what a filter can look at. Fields with several values match when one of them does; see hypervisors.VM for what they are.
type VM struct {
	ID           string
	Name         string
	Connection   string // its name
	ConnectionID string
	Platform     string
	DataCenter   string
	Cluster      string
	Host         string
	Folder       string
	State        string // on, off, paused or other
	Tags         []string
	Labels       []string
	Datastores   []string
	// Unprotectable says why the VM cannot be backed up at all, whatever its disks, and UnprotectableDisks why none of its disks
	// can, which may be so for a while only. No filter asks for them.
	Unprotectable      string
	UnprotectableDisks string
}

// fields are the words that a filter may ask for, and what a VM has of each.
var fields = map[string]func(*VM) []string{
	"id":          func(v *VM) []string { return []string{v.ID} },
	"name":        func(v *VM) []string { return []string{v.Name} },
	"connection":  func(v *VM) []string { return []string{v.Connection, v.ConnectionID} },
	"platform":    func(v *VM) []string { return []string{v.Platform} },
	"data_center": func(v *VM) []string { return []string{v.DataCenter} },
	"cluster":     func(v *VM) []string { return []string{v.Cluster} },
	"host":        func(v *VM) []string { return []string{v.Host} },
	"folder":      func(v *VM) []string { return []string{v.Folder} },
	"state":       func(v *VM) []string { return []string{v.State} },
	"tag":         func(v *VM) []string { return v.Tags },
	"label":       func(v *VM) []string { return v.Labels },
	"datastore":   func(v *VM) []string { return v.Datastores },
}

// closed has the fields of which each VM has one of a few values.
var closed = map[string][]string{
	"state":    texts(hypervisors.Powers),
	"platform": texts(hypervisors.Platforms),
}

func texts[T ~string](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = string(v)
	}
	return out
}

// possible reports whether a VM can have a value of a field, or one that a pattern matches.
func possible(field string, pattern bool, want string) bool {
	values, ok := closed[field]
	return !ok || slices.ContainsFunc(values, func(have string) bool { return have == want || pattern && glob(want, have) })
}

// fieldNames returns the words in their order, for messages.
func fieldNames() string {
	names := make([]string, 0, len(fields))
	for n := range fields {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// Filter selects VMs: `cluster = prod and not tag = scratch`. The zero value selects none.
type Filter struct {
	text    string
	root    node
	strange *SyntaxError // the first value that no VM can have
}

// String returns the filter as it was written.
func (f Filter) String() string { return f.text }

// check refuses a filter that asks for what no VM can have.
func (f Filter) check() error {
	if f.strange == nil {
		return nil
	}
	return fault.Wrap(fault.Invalid, opFilter, strconv.Quote(f.text), f.strange).Explain(
		"No VM can have that value, so that the filter would not select what it seems to.",
		"Name one of the values that there are; docs/policies.md lists them.")
}

// Match reports whether the filter selects a VM.
func (f Filter) Match(v VM) bool { return f.root != nil && f.root.match(&v) }

// Canonical returns the filter in the one way that says which parts belong together.
func (f Filter) Canonical() string {
	if f.root == nil {
		return ""
	}
	return f.root.String()
}

type node interface {
	match(v *VM) bool
	String() string
}

type all struct{}

func (all) match(*VM) bool { return true }

func (all) String() string { return "all" }

type not struct{ of node }

func (n not) match(v *VM) bool { return !n.of.match(v) }

func (n not) String() string { return "not " + n.of.String() }

// several is a chain of "and" or of "or".
type several struct {
	or bool
	of []node
}

func (n several) match(v *VM) bool {
	for _, part := range n.of {
		if part.match(v) == n.or {
			return n.or
		}
	}
	return !n.or
}

func (n several) String() string {
	word := " and "
	if n.or {
		word = " or "
	}
	parts := make([]string, len(n.of))
	for i, part := range n.of {
		parts[i] = part.String()
	}
	return "(" + strings.Join(parts, word) + ")"
}

// test asks one field for some values, of which one is enough.
type test struct {
	field   string
	pattern bool // values have * and ?
	values  []string
}

func (n test) match(v *VM) bool {
	return slices.ContainsFunc(fields[n.field](v), func(have string) bool {
		return slices.ContainsFunc(n.values, func(want string) bool {
			if n.pattern {
				return glob(want, have)
			}
			return want == have
		})
	})
}

func (n test) String() string {
	quoted := make([]string, len(n.values))
	for i, v := range n.values {
		quoted[i] = quote(v)
	}
	switch {
	case n.pattern:
		return fmt.Sprintf("%s ~ %s", n.field, quoted[0])
	case len(quoted) == 1:
		return fmt.Sprintf("%s = %s", n.field, quoted[0])
	}
	return fmt.Sprintf("%s in (%s)", n.field, strings.Join(quoted, ", "))
}

func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// glob matches a pattern of * (any characters, also none) and ? (one). It needs time in proportion to the product of the
// lengths, whatever the pattern.
func glob(pattern, s string) bool {
	p, text := []rune(pattern), []rune(s)
	star, mark := -1, 0
	i, j := 0, 0
	for j < len(text) {
		switch {
		case i < len(p) && p[i] == '*':
			star, mark = i, j
			i++
		case i < len(p) && (p[i] == '?' || p[i] == text[j]):
			i++
			j++
		case star >= 0:
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(p) && p[i] == '*' {
		i++
	}
	return i == len(p)
}

// Of returns the filter that selects one VM by its id.
func Of(vmID string) Filter {
	f, err := ParseFilter("id = " + quote(vmID))
	if err != nil {
		return Filter{} // selects none
	}
	return f
}

// describe says which of a VM's properties made a filter select it, in words.
func (f Filter) describe() string { return "its filter selects the VM: " + strconv.Quote(f.text) }
