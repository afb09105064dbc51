package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
	"gopkg.in/yaml.v3"

	"github.com/cairn-backup/cairn/api"
	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/internal/fault"
)

// contract is api/openapi.yaml, compiled: requests are checked against the document itself, so that what it says and
// what the server accepts cannot differ.
type contract struct {
	json       []byte // the document as JSON
	operations map[string]*operation
	doc        map[string]any
	schemas    *jsonschema.Compiler
	compiling  sync.Mutex // a compiler is for one goroutine at a time
}

// operation is one method of one path.
type operation struct {
	id      string
	public  bool
	params  map[string]param // of query and header
	body    *jsonschema.Schema
	answer  string          // pointer to the schema of a 200 in JSON; "" when there is none
	members map[string]bool // of the items when that is a list
	starts  bool            // a run
}

type param struct {
	in     string
	kind   string // JSON type
	schema *jsonschema.Schema
}

const documentURL = "file:///openapi.json"

// loadContract compiles the document.
func loadContract(document []byte) (*contract, error) {
	var raw any
	if err := yaml.Unmarshal(document, &raw); err != nil {
		return nil, fmt.Errorf("parse API document: %w", err)
	}
	asJSON, err := json.Marshal(raw)
	if err != nil {
		return nil, fmt.Errorf("convert API document: %w", err)
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(asJSON))
	if err != nil {
		return nil, fmt.Errorf("convert API document: %w", err)
	}
	doc, ok := parsed.(map[string]any)
	if !ok {
		return nil, errors.New("API document is not an object")
	}
	c := &contract{json: asJSON, doc: doc, operations: map[string]*operation{}, schemas: jsonschema.NewCompiler()}
	c.schemas.AssertFormat()
	if err := c.schemas.AddResource(documentURL, parsed); err != nil {
		return nil, fmt.Errorf("read schemas of API document: %w", err)
	}
	for path := range c.object("/paths") {
		if err := c.addPath(path); err != nil {
			return nil, fmt.Errorf("API document, %s: %w", path, err)
		}
	}
	return c, nil
}

// methods are the members of a path that are operations.
var methods = []string{"get", "put", "post", "delete", "patch"}

func (c *contract) addPath(path string) error {
	at := "/paths/" + escapePointer(path)
	for _, method := range methods {
		if c.object(at+"/"+method) == nil {
			continue
		}
		op, err := c.operation(at + "/" + method)
		if err != nil {
			return err
		}
		c.operations[routeKey(strings.ToUpper(method), api.BasePath+path)] = op
	}
	return nil
}

// routeKey is "GET /api/v1/vms/:vm_id", the path as echo has it.
func routeKey(method, path string) string {
	return method + " " + strings.NewReplacer("{", ":", "}", "").Replace(path)
}

func (c *contract) operation(at string) (*operation, error) {
	o := c.object(at)
	op := &operation{params: map[string]param{}}
	op.id, _ = o["operationId"].(string)
	if security, ok := o["security"].([]any); ok && len(security) == 0 {
		op.public = true
	}
	c.addAnswer(op, at)
	params, _ := o["parameters"].([]any)
	for i := range params {
		if err := c.addParam(op, c.resolve(fmt.Sprintf("%s/parameters/%d", at, i))); err != nil {
			return nil, err
		}
	}
	if _, ok := o["requestBody"]; ok {
		schema, err := c.schema(at + "/requestBody/content/application~1json/schema")
		if err != nil {
			return nil, err
		}
		op.body = schema
	}
	return op, nil
}

func (c *contract) addAnswer(op *operation, at string) {
	op.starts = c.object(at+"/responses/202") != nil
	schema := c.resolve(at+"/responses/200") + "/content/application~1json/schema"
	if c.object(schema) == nil {
		return
	}
	op.answer = c.resolve(schema)
	if item := c.resolve(op.answer + "/properties/items/items"); c.object(item) != nil {
		op.members = map[string]bool{}
		for name := range c.object(item + "/properties") {
			op.members[name] = true
		}
	}
}

func (c *contract) addParam(op *operation, at string) error {
	p := c.object(at)
	name, _ := p["name"].(string)
	in, _ := p["in"].(string)
	schema, err := c.schema(at + "/schema")
	if err != nil {
		return err
	}
	kind, _ := c.object(c.resolve(at + "/schema"))["type"].(string)
	op.params[name] = param{in: in, kind: kind, schema: schema}
	return nil
}

