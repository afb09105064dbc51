package ovirtsim

import (
	"slices"
	"strconv"
	"strings"
)

// query is a search expression: conditions, then an order, then a page.
type query struct {
	any        [][]condition // or of and
	sortBy     string
	descending bool
	page       int // from 1; 0 is none
	sensitive  bool
}

// condition compares a field; "" is every field, by a word of a free text.
type condition struct{ field, op, value string }

// severities are in ascending order.
var severities = []string{"normal", "warning", "error", "alert"}

// tokens splits an expression: words, quoted words, and operators.
func tokens(s string) (out []string, err error) {
	const operators = "=!<>"
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == ' ' || c == '\t':
			i++
		case c == '"':
			end := strings.IndexByte(s[i+1:], '"')
			if end < 0 {
				return nil, badRequest("Search query syntax error: a quotation mark is not closed")
			}
			out = append(out, s[i:i+end+2])
			i += end + 2
		case strings.IndexByte(operators, c) >= 0:
			n := 1
			if i+1 < len(s) && s[i+1] == '=' && c != '=' {
				n = 2
			}
			out = append(out, s[i:i+n])
			i += n
		default:
			end := strings.IndexAny(s[i:], " \t\""+operators)
			if end < 0 {
				end = len(s) - i
			}
			out = append(out, s[i:i+end])
			i += end
		}
	}
	return out, nil
}

func parseSearch(s string, sensitive bool) (*query, error) {
	q := &query{sensitive: sensitive}
	words, err := tokens(s)
	if err != nil {
		return nil, err
	}
	if words, err = q.parseConditions(words); err != nil {
		return nil, err
	}
	if len(words) > 0 && strings.EqualFold(words[0], "sortby") {
		if words, err = q.parseOrder(words[1:]); err != nil {
			return nil, err
		}
	}
	if len(words) == 2 && strings.EqualFold(words[0], "page") {
		if q.page, err = strconv.Atoi(words[1]); err != nil || q.page < 1 {
			return nil, badRequest("Search query syntax error: no page %q", words[1])
		}
		words = nil
	}
	if len(words) > 0 {
		return nil, badRequest("Search query syntax error at %q", words[0])
	}
	return q, nil
}

func keyword(w string) bool {
	return slices.ContainsFunc([]string{"sortby", "page", "and", "or"}, func(k string) bool { return strings.EqualFold(k, w) })
}

func operator(w string) bool { return slices.Contains([]string{"=", "!=", "<", ">", "<=", ">="}, w) }

func unquote(w string) string { return strings.TrimSuffix(strings.TrimPrefix(w, `"`), `"`) }

func (q *query) parseConditions(words []string) ([]string, error) {
	for joined := true; len(words) > 0; {
		switch w := strings.ToLower(words[0]); {
		case w == "and" || w == "or":
			if joined {
				return nil, badRequest("Search query syntax error at %q", words[0])
			}
			if w == "or" {
				q.any = append(q.any, nil)
			}
			joined, words = true, words[1:]
			continue
		case keyword(w):
			return words, nil
		case operator(w):
			return nil, badRequest("Search query syntax error at %q", words[0])
		}
		cond := condition{"", "=", unquote(words[0])}
		words = words[1:]
		if len(words) > 0 && operator(words[0]) {
			if len(words) < 2 || operator(words[1]) {
				return nil, badRequest("Search query syntax error: %s has no value", cond.value)
			}
			cond = condition{strings.ToLower(cond.value), words[0], unquote(words[1])}
			words = words[2:]
		}
		if len(q.any) == 0 {
			q.any = append(q.any, nil)
		}
		last := len(q.any) - 1
		q.any[last] = append(q.any[last], cond)
		joined = false
	}
	return words, nil
}

func (q *query) parseOrder(words []string) ([]string, error) {
	if len(words) == 0 || keyword(words[0]) {
		return nil, badRequest("Search query syntax error: sortby has no field")
	}
	q.sortBy, words = strings.ToLower(words[0]), words[1:]
	if len(words) > 0 && (strings.EqualFold(words[0], "asc") || strings.EqualFold(words[0], "desc")) {
		q.descending, words = strings.EqualFold(words[0], "desc"), words[1:]
	}
	return words, nil
}

func (q *query) matches(r *row) (bool, error) {
	if len(q.any) == 0 {
		return true, nil
	}
	result := false
	for _, all := range q.any {
		fits := true
		for _, c := range all {
			yes, err := q.meets(r, c)
			if err != nil {
				return false, err
			}
			fits = fits && yes
		}
		result = result || fits
	}
	return result, nil
}

func (q *query) meets(r *row, c condition) (bool, error) {
	if c.field == "" {
		for _, values := range r.fields {
			if slices.ContainsFunc(values, func(v string) bool { return q.like(v, "*"+c.value+"*") }) {
				return true, nil
			}
		}
		return false, nil
	}
	values, known := r.fields[c.field]
	if !known {
		return false, badRequest("Search query syntax error: there is no field %s", c.field)
	}
	equal := slices.ContainsFunc(values, func(v string) bool { return q.like(v, c.value) })
	switch c.op {
	case "=":
		return equal, nil
	case "!=":
		return !equal, nil
	}
	return slices.ContainsFunc(values, func(v string) bool { return ordered(v, c.op, c.value) }), nil
}

func ordered(v, op, than string) bool {
	o := compareValues(v, than)
	if i, j := slices.Index(severities, v), slices.Index(severities, than); i >= 0 && j >= 0 {
		o = i - j
	}
	switch op {
	case "<":
		return o < 0
	case ">":
		return o > 0
	case "<=":
		return o <= 0
	}
	return o >= 0
}

// like compares a value with a pattern in which "*" stands for any text.
func (q *query) like(v, pattern string) bool {
	if !q.sensitive {
		v, pattern = strings.ToLower(v), strings.ToLower(pattern)
	}
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return v == pattern
	}
	rest, ok := strings.CutPrefix(v, parts[0])
	if !ok {
		return false
	}
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, p)
		if i < 0 {
			return false
		}
		rest = rest[i+len(p):]
	}
	return strings.HasSuffix(rest, parts[len(parts)-1])
}
