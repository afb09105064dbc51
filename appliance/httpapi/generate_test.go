package httpapi

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"net/url"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/api"
)

// Generated is a request that was made from the document.
type Generated struct {
	Operation, Why  string
	Method, Path    string // with the query
	Header          map[string]string
	Body            []byte
	Invalid         bool // the document does not allow it
	Starts, Streams bool
}

// generator makes requests of the document. Names of files stay below dir.
type generator struct {
	c   *contract
	r   *rand.Rand
	dir string
	ids map[string]string // what is there, by the path parameter
}

// Generate makes, for each operation, requests that the document allows, some at its bounds, and requests that it does
// not allow. Those that remove something come last.
func Generate(seed uint64, dir string, ids map[string]string) ([]Generated, error) {
	c, err := loadContract(api.Document)
	if err != nil {
		return nil, err
	}
	g := &generator{c: c, r: rand.New(rand.NewPCG(seed, 7)), dir: dir, ids: ids}
	var out []Generated
	for _, method := range []string{"get", "post", "put", "patch", "delete"} {
		for _, path := range slices.Sorted(maps.Keys(c.object("/paths"))) {
			if at := "/paths/" + escapePointer(path) + "/" + method; c.object(at) != nil {
				out = append(out, g.operation(at, method, path)...)
			}
		}
	}
	return out, nil
}

// example is a value that a schema allows or not, and why it was made.
type example struct {
	v       any
	why     string
	invalid bool
}

func (g *generator) operation(at, method, path string) []Generated {
	op := g.c.operations[routeKey(strings.ToUpper(method), api.BasePath+path)]
	base := Generated{
		Operation: op.id, Why: "valid", Method: strings.ToUpper(method), Path: g.fill(path), Header: map[string]string{},
		Starts: op.starts, Streams: op.id == "streamEvents",
	}
	if method == "delete" || method == "patch" || method == "put" {
		base.Header[headerIfMatch] = "*"
	}
	schema := at + "/requestBody/content/application~1json/schema"
	if op.body != nil {
		base.Header["Content-Type"] = "application/json"
		base.Body = g.json(g.value(schema, "", 0))
	}
	out := []Generated{base}
	add := func(why string, invalid bool, change func(*Generated)) {
		next := base
		next.Header = maps.Clone(base.Header)
		next.Why, next.Invalid = why, invalid
		change(&next)
		out = append(out, next)
	}
	g.strangeIDs(path, add)
	g.parameters(at, op, add)
	g.bodies(op, schema, add)
	if method == "delete" { // what there is to delete, only at the end
		out = append(out[1:], out[0])
	}
	return out
}

// fill puts ids of what is there into a path.
func (g *generator) fill(path string) string {
	for name, id := range g.ids {
		path = strings.ReplaceAll(path, "{"+name+"}", id)
	}
	return path
}

type adder = func(why string, invalid bool, change func(*Generated))

var strange = []string{
	"nothing_1", strings.Repeat("x", 64), strings.Repeat("x", 65), strings.Repeat("y", 4000), "\x00", "..", "a/b", "ü", "\xff\xfe", "' OR 1=1 --", "%", "*", " ",
	"\u202e", "{vm_id}", "vm_\n", "null",
}

// strangeIDs asks for what is not there; for changes that makes sense whatever their body.
func (g *generator) strangeIDs(path string, add adder) {
	parts := strings.Split(path, "/")
	for i, part := range parts {
		if !strings.HasPrefix(part, "{") {
			continue
		}
		for _, id := range strange {
			other := slices.Clone(parts)
			other[i] = url.PathEscape(id)
			add(fmt.Sprintf("id %q", id), false, func(next *Generated) { next.Path = g.fill(strings.Join(other, "/")) })
		}
	}
}

func (g *generator) parameters(at string, op *operation, add adder) {
	query := func(name, value string) func(*Generated) {
		return func(next *Generated) { next.Path += "?" + url.Values{name: {value}}.Encode() }
	}
	list, _ := g.c.object(at)["parameters"].([]any)
	for i := range list {
		p := g.c.object(g.c.resolve(at + "/parameters/" + strconv.Itoa(i)))
		name, _ := p["name"].(string)
		schema := g.c.resolve(at+"/parameters/"+strconv.Itoa(i)) + "/schema"
		for _, e := range g.examples(schema, name) {
			text, ok := parameterText(e.v)
			if !ok {
				continue
			}
			e.invalid = len(op.params[name].check(name, text)) > 0 // as text, not as the value it was made of
			if p["in"] == "header" {
				if e.invalid = e.invalid && text != ""; strings.ContainsAny(text, "\x00\n\r\x7f") {
					continue // no client can send it
				}
				add(name+": "+e.why, e.invalid, func(next *Generated) { next.Header[name] = text })
				continue
			}
			add(name+": "+e.why, e.invalid, query(name, text))
		}
		if name == "fields" {
			for member := range op.members {
				add("fields", false, query(name, member))
			}
			add("no such field", true, query(name, "nothing"))
		}
	}
	add("no such parameter", true, query("nothing", "1"))
	add("a query that cannot be parsed", true, func(next *Generated) { next.Path += "?a=%zz" })
}

// parameterText writes a value as a parameter; what only JSON can say is left out.
func parameterText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool, int, int64:
		return fmt.Sprint(v), true
	case []any:
		var words []string
		for _, item := range v {
			word, ok := item.(string)
			if !ok || strings.Contains(word, ",") {
				return "", false
			}
			words = append(words, word)
		}
		return strings.Join(words, ","), len(words) > 0
	}
	return "", false
}

