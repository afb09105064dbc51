package output

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Column is one column of a table of T.
type Column[T any] struct {
	Header string
	Value  func(T) string
	Right  bool // numbers
	Wide   bool // only with -o wide
	State  bool // coloured by StateColour
}

const none = "-" // an empty cell, so that columns can be cut with awk

func writeTable[T any](w io.Writer, items []T, columns []Column[T], wide, colour bool) error {
	shown := make([]Column[T], 0, len(columns))
	for _, c := range columns {
		if wide || !c.Wide {
			shown = append(shown, c)
		}
	}
	rows := make([][]string, 1, len(items)+1)
	for _, c := range shown {
		rows[0] = append(rows[0], c.Header)
	}
	for _, item := range items {
		row := make([]string, len(shown))
		for i, c := range shown {
			row[i] = cell(c.Value(item))
		}
		rows = append(rows, row)
	}
	widths := make([]int, len(shown))
	for _, row := range rows {
		for i, s := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(s))
		}
	}
	var b strings.Builder
	for r, row := range rows {
		for i, s := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(s))
			last := i == len(row)-1
			text := s
			switch {
			case colour && r == 0:
				text = bold(s)
			case colour && shown[i].State:
				text = StateColour(s)
			}
			switch {
			case shown[i].Right:
				b.WriteString(pad + text)
			case last:
				b.WriteString(text)
			default:
				b.WriteString(text + pad)
			}
			if !last {
				b.WriteString("   ")
			}
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cell makes any text fit for one line of a table: names come from platforms and may hold anything.
func cell(s string) string {
	s = Printable(s)
	if s == "" {
		return none
	}
	return s
}

// Printable replaces control characters, so that a VM's name cannot move the cursor or change colours.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || (r >= 0x7f && r < 0xa0) || (r >= 0x202a && r <= 0x202e) || (r >= 0x2066 && r <= 0x2069) {
			return '\ufffd'
		}
		return r
	}, s)
}

// Short cuts a long word, as a recipient of 2,000 characters, to what tells it from others.
func Short(s string) string {
	const most = 64
	if runes := []rune(s); len(runes) > most {
		return string(runes[:24]) + "…" + string(runes[len(runes)-12:])
	}
	return s
}

// KeyState is what a table says of a key with that problem.
func KeyState(problem string) string {
	if problem != "" {
		return "suspect"
	}
	return "ok"
}

// Field is one line of a page about one object. An empty Name continues the field above; a Field with only a Name
// is a heading.
type Field struct {
	Name, Value string
	State       bool
}

// Lines is one field of many values, one a line.
func Lines(name string, values []string) []Field {
	var fields []Field
	for i, v := range values {
		f := Field{Value: v}
		if i == 0 {
			f.Name = name
		}
		fields = append(fields, f)
	}
	return fields
}

// Fields writes a page about one object: names in a column, values beside them; empty values are left out.
func (p Printer) Fields(w io.Writer, fields ...Field) error {
	width := 0
	for _, f := range fields {
		if f.Value != "" {
			width = max(width, utf8.RuneCountInString(f.Name))
		}
	}
	var b strings.Builder
	for _, f := range fields {
		if f.Value == "" {
			continue
		}
		value := Printable(f.Value)
		if f.State && p.Colour {
			value = StateColour(value)
		}
		label := f.Name
		if label != "" {
			label += ":"
		}
		pad := strings.Repeat(" ", width+1-utf8.RuneCountInString(label))
		b.WriteString(label + pad + "  " + value + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Section writes a heading and a table below it, or nothing where there are no items.
func Section[T any](p Printer, w io.Writer, heading string, items []T, columns []Column[T]) error {
	if len(items) == 0 {
		return nil
	}
	if p.Colour {
		heading = bold(heading)
	}
	if _, err := io.WriteString(w, "\n"+heading+"\n"); err != nil {
		return err
	}
	var b strings.Builder
	if err := writeTable(&b, items, columns, p.Format == Wide, p.Colour); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := io.WriteString(w, "  "+line); err != nil {
			return err
		}
	}
	return nil
}

func bold(s string) string { return "\x1b[1m" + s + "\x1b[0m" }

var stateColours = map[string]string{
	"succeeded": "32", "ok": "32", "online": "32", "connected": "32", "verified": "32", "active": "32", "yes": "32",
	"running": "36", "queued": "36", "verifying": "36",
	"warning": "33", "late": "33", "cancelled": "33", "unverified": "33", "never": "33", "degraded": "33",
	"failed": "31", "error": "31", "problem": "31", "unknown": "33", "unreachable": "31", "corrupt": "31", "damaged": "31", "missing": "31", "foreign": "31", "suspect": "31",
}

// StateColour paints a state green, cyan, yellow or red; unknown words stay as they are.
func StateColour(s string) string {
	if c, ok := stateColours[strings.ToLower(s)]; ok {
		return "\x1b[" + c + "m" + s + "\x1b[0m"
	}
	return s
}
