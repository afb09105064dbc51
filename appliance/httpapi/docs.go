package httpapi

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/api"
)

// This file renders the document for people. It needs nothing from anywhere else: an appliance often stands where no
// other network is reached.

//go:embed docs.html
var docsPage string

//go:embed docs.css
var docsStyle []byte

// docsData is what docs.html shows.
type docsData struct {
	Title, Version, Base, About string
	Tags                        []docsTag
	Schemas                     []docsSchema
}

type docsTag struct {
	Name, About string
	Operations  []docsOperation
}

type docsOperation struct {
	ID, Method, Path, Summary, About string
	Public                           bool
	Parameters                       []docsMember
	Body                             docsType
	Answers                          []docsAnswer
}

type docsAnswer struct {
	Status, About string
	Type          docsType
}

type docsSchema struct {
	Name, About string
	Type        docsType
	Members     []docsMember
}

type docsMember struct {
	Name, In, About string
	Required        bool
	Type            docsType
}

// docsType is the type of something: Text, and behind it a link to a schema of the document.
type docsType struct {
	Text, Link string
	Bounds     []string
}

// docs renders the document as a page.
func (c *contract) docs() ([]byte, error) {
	info := c.object("/info")
	data := docsData{Title: text(info, "title"), Version: text(info, "version"), Base: api.BasePath, About: text(info, "description")}
	tags, _ := c.doc["tags"].([]any)
	for i := range tags {
		t := c.object("/tags/" + strconv.Itoa(i))
		data.Tags = append(data.Tags, docsTag{Name: text(t, "name"), About: text(t, "description")})
	}
	for _, path := range slices.Sorted(maps.Keys(c.object("/paths"))) {
		for _, method := range methods {
			at := "/paths/" + escapePointer(path) + "/" + method
			if c.object(at) == nil {
				continue
			}
			o, tag := c.docsOperation(at, method, path)
			i := slices.IndexFunc(data.Tags, func(t docsTag) bool { return t.Name == tag })
			if i < 0 {
				return nil, fmt.Errorf("render API document: %s has the tag %q, which the document does not explain", o.ID, tag)
			}
			data.Tags[i].Operations = append(data.Tags[i].Operations, o)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.object("/components/schemas"))) {
		at := "/components/schemas/" + name
		data.Schemas = append(data.Schemas, docsSchema{
			Name: name, About: text(c.object(at), "description"), Type: c.docsType(at, 0), Members: c.docsMembers(at),
		})
	}
	page, err := template.New("docs").Funcs(template.FuncMap{"prose": prose}).Parse(docsPage)
	if err != nil {
		return nil, fmt.Errorf("render API document: %w", err)
	}
	var out bytes.Buffer
	if err := page.Execute(&out, data); err != nil {
		return nil, fmt.Errorf("render API document: %w", err)
	}
	return out.Bytes(), nil
}

func text(o map[string]any, member string) string {
	s, _ := o[member].(string)
	return s
}

func (c *contract) docsOperation(at, method, path string) (o docsOperation, tag string) {
	op := c.object(at)
	security, given := op["security"].([]any)
	o = docsOperation{
		ID: text(op, "operationId"), Method: strings.ToUpper(method), Path: path, Summary: text(op, "summary"),
		About: text(op, "description"), Public: given && len(security) == 0,
	}
	for _, of := range []string{"/paths/" + escapePointer(path), at} {
		list, _ := c.object(of)["parameters"].([]any)
		for i := range list {
			p := c.resolve(of + "/parameters/" + strconv.Itoa(i))
			required, _ := c.object(p)["required"].(bool)
			o.Parameters = append(o.Parameters, docsMember{
				Name: text(c.object(p), "name"), In: text(c.object(p), "in"), About: text(c.object(p), "description"),
				Required: required, Type: c.docsType(p+"/schema", 0),
			})
		}
	}
	if body := at + "/requestBody/content/application~1json/schema"; c.object(body) != nil {
		o.Body = c.docsType(body, 0)
	}
	for _, status := range slices.Sorted(maps.Keys(c.object(at + "/responses"))) {
		r := c.resolve(at + "/responses/" + status)
		a := docsAnswer{Status: status, About: text(c.object(r), "description")}
		if media := slices.Sorted(maps.Keys(c.object(r + "/content"))); len(media) > 0 { // of a list the document, not its lines
			a.Type = c.docsType(r+"/content/"+escapePointer(media[0])+"/schema", 0)
		}
		o.Answers = append(o.Answers, a)
	}
	if tags, _ := op["tags"].([]any); len(tags) > 0 {
		tag, _ = tags[0].(string)
	}
	return o, tag
}

