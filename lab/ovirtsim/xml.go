package ovirtsim

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// node is an element of a document. An element has text or children.
type node struct {
	name  string
	attrs []xml.Attr
	text  string
	kids  []*node
}

// part adds something to an element.
type part func(*node)

func el(name string, parts ...part) *node {
	n := &node{name: name}
	n.add(parts...)
	return n
}

func (n *node) add(parts ...part) {
	for _, p := range parts {
		if p != nil {
			p(n)
		}
	}
}

func attr(name, value string) part {
	return func(n *node) { n.attrs = append(n.attrs, xml.Attr{Name: xml.Name{Local: name}, Value: value}) }
}

func kid(k *node) part {
	return func(n *node) {
		if k != nil {
			n.kids = append(n.kids, k)
		}
	}
}

func sub(name string, parts ...part) part { return kid(el(name, parts...)) }

// txt adds an element with text, also an empty one.
func txt(name, value string) part { return kid(&node{name: name, text: value}) }

// some adds an element unless its text is empty.
func some(name, value string) part {
	if value == "" {
		return nil
	}
	return txt(name, value)
}

func num[T int | int64](name string, value T) part {
	return txt(name, strconv.FormatInt(int64(value), 10))
}

func flag(name string, value bool) part { return txt(name, strconv.FormatBool(value)) }

// dates are ISO 8601 with milliseconds and zone.
const dates = "2006-01-02T15:04:05.000-07:00"

func when(name string, t time.Time) part {
	if t.IsZero() {
		return nil
	}
	return txt(name, t.Format(dates))
}

// api is where the API lies on the engine.
const api = "/ovirt-engine/api"

// self marks an element as an entity.
func self(href, id string) part {
	return func(n *node) { n.add(attr("href", api+href), attr("id", id)) }
}

// ref adds a reference to an entity of a collection at the root.
func ref(name, collection, id string) part {
	if id == "" {
		return nil
	}
	return sub(name, self("/"+collection+"/"+id, id))
}

func link(rel, href string) part { return sub("link", attr("href", api+href), attr("rel", rel)) }

// links adds one link per sub-collection.
func links(href string, rels ...string) part {
	return func(n *node) {
		for _, rel := range rels {
			n.add(link(rel, href+"/"+rel))
		}
	}
}

// actions adds the verbs of an entity.
func actions(href string, verbs ...string) part {
	a := el("actions")
	for _, v := range verbs {
		a.add(link(v, href+"/"+v))
	}
	return kid(a)
}

func (n *node) encode() []byte {
	var b bytes.Buffer
	b.WriteString(`<?xml version="1.0" encoding="UTF-8" standalone="yes"?>` + "\n")
	n.write(&b, "")
	return b.Bytes()
}

func (n *node) write(b *bytes.Buffer, indent string) {
	b.WriteString(indent + "<" + n.name)
	for _, a := range n.attrs {
		b.WriteString(" " + a.Name.Local + `="`)
		_ = xml.EscapeText(b, []byte(a.Value)) // a bytes.Buffer never fails
		b.WriteByte('"')
	}
	switch {
	case len(n.kids) > 0:
		b.WriteString(">\n")
		for _, k := range n.kids {
			k.write(b, indent+"    ")
		}
		b.WriteString(indent + "</" + n.name + ">\n")
	case n.text != "":
		b.WriteByte('>')
		_ = xml.EscapeText(b, []byte(n.text))
		b.WriteString("</" + n.name + ">\n")
	default:
		b.WriteString("/>\n")
	}
}

// The bounds of a document that is sent to the engine.
const (
	maxBody  = 8 << 20
	maxDepth = 64
	maxNodes = 200_000
	maxText  = 4 << 20 // of one element
)

var errTooBig = errors.New("the document is too big")

// parse reads a document of one root element. An empty one is nil.
func parse(r io.Reader) (*node, error) {
	d := xml.NewDecoder(io.LimitReader(r, maxBody))
	root := &node{}
	open := []*node{root}
	for nodes := 0; ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) && len(open) == 1 {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read XML: %w", err)
		}
		top := open[len(open)-1]
		switch tok := tok.(type) {
		case xml.StartElement:
			if nodes++; nodes > maxNodes || len(open) > maxDepth {
				return nil, errTooBig
			}
			k := &node{name: tok.Name.Local, attrs: tok.Attr}
			top.kids = append(top.kids, k)
			open = append(open, k)
		case xml.EndElement:
			if len(top.kids) > 0 {
				top.text = ""
			}
			open = open[:len(open)-1]
		case xml.CharData:
			if len(top.kids) == 0 && len(top.text)+len(tok) <= maxText {
				top.text += string(tok)
			}
		case xml.Directive:
			return nil, errors.New("read XML: a document type is not allowed")
		}
	}
	switch len(root.kids) {
	case 0:
		return nil, nil
	case 1:
		return root.kids[0], nil
	}
	return nil, errors.New("read XML: more than one root element")
}

// child returns the first child of a name, or nil; all methods for reading take a nil node as an empty one.
func (n *node) child(path ...string) *node {
	for _, name := range path {
		var next *node
		for _, k := range n.children(name) {
			next = k
			break
		}
		if n = next; n == nil {
			return nil
		}
	}
	return n
}

// children returns all children of a name.
func (n *node) children(name string) (out []*node) {
	if n == nil {
		return nil
	}
	for _, k := range n.kids {
		if k.name == name {
			out = append(out, k)
		}
	}
	return out
}

// str returns the text of an element below, "" if it is absent.
func (n *node) str(path ...string) string {
	if n = n.child(path...); n == nil {
		return ""
	}
	return strings.TrimSpace(n.text)
}

func (n *node) has(path ...string) bool { return n.child(path...) != nil }

func (n *node) attr(name string) string {
	if n == nil {
		return ""
	}
	for _, a := range n.attrs {
		if a.Name.Local == name {
			return a.Value
		}
	}
	return ""
}

// id returns the id of an element below.
func (n *node) id(path ...string) string { return n.child(path...).attr("id") }

// boolean returns a flag below, or what it is when absent.
func (n *node) boolean(absent bool, path ...string) (bool, error) {
	s := n.str(path...)
	if s == "" {
		return absent, nil
	}
	v, err := strconv.ParseBool(s)
	if err != nil {
		return false, badRequest("For input string: \"%s\" for element %s", s, strings.Join(path, "."))
	}
	return v, nil
}

// integer returns a number below, or what it is when absent.
func (n *node) integer(absent int64, path ...string) (int64, error) {
	s := n.str(path...)
	if s == "" {
		return absent, nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, badRequest("For input string: \"%s\" for element %s", s, strings.Join(path, "."))
	}
	return v, nil
}