// object returns the object a JSON Pointer leads to, or nil.
func (c *contract) object(pointer string) map[string]any {
	var at any = c.doc
	for _, token := range strings.Split(strings.TrimPrefix(pointer, "/"), "/") {
		token = strings.NewReplacer("~1", "/", "~0", "~").Replace(token)
		switch v := at.(type) {
		case map[string]any:
			at = v[token]
		case []any:
			var i int
			if _, err := fmt.Sscan(token, &i); err != nil || i < 0 || i >= len(v) {
				return nil
			}
			at = v[i]
		default:
			return nil
		}
	}
	o, _ := at.(map[string]any)
	return o
}

// resolve follows one $ref.
func (c *contract) resolve(pointer string) string {
	if ref, ok := c.object(pointer)["$ref"].(string); ok {
		return strings.TrimPrefix(ref, "#")
	}
	return pointer
}

func (c *contract) schema(pointer string) (*jsonschema.Schema, error) {
	c.compiling.Lock()
	defer c.compiling.Unlock()
	return c.schemas.Compile(documentURL + "#" + pointer)
}

func escapePointer(s string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(s) }

// checkParams checks the query and the headers of a request.
func (o *operation) checkParams(query url.Values, header http.Header) error {
	var wrong []server.ProblemField
	for _, name := range slices.Sorted(maps.Keys(query)) {
		p, ok := o.params[name]
		switch {
		case !ok || p.in != "query":
			wrong = append(wrong, server.ProblemField{Parameter: name, Detail: "there is no such parameter"})
		case len(query[name]) > 1:
			wrong = append(wrong, server.ProblemField{Parameter: name, Detail: "it is there more than once"})
		default:
			wrong = append(wrong, p.check(name, query.Get(name))...)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(o.params)) {
		if p := o.params[name]; p.in == "header" && header.Get(name) != "" {
			wrong = append(wrong, p.check(name, header.Get(name))...)
		}
	}
	if len(wrong) == 0 {
		return nil
	}
	r := reject(fault.Invalid, 0, "parameter", wrong[0].Parameter+": "+wrong[0].Detail)
	r.fields = wrong
	return r
}

func (p param) check(name, value string) []server.ProblemField {
	var v any = value
	switch p.kind {
	case "integer", "boolean":
		var err error
		if v, err = jsonschema.UnmarshalJSON(strings.NewReader(value)); err != nil {
			return []server.ProblemField{{Parameter: name, Detail: "it is not of type " + p.kind}}
		}
	case "array":
		var list []any
		for _, item := range strings.Split(value, ",") {
			list = append(list, item)
		}
		v = list
	}
	fields := mistakes(p.schema.Validate(v))
	for i := range fields {
		fields[i].Parameter, fields[i].Pointer = name, ""
	}
	return fields
}

// checkBody checks a JSON body and returns it in a form in which equal bodies are equal bytes.
func (o *operation) checkBody(body []byte) (canonical []byte, err error) {
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return nil, reject(fault.Invalid, http.StatusBadRequest, "json", "the body is not JSON: "+err.Error())
	}
	if wrong := mistakes(o.body.Validate(v)); len(wrong) > 0 {
		r := reject(fault.Invalid, 0, "body", wrong[0].Pointer+": "+wrong[0].Detail)
		r.fields = wrong
		return nil, r
	}
	return json.Marshal(v)
}

var english = message.NewPrinter(language.English)

// mistakes lists what a validation found, one entry a mistake.
func mistakes(err error) []server.ProblemField {
	if err == nil {
		return nil
	}
	v, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return []server.ProblemField{{Pointer: "#", Detail: err.Error()}}
	}
	if len(v.Causes) > 0 {
		var out []server.ProblemField
		for _, cause := range v.Causes {
			out = append(out, mistakes(cause)...)
		}
		return out
	}
	at := "#"
	for _, token := range v.InstanceLocation {
		at += "/" + escapePointer(token)
	}
	switch k := v.ErrorKind.(type) {
	case *kind.AdditionalProperties:
		return members(at, k.Properties, "there is no such member")
	case *kind.Required:
		return members(at, k.Missing, "it is missing")
	}
	return []server.ProblemField{{Pointer: at, Detail: v.ErrorKind.LocalizedString(english)}}
}

func members(at string, names []string, detail string) []server.ProblemField {
	var out []server.ProblemField
	for _, name := range slices.Sorted(slices.Values(names)) {
		out = append(out, server.ProblemField{Pointer: at + "/" + escapePointer(name), Detail: detail})
	}
	return out
}
