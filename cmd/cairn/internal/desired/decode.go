package desired

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// decode reads a YAML document into a struct by the JSON names of its fields. Every key must be one of them, once; a text may look like a
// number or a date.
func decode(doc *yaml.Node, into any) error {
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil // nothing but comments
	}
	return fill(doc.Content[0], reflect.ValueOf(into).Elem())
}

var timeType = reflect.TypeFor[time.Time]()

func fill(n *yaml.Node, v reflect.Value) error {
	if n.Kind == yaml.AliasNode {
		return fmt.Errorf("line %d: aliases are not understood", n.Line)
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return fill(n, v.Elem())
	case reflect.Struct:
		if v.Type() == timeType {
			return fillTime(n, v)
		}
		return fillStruct(n, v)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return fmt.Errorf("line %d: there should be a list", n.Line)
		}
		for _, item := range n.Content {
			e := reflect.New(v.Type().Elem()).Elem()
			if err := fill(item, e); err != nil {
				return err
			}
			v.Set(reflect.Append(v, e))
		}
		return nil
	case reflect.Map:
		return fillMap(n, v)
	}
	return fillScalar(n, v)
}

func fillTime(n *yaml.Node, v reflect.Value) error {
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, n.Value); err == nil && n.Kind == yaml.ScalarNode {
			v.Set(reflect.ValueOf(t.UTC()))
			return nil
		}
	}
	return fmt.Errorf("line %d: %q is neither a date like 2027-01-31 nor a time like 2027-01-31T22:00:00Z", n.Line, n.Value)
}

func fillStruct(n *yaml.Node, v reflect.Value) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: there should be a mapping of %s", n.Line, strings.Join(keysOf(v.Type()), ", "))
	}
	seen := map[string]bool{}
	for i := 0; i < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		field := fieldOf(v, key.Value)
		if !field.IsValid() {
			return fmt.Errorf("line %d: there is no %q here; there are %s", key.Line, key.Value, strings.Join(keysOf(v.Type()), ", "))
		}
		if seen[key.Value] {
			return fmt.Errorf("line %d: %s is there twice", key.Line, key.Value)
		}
		seen[key.Value] = true
		if value.Tag == "!!null" {
			continue // as if it were not there
		}
		if err := fill(value, field); err != nil {
			return err
		}
	}
	return nil
}

// jsonName is the name of a field in files; "" is none.
func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

func fieldOf(v reflect.Value, key string) reflect.Value {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			if found := fieldOf(v.Field(i), key); found.IsValid() {
				return found
			}
		} else if jsonName(f) == key && key != "" {
			return v.Field(i)
		}
	}
	return reflect.Value{}
}

func keysOf(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		if f := t.Field(i); f.Anonymous {
			out = append(out, keysOf(f.Type)...)
		} else if name := jsonName(f); name != "" {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func fillMap(n *yaml.Node, v reflect.Value) error {
	if n.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: there should be a mapping", n.Line)
	}
	v.Set(reflect.MakeMap(v.Type()))
	for i := 0; i < len(n.Content); i += 2 {
		e := reflect.New(v.Type().Elem()).Elem()
		if err := fill(n.Content[i+1], e); err != nil {
			return err
		}
		key := reflect.ValueOf(n.Content[i].Value)
		if v.MapIndex(key).IsValid() {
			return fmt.Errorf("line %d: %s is there twice", n.Content[i].Line, n.Content[i].Value)
		}
		v.SetMapIndex(key, e)
	}
	return nil
}

func fillScalar(n *yaml.Node, v reflect.Value) error {
	if n.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d: there should be a simple value", n.Line)
	}
	if v.Kind() == reflect.String {
		v.SetString(n.Value)
		return nil
	}
	if err := n.Decode(v.Addr().Interface()); err != nil {
		return fmt.Errorf("line %d: %q is no %s", n.Line, n.Value, map[bool]string{true: "true or false", false: "whole number"}[v.Kind() == reflect.Bool])
	}
	return nil
}

// encode makes a YAML node of a value by its JSON names, in the order of its fields.
func encode(v any) (*yaml.Node, error) {
	p, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(p, &doc); err != nil {
		return nil, err
	}
	plain(&doc)
	return &doc, nil
}

// plain takes the braces and quotes of JSON away where YAML needs none, and what is null or empty.
func plain(n *yaml.Node) {
	if n.Kind == yaml.MappingNode {
		var kept []*yaml.Node
		for i := 0; i < len(n.Content); i += 2 {
			if v := n.Content[i+1]; v.Tag != "!!null" && (v.Kind != yaml.SequenceNode && v.Kind != yaml.MappingNode || len(v.Content) > 0) {
				at := len(kept)
				if n.Content[i].Value == "name" { // for people, it comes first
					at = 0
				}
				kept = slices.Insert(kept, at, n.Content[i], v)
			}
		}
		n.Content = kept
	}
	n.Style = 0
	for _, c := range n.Content {
		plain(c)
	}
}
