package httpapi

import (
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strings"
)

// examples are values at the bounds of a schema, and beyond them. Whether the document allows one is asked of its own
// schema, so that no rule is written down a second time.
func (g *generator) examples(at, name string) []example {
	at = g.c.resolve(at)
	schema, err := g.c.schema(at)
	if err != nil {
		panic(err) // loadContract has compiled it
	}
	var out []example
	for _, e := range g.around(at, name, 0) {
		// As it will be read: integers beyond 64 bits and the like are numbers here.
		var v any
		d := json.NewDecoder(strings.NewReader(string(g.json(e.v))))
		d.UseNumber()
		if err := d.Decode(&v); err != nil {
			panic(err)
		}
		e.invalid = schema.Validate(v) != nil
		out = append(out, e)
	}
	return out
}

// around makes values near the bounds of a schema.
func (g *generator) around(at, name string, depth int) []example {
	at = g.c.resolve(at)
	s := g.c.object(at)
	out := []example{{v: nil, why: "null"}, {v: []any{map[string]any{}}, why: "an array"}, {v: map[string]any{"": 0}, why: "an object"}}
	switch s["type"] {
	case "string":
		out = append(out, g.texts(s, name)...)
	case "integer", "number":
		out = append(out, numbers(s)...)
	case "boolean":
		out = append(out, example{v: true, why: "true"}, example{v: false, why: "false"}, example{v: "true", why: "true as text"}, example{v: 1, why: "1"})
	case "array":
		out = append(out, g.arrays(at, s, name, depth)...)
	case "object":
		out = append(out, g.objects(at, s, depth)...)
	}
	return out
}

func (g *generator) texts(s map[string]any, name string) []example {
	out := []example{{v: 5, why: "a number"}, {v: true, why: "a boolean"}}
	if values, ok := s["enum"].([]any); ok {
		for _, v := range values {
			out = append(out, example{v: v, why: "each of its values"})
		}
		return append(out, example{v: "nothing", why: "none of its values"}, example{v: strings.ToUpper(values[0].(string)), why: "other case"})
	}
	least, most := bound(s, "minLength", 0), bound(s, "maxLength", 4096)
	for _, n := range []int64{least - 1, least, most, most + 1} {
		if n >= 0 {
			out = append(out, example{v: g.text(s, name, n), why: "at a bound of its length"})
		}
	}
	if isFile(name) { // other names could lie anywhere
		return append(out, example{v: "relative", why: "a relative path"}, example{v: g.dir + "/\x00", why: "a NUL"},
			example{v: g.dir + "/" + strings.Repeat("x", 300), why: "a long name"}, example{v: "/dev/null/x", why: "a path below a file"})
	}
	return append(out, example{v: "\x00", why: "a NUL"}, example{v: "a\u202eb\n", why: "control characters"}, example{v: "\ufffd\U0001f600", why: "beyond ASCII"},
		example{v: "../../etc", why: "a path"}, example{v: "' OR 1=1 --", why: "SQL"}, example{v: "%s%n", why: "a format"})
}

func numbers(s map[string]any) []example {
	out := []example{
		{v: "5", why: "a number as text"}, {v: 0.5, why: "a fraction"}, {v: 1e300, why: "a huge number"}, {v: -1, why: "-1"}, {v: 0, why: "0"},
		{v: json.Number("9223372036854775808"), why: "beyond 64 bits"}, {v: int64(math.MaxInt64), why: "the largest of 64 bits"},
	}
	for _, name := range []string{"minimum", "maximum"} {
		if n, ok := s[name].(json.Number); ok {
			if v, err := n.Int64(); err == nil {
				out = append(out, example{v: v, why: "its " + name}, example{v: v - 1, why: "below its " + name}, example{v: v + 1, why: "above its " + name})
			}
		}
	}
	return out
}

func (g *generator) arrays(at string, s map[string]any, name string, depth int) []example {
	out := []example{{v: []any{}, why: "empty"}}
	for _, n := range []int64{bound(s, "minItems", 1), bound(s, "maxItems", 50), bound(s, "maxItems", 50) + 1} {
		items := []any{}
		for range n {
			items = append(items, g.value(at+"/items", name, depth+1))
		}
		out = append(out, example{v: items, why: "at a bound of its length"})
	}
	for _, e := range g.around(at+"/items", name, depth+1) {
		out = append(out, example{v: []any{e.v}, why: "item: " + e.why})
	}
	return out
}

func (g *generator) objects(at string, s map[string]any, depth int) []example {
	base, _ := g.value(at, "", depth).(map[string]any)
	with := func(name string, v any) map[string]any {
		o := maps.Clone(base)
		o[name] = v
		return o
	}
	out := []example{{v: base, why: "valid"}, {v: map[string]any{}, why: "empty"}, {v: with("nothing", 1), why: "an unknown member"}}
	for _, name := range slices.Sorted(maps.Keys(g.c.object(at + "/properties"))) {
		without := maps.Clone(base)
		delete(without, name)
		out = append(out, example{v: without, why: "without " + name})
		if depth > 2 {
			continue
		}
		for _, e := range g.around(at+"/properties/"+escapePointer(name), name, depth+1) {
			out = append(out, example{v: with(name, e.v), why: name + ": " + e.why})
		}
	}
	if s["additionalProperties"] != false {
		many := map[string]any{}
		for range bound(s, "maxProperties", 50) + 1 {
			many[g.text(map[string]any{}, "", 10)] = "x"
		}
		out = append(out, example{v: many, why: "many members"})
	}
	return out
}
