package policy

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	opFilter = "read filter"
	// maxDepth bounds the parentheses and nots around each other.
	maxDepth = 64
)

// ParseFilter reads a filter.
//
//	filter = and {"or" and}
//	and    = part {"and" part}
//	part   = "not" part | "(" filter ")" | "all" | test
//	test   = field ("=" | "!=" | "~" | "!~") value | field ["not"] "in" "(" value {"," value} ")"
//
// A value is a word of letters, digits and _ - . : / * ? @ + %, or anything between double quotes, in which \ goes before a quote and
// before itself. A value that no VM can have, such as a state of "running", is refused.
func ParseFilter(text string) (Filter, error) {
	f, err := StoredFilter(text)
	if err != nil {
		return Filter{}, err
	}
	if err := f.check(); err != nil {
		return Filter{}, err
	}
	return f, nil
}

// StoredFilter reads a filter that was taken before. It may ask for values that no VM can have.
func StoredFilter(text string) (Filter, error) {
	if len(text) > maxText {
		return Filter{}, syntax(opFilter, text[:maxText], maxText, "the end")
	}
	if !utf8.ValidString(text) {
		at := strings.IndexRune(strings.ToValidUTF8(text, string(utf8.RuneError)), utf8.RuneError)
		return Filter{}, syntax(opFilter, strings.ToValidUTF8(text, "?"), max(at, 0), "UTF-8")
	}
	p := filterParser{text: text}
	root, err := p.or(0)
	if err != nil {
		return Filter{}, err
	}
	if p.skip(); p.at < len(text) {
		return Filter{}, p.fail(`"and", "or" or the end`)
	}
	return Filter{text: text, root: root, strange: p.strange}, nil
}

// filterParser reads a filter from its left to its right; at is where the next token begins.
type filterParser struct {
	text    string
	at      int
	strange *SyntaxError // the first value that no VM can have
}

func (p *filterParser) fail(want string) error { return syntax(opFilter, p.text, p.at, want) }

func (p *filterParser) skip() {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
}

// sign takes a sign if it is next.
func (p *filterParser) sign(s string) bool {
	p.skip()
	if !strings.HasPrefix(p.text[p.at:], s) {
		return false
	}
	p.at += len(s)
	return true
}

func inWord(r rune) bool {
	return unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("_-.:/*?@+%", r)
}

// peekWord returns the word that is next, "" when something else is.
func (p *filterParser) peekWord() string {
	p.skip()
	rest := p.text[p.at:]
	if end := strings.IndexFunc(rest, func(r rune) bool { return !inWord(r) }); end >= 0 {
		return rest[:end]
	}
	return rest
}

// keyword takes a word if it is next.
func (p *filterParser) keyword(w string) bool {
	if !strings.EqualFold(p.peekWord(), w) {
		return false
	}
	p.at += len(w)
	return true
}

func (p *filterParser) or(depth int) (node, error) {
	return p.chain("or", depth, func() (node, error) {
		return p.chain("and", depth, func() (node, error) { return p.part(depth) })
	})
}

// chain reads what a word joins.
func (p *filterParser) chain(word string, depth int, read func() (node, error)) (node, error) {
	var parts []node
	for {
		part, err := read()
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
		if !p.keyword(word) {
			break
		}
	}
	if len(parts) == 1 {
		return parts[0], nil
	}
	return several{or: word == "or", of: parts}, nil
}

func (p *filterParser) part(depth int) (node, error) {
	if depth > maxDepth {
		return nil, p.fail("fewer parentheses and nots around each other")
	}
	switch {
	case p.keyword("all"):
		return all{}, nil
	case p.keyword("not"):
		inner, err := p.part(depth + 1)
		return not{inner}, err
	case p.sign("("):
		inner, err := p.or(depth + 1)
		if err != nil {
			return nil, err
		}
		if !p.sign(")") {
			return nil, p.fail(`"and", "or" or ")"`)
		}
		return inner, nil
	}
	return p.test()
}

func (p *filterParser) test() (node, error) {
	name := strings.ToLower(p.peekWord())
	if fields[name] == nil {
		return nil, p.fail(`"all", "not", "(" or one of ` + fieldNames())
	}
	p.at += len(name)
	negated := p.keyword("not")
	if p.keyword("in") {
		values, err := p.values(name)
		return negate(negated, test{field: name, values: values}), err
	}
	if negated {
		return nil, p.fail(`"in"`)
	}
	negated = p.sign("!")
	pattern := p.sign("~")
	if !pattern && !p.sign("=") {
		return nil, p.fail(`"=", "!=", "~", "!~" or "in" after ` + name)
	}
	value, err := p.valueOf(name, pattern)
	return negate(negated, test{field: name, pattern: pattern, values: []string{value}}), err
}

func negate(yes bool, n node) node {
	if yes {
		return not{n}
	}
	return n
}

func (p *filterParser) values(field string) ([]string, error) {
	if !p.sign("(") {
		return nil, p.fail(`"("`)
	}
	var out []string
	for {
		v, err := p.valueOf(field, false)
		if err != nil {
			return nil, err
		}
		if out = append(out, v); p.sign(",") {
			continue
		}
		if !p.sign(")") {
			return nil, p.fail(`"," or ")"`)
		}
		return out, nil
	}
}

// valueOf reads a value of a field, and notes one that no VM can have.
func (p *filterParser) valueOf(field string, pattern bool) (string, error) {
	p.skip()
	at := p.at
	v, err := p.value()
	if err == nil && p.strange == nil && !possible(field, pattern, v) {
		want := fmt.Sprintf("a value of %s (one of %s)", field, strings.Join(closed[field], ", "))
		p.strange = &SyntaxError{Text: p.text, At: at, Want: want, Got: strconv.Quote(v)}
	}
	return v, err
}

func (p *filterParser) value() (string, error) {
	if !p.sign(`"`) {
		w := p.peekWord()
		if w == "" {
			return "", p.fail("a value")
		}
		p.at += len(w)
		return w, nil
	}
	var b strings.Builder
	for p.at < len(p.text) {
		c := p.text[p.at]
		p.at++
		switch {
		case c == '"':
			return b.String(), nil
		case c == '\\':
			if p.at == len(p.text) || p.text[p.at] != '"' && p.text[p.at] != '\\' {
				return "", p.fail(`\" or \\`)
			}
			c = p.text[p.at]
			p.at++
		}
		b.WriteByte(c)
	}
	return "", p.fail(`the closing "`)
}
