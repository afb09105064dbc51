package httpapi

import (
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/api"
)

// TestDocumentKeepsItsConventions holds the document to what it says of itself in its description.
func TestDocumentKeepsItsConventions(t *testing.T) {
	c, err := loadContract(api.Document)
	check(t, err)
	if len(c.operations) < 37 {
		t.Errorf("only %d operations were found", len(c.operations))
	}
	for path := range c.object("/paths") {
		for _, method := range methods {
			at := "/paths/" + escapePointer(path) + "/" + method
			o := c.object(at)
			if o == nil {
				continue
			}
			for _, member := range []string{"operationId", "summary"} {
				if text, _ := o[member].(string); text == "" {
					t.Errorf("%s %s has no %s", method, path, member)
				}
			}
			if got := c.resolve(at + "/responses/default"); got != "/components/responses/Problem" {
				t.Errorf("%s %s: errors are %s", method, path, got)
			}
			id, _ := o["operationId"].(string)
			op := c.operations[routeKey(strings.ToUpper(method), api.BasePath+path)]
			switch method {
			case "get":
				if op.answer != "" && c.resolve(at+"/responses/304") != "/components/responses/NotModified" {
					t.Errorf("%s does not say that it may answer 304", id)
				}
			case "put", "patch", "delete":
				read := c.operations[routeKey("GET", api.BasePath+path)]
				if op.params["If-Match"].in != "header" || read == nil || read.answer == "" {
					t.Errorf("%s does not take If-Match, or what it changes cannot be read", id)
				}
			}
			if c.object(at+"/responses/201") != nil && !op.public && op.params["Idempotency-Key"].in != "header" {
				t.Errorf("%s makes something and knows no Idempotency-Key", id)
			}
			if starts := c.object(at+"/responses/202") != nil && !strings.HasPrefix(id, "cancel"); starts {
				params := c.operations[routeKey(strings.ToUpper(method), api.BasePath+path)].params
				if params["Prefer"].in != "header" || params["Idempotency-Key"].in != "header" {
					t.Errorf("%s starts a run and knows no Prefer or no Idempotency-Key", id)
				}
			}
		}
	}
	for name := range c.object("/components/schemas") {
		at := "/components/schemas/" + name
		s := c.object(at)
		if _, err := c.schema(at); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if s["type"] == "object" && s["additionalProperties"] != false {
			t.Errorf("%s allows members that are not in it", name)
		}
		for member := range c.object(at + "/properties") {
			checkMember(t, c, name, member)
		}
	}
}

func checkMember(t *testing.T, c *contract, schema, member string) {
	t.Helper()
	p := c.object("/components/schemas/" + schema + "/properties/" + member)
	switch {
	case strings.HasSuffix(member, "_bytes") && (p["type"] != "integer" || p["format"] != "int64"):
		t.Errorf("%s.%s is not a 64-bit integer", schema, member)
	case strings.HasSuffix(member, "_at") && p["format"] != "date-time":
		t.Errorf("%s.%s is not a time", schema, member)
	case strings.ToLower(member) != member:
		t.Errorf("%s.%s is not in snake case", schema, member)
	case strings.Contains(member, "password") && p["writeOnly"] != true:
		if ref, _ := p["$ref"].(string); ref != "#/components/schemas/NewPassword" {
			t.Errorf("%s.%s can be read", schema, member)
		}
	}
}
