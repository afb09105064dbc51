package lvm2

import (
	"fmt"
	"slices"
	"strconv"
)

// section is a group of a text: keys with values and further sections. Its maps are made when they are needed.
type section struct {
	values   map[string]any // int64, string, []any of those
	sections map[string]*section
	order    []string // names of sections, as they stand in the text
}

const maxNesting = 16 // lvm2's own texts nest five deep

// parser reads lvm2's text: `name { … }`, `name = value`, values being numbers, "strings" and [lists], and comments
// from # to the end of the line.
type parser struct {
	p  []byte
	at int
}

// parseText reads a whole text. Bytes of zero at its end belong to the padding of the metadata area.
func parseText(p []byte) (*section, error) {
	for len(p) > 0 && p[len(p)-1] == 0 {
		p = p[:len(p)-1]
	}
	t := &parser{p: p}
	s := &section{}
	if err := t.body(s, 0); err != nil {
		return nil, err
	}
	if t.at < len(t.p) {
		return nil, t.fail("a brace that closes nothing")
	}
	return s, nil
}

func (t *parser) fail(format string, args ...any) error {
	return fmt.Errorf("metadata text at %d: %s", t.at, fmt.Sprintf(format, args...))
}

// next skips spaces and comments and returns the byte there, 0 at the end.
func (t *parser) next() byte {
	for t.at < len(t.p) {
		switch c := t.p[t.at]; c {
		case ' ', '\t', '\n', '\r':
			t.at++
		case '#':
			for t.at < len(t.p) && t.p[t.at] != '\n' {
				t.at++
			}
		default:
			return c
		}
	}
	return 0
}

// body reads entries up to a closing brace, which it leaves, or the end.
func (t *parser) body(s *section, depth int) error {
	if depth > maxNesting {
		return t.fail("nested too deep")
	}
	for {
		c := t.next()
		if c == '}' || c == 0 && t.at >= len(t.p) {
			return nil
		}
		name, err := t.name(c)
		if err != nil {
			return err
		}
		if s.values[name] != nil || s.sections[name] != nil {
			return t.fail("%q stands twice", name)
		}
		switch t.next() {
		case '=':
			t.at++
			v, err := t.value(true)
			if err != nil {
				return err
			}
			if s.values == nil {
				s.values = map[string]any{}
			}
			s.values[name] = v
		case '{':
			t.at++
			inner := &section{}
			if err := t.body(inner, depth+1); err != nil {
				return err
			}
			if t.next() != '}' {
				return t.fail("section %q does not end", name)
			}
			t.at++
			if s.sections == nil {
				s.sections = map[string]*section{}
			}
			s.sections[name] = inner
			s.order = append(s.order, name)
		default:
			return t.fail("neither a value nor a section after %q", name)
		}
	}
}

// name reads the name of an entry, bare or quoted.
func (t *parser) name(c byte) (string, error) {
	if c == '"' {
		return t.quoted()
	}
	from := t.at
	for t.at < len(t.p) && isName(t.p[t.at]) {
		t.at++
	}
	if t.at == from {
		return "", t.fail("%q where a name is expected", c)
	}
	return string(t.p[from:t.at]), nil
}

func isName(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.' || c == '+' || c == '/'
}

func (t *parser) value(lists bool) (any, error) {
	c := t.next()
	switch {
	case c == '"':
		return t.quoted()
	case c == '[' && lists:
		t.at++
		return t.list()
	case c >= '0' && c <= '9' || c == '-' || c == '+' || c == '.':
		from := t.at
		for t.at < len(t.p) && isName(t.p[t.at]) {
			t.at++
		}
		word := string(t.p[from:t.at])
		if n, err := strconv.ParseInt(word, 10, 64); err == nil {
			return n, nil
		}
		if _, err := strconv.ParseFloat(word, 64); err == nil {
			return word, nil // nothing we use is a fraction
		}
		return nil, t.fail("%q is no number", word)
	}
	return nil, t.fail("%q where a value is expected", c)
}

func (t *parser) list() ([]any, error) {
	out := []any{}
	for {
		if t.next() == ']' {
			t.at++
			return out, nil
		}
		v, err := t.value(false)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
		switch t.next() {
		case ',':
			t.at++
		case ']':
		default:
			return nil, t.fail("a list does not end")
		}
	}
}

// quoted reads a string in double quotes; a backslash takes the next byte as it is.
func (t *parser) quoted() (string, error) {
	var out []byte
	for t.at++; t.at < len(t.p); t.at++ {
		switch c := t.p[t.at]; c {
		case '"':
			t.at++
			return string(out), nil
		case '\\':
			if t.at++; t.at >= len(t.p) {
				return "", t.fail("a string does not end")
			}
			out = append(out, t.p[t.at])
		default:
			out = append(out, c)
		}
	}
	return "", t.fail("a string does not end")
}

// text returns a string value, "" where there is none.
func (s *section) text(key string) string {
	v, _ := s.values[key].(string)
	return v
}

// number returns a value that must be a number within bounds.
func (s *section) number(key string, low, high int64) (int64, error) {
	n, ok := s.values[key].(int64)
	if !ok || n < low || n > high {
		return 0, fmt.Errorf("%s is %v, not a number from %d to %d", key, s.values[key], low, high)
	}
	return n, nil
}

// words returns a list of strings; a single string counts as a list of one.
func (s *section) words(key string) []string {
	if one, ok := s.values[key].(string); ok {
		return []string{one}
	}
	list, _ := s.values[key].([]any)
	var out []string
	for _, v := range list {
		if w, ok := v.(string); ok {
			out = append(out, w)
		}
	}
	return out
}

// tags returns the tags in the order of the alphabet: lvm2 writes them in any.
func (s *section) tags() []string {
	out := s.words("tags")
	slices.Sort(out)
	return out
}

// child returns a section, an empty one where there is none.
func (s *section) child(name string) *section {
	if c := s.sections[name]; c != nil {
		return c
	}
	return &section{}
}
