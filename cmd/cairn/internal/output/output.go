// Package output renders what the command line says: tables, JSON and YAML on standard output, progress on standard
// error.
//
// It knows nothing of Cairn's objects beyond columns and values, and asks nobody anything. Its one invariant: what a
// program may parse (json, yaml, name) never depends on the terminal, the locale or the clock.
package output

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Format is the value of -o.
type Format string

// The formats.
const (
	Table Format = "table"
	Wide  Format = "wide"
	JSON  Format = "json"
	YAML  Format = "yaml"
	Name  Format = "name"
)

var formats = []Format{Table, Wide, JSON, YAML, Name}

// Formats returns the names of all formats in the order that help shows them.
func Formats() []string {
	names := make([]string, len(formats))
	for i, f := range formats {
		names[i] = string(f)
	}
	return names
}

// ParseFormat accepts the name of a format.
func ParseFormat(s string) (Format, error) {
	if slices.Contains(formats, Format(s)) {
		return Format(s), nil
	}
	return "", fault.New(fault.Invalid, "read flags", "", "unknown output format %q", s).
		Explain("", "Use one of "+strings.Join(Formats(), ", ")+".")
}

// Human reports whether the format is for people.
func (f Format) Human() bool { return f == Table || f == Wide }

// Printer writes data to one stream in one format.
type Printer struct {
	Out    io.Writer
	Format Format
	Colour bool
}

// Value writes v as JSON or YAML; for any other format it calls human.
func (p Printer) Value(v any, human func(io.Writer) error) error {
	switch p.Format {
	case JSON:
		return writeJSON(p.Out, v)
	case YAML:
		return writeYAML(p.Out, v)
	}
	return human(p.Out)
}

// Line writes v as one compact JSON document per line, or as a YAML document, for streams of values.
func (p Printer) Line(v any, human func(io.Writer) error) error {
	switch p.Format {
	case JSON:
		b, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("write JSON: %w", err)
		}
		_, err = fmt.Fprintf(p.Out, "%s\n", b)
		return err
	case YAML:
		if _, err := io.WriteString(p.Out, "---\n"); err != nil {
			return err
		}
		return writeYAML(p.Out, v)
	}
	return human(p.Out)
}

// List writes items: JSON and YAML get the items themselves as an array, name gets one name a line, and people get
// the table, or the sentence empty where there is nothing to show.
func List[T any](p Printer, items []T, name func(T) string, empty string, columns []Column[T]) error {
	if p.Format == Name {
		for _, item := range items {
			if _, err := fmt.Fprintln(p.Out, name(item)); err != nil {
				return err
			}
		}
		return nil
	}
	if items == nil {
		items = []T{}
	}
	return p.Value(items, func(w io.Writer) error {
		if len(items) == 0 {
			_, err := fmt.Fprintln(w, empty)
			return err
		}
		return writeTable(w, items, columns, p.Format == Wide, p.Colour)
	})
}

func writeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// writeYAML goes through JSON, so that both formats have the same names in the same order and large integers stay
// exact.
func writeYAML(w io.Writer, v any) error {
	var b bytes.Buffer
	if err := writeJSON(&b, v); err != nil {
		return err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b.Bytes(), &doc); err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	block(&doc)
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	if err := e.Encode(&doc); err != nil {
		return fmt.Errorf("write YAML: %w", err)
	}
	return e.Close()
}

// ambiguous are strings that YAML 1.1 readers, which are still many, take for booleans or base-60 numbers.
var ambiguous = regexp.MustCompile(`^(?i:y|n|yes|no|on|off)$|^[-+]?[0-9][0-9_]*:[0-9:.]*$`)

// block turns JSON's flow style into YAML's own; strings that YAML would read as something else keep their quotes.
func block(n *yaml.Node) {
	empty := len(n.Content) == 0
	if n.Kind != yaml.ScalarNode && !empty {
		n.Style = 0
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!str" && !ambiguous.MatchString(n.Value) {
		n.Style = 0
	}
	for _, c := range n.Content {
		block(c)
	}
}