func (g *generator) bodies(op *operation, schema string, add adder) {
	raw := func(body string) func(*Generated) { return func(next *Generated) { next.Body = []byte(body) } }
	if op.body == nil {
		add("a body where none is", true, raw(`{}`))
		return
	}
	for _, e := range g.examples(schema, "") {
		body := g.json(e.v)
		add("body: "+e.why, e.invalid, raw(string(body)))
	}
	for _, body := range []string{"", "{", "[]", "null", "0", `"x"`, "\xff", "{}{}", strings.Repeat(`{"a":`, 2000), `{"a":` + strings.Repeat("9", 400) + "}", "\x00", "\ufeff{}"} {
		short := body
		if len(short) > 12 {
			short = short[:12] + "…"
		}
		_, err := op.checkBody([]byte(body))
		add(fmt.Sprintf("body %q", short), err != nil, raw(body))
	}
	add("other media type", true, func(next *Generated) { next.Header["Content-Type"] = "text/plain" })
	add("no media type", true, func(next *Generated) { delete(next.Header, "Content-Type") })
}

func (g *generator) json(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only values of JSON are made
	}
	return b
}

// isFile reports whether a member names a file, which must not lie outside of dir.
func isFile(name string) bool {
	return name == "path" || name == "key_file" || name == "image" || name == "key_source"
}

// value makes a value that a schema allows, with every member that it needs and some others.
func (g *generator) value(at, name string, depth int) any {
	at = g.c.resolve(at)
	s := g.c.object(at)
	if values, ok := s["enum"].([]any); ok {
		return values[g.r.IntN(len(values))]
	}
	switch s["type"] {
	case "string":
		return g.text(s, name, -1)
	case "integer", "number":
		low := bound(s, "minimum", 0)
		return low + g.r.Int64N(min(bound(s, "maximum", math.MaxInt64)-low, 1000)+1)
	case "boolean":
		return g.r.IntN(2) == 0
	case "array":
		items := []any{}
		for range max(1, bound(s, "minItems", 0)) {
			items = append(items, g.value(at+"/items", name, depth+1))
		}
		return items
	}
	o := map[string]any{}
	required, _ := s["required"].([]any)
	for _, member := range slices.Sorted(maps.Keys(g.c.object(at + "/properties"))) {
		if slices.Contains(required, any(member)) || depth < 3 && g.r.IntN(3) == 0 {
			o[member] = g.value(at+"/properties/"+escapePointer(member), member, depth+1)
		}
	}
	return o
}

func bound(s map[string]any, name string, otherwise int64) int64 {
	n, ok := s[name].(json.Number)
	if !ok {
		return otherwise
	}
	f, err := n.Float64()
	if err != nil {
		return otherwise
	}
	return int64(f)
}

// text makes a string of a length, or of any allowed one for -1.
func (g *generator) text(s map[string]any, name string, length int64) string {
	least, most := bound(s, "minLength", 0), bound(s, "maxLength", 64)
	if length < 0 {
		length = min(most, least+g.r.Int64N(12))
	}
	if isFile(name) {
		return g.file(length)
	}
	if id, ok := g.ids[name+"_id"]; ok && length <= most && g.r.IntN(4) > 0 {
		return id
	}
	if pattern, ok := s["pattern"].(string); ok {
		if re, err := syntax.Parse(pattern, syntax.Perl); err == nil {
			return g.match(re.Simplify(), int(length))
		}
	}
	var b strings.Builder
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	for range length {
		b.WriteByte(letters[g.r.IntN(len(letters))])
	}
	return b.String()
}

// file is a path below dir, filled up to a length.
func (g *generator) file(length int64) string {
	path := fmt.Sprintf("%s/%d", g.dir, g.r.IntN(1_000_000))
	for int64(len(path)) < length {
		rest := int(length) - len(path)
		path += "/" + strings.Repeat("d", max(1, min(rest-1, 250)))
	}
	return path
}

// match makes a text that an expression matches, about as long as it should be where the expression leaves that open.
func (g *generator) match(re *syntax.Regexp, length int) string {
	switch re.Op {
	case syntax.OpLiteral:
		return string(re.Rune)
	case syntax.OpCharClass:
		i := 2 * g.r.IntN(len(re.Rune)/2)
		low, high := re.Rune[i], re.Rune[i+1]
		return string(low + rune(g.r.IntN(int(min(high-low+1, 90)))))
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return "x"
	case syntax.OpCapture:
		return g.match(re.Sub[0], length)
	case syntax.OpConcat:
		var b strings.Builder
		for _, sub := range re.Sub {
			b.WriteString(g.match(sub, max(0, length-b.Len())))
		}
		return b.String()
	case syntax.OpAlternate:
		return g.match(re.Sub[g.r.IntN(len(re.Sub))], length)
	case syntax.OpQuest:
		if g.r.IntN(2) == 0 {
			return ""
		}
		return g.match(re.Sub[0], length)
	case syntax.OpStar, syntax.OpPlus, syntax.OpRepeat:
		n := max(length, re.Min)
		if re.Op == syntax.OpPlus {
			n = max(1, length)
		}
		if re.Op == syntax.OpRepeat && re.Max >= 0 {
			n = min(n, re.Max)
		}
		var b strings.Builder
		for range n {
			b.WriteString(g.match(re.Sub[0], 1))
		}
		return b.String()
	}
	return ""
}