func (c *contract) docsMembers(at string) []docsMember {
	required, _ := c.object(at)["required"].([]any)
	var out []docsMember
	for _, name := range slices.Sorted(maps.Keys(c.object(at + "/properties"))) {
		p := at + "/properties/" + escapePointer(name)
		about := text(c.object(p), "description")
		out = append(out, docsMember{
			Name: name, About: about, Required: slices.Contains(required, any(name)), Type: c.docsType(p, 0),
		})
	}
	return out
}

// bounds are what a schema may say of a value, in the order in which they are shown.
var bounds = []string{"format", "minLength", "maxLength", "pattern", "minimum", "maximum", "minItems", "maxItems", "uniqueItems", "maxProperties", "default"}

// docsType says what a schema is. It goes no deeper than arrays of arrays.
func (c *contract) docsType(at string, depth int) docsType {
	s := c.object(at)
	if ref := text(s, "$ref"); ref != "" {
		name := ref[strings.LastIndex(ref, "/")+1:]
		return docsType{Text: name, Link: name}
	}
	t := docsType{Text: text(s, "type")}
	for _, b := range bounds {
		if v, ok := s[b]; ok {
			t.Bounds = append(t.Bounds, fmt.Sprintf("%s %v", b, v))
		}
	}
	if values, ok := s["enum"].([]any); ok {
		var words []string
		for _, v := range values {
			words = append(words, fmt.Sprint(v))
		}
		t.Bounds = append(t.Bounds, "one of "+strings.Join(words, ", "))
	}
	if t.Text == "array" && depth < 2 {
		item := c.docsType(at+"/items", depth+1)
		t.Text, t.Link, t.Bounds = "array of "+item.Text, item.Link, append(t.Bounds, item.Bounds...)
	}
	return t
}

// prose makes paragraphs, lists and `code` of a description.
func prose(s string) template.HTML {
	var b strings.Builder
	for _, paragraph := range strings.Split(strings.TrimSpace(s), "\n\n") {
		var lines, items []string
		for _, line := range strings.Split(paragraph, "\n") {
			item, ok := strings.CutPrefix(line, "- ")
			switch {
			case ok:
				items = append(items, item)
			case len(items) > 0:
				items[len(items)-1] += " " + strings.TrimSpace(line)
			default:
				lines = append(lines, line)
			}
		}
		if len(lines) > 0 {
			b.WriteString("<p>" + code(strings.Join(lines, " ")) + "</p>")
		}
		if len(items) > 0 {
			b.WriteString("<ul>")
			for _, item := range items {
				b.WriteString("<li>" + code(item) + "</li>")
			}
			b.WriteString("</ul>")
		}
	}
	return template.HTML(b.String()) //nolint:gosec // every piece of text went through code, which escapes it
}

// code escapes a text and marks what stands between backquotes.
func code(s string) string {
	parts := strings.Split(s, "`")
	for i, p := range parts {
		parts[i] = template.HTMLEscapeString(p)
		if i%2 == 1 && i < len(parts)-1 {
			parts[i] = "<code>" + parts[i] + "</code>"
		}
	}
	return strings.Join(parts, "")
}
