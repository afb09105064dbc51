// Package ovf rewrites the engine's own configuration document of a VM, so that another VM can be made of it.
//
// It does not read what a VM is like: that is in the API's description. What it does not know it leaves as it is.
//
// Its invariant: what Bare returns is well-formed and has no disk, NIC or snapshot in it, whatever went in.
package ovf

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/internal/fault"
)

// maxSize bounds a configuration document; real ones have some KiB.
const maxSize = 16 << 20

// The resource types of hardware items that a restore makes itself.
const (
	nicItem  = "10"
	diskItem = "17"
)

// Bare rewrites the engine's configuration document of a VM, so that a VM can be made of it that has no disks, NICs
// and snapshots: the engine would look for the old ones. The VM gets a name and a comment. All else stays as it is, also
// what is not known here.
func Bare(doc []byte, name, comment string) (out []byte, err error) {
	if len(doc) > maxSize {
		return nil, bad(fmt.Errorf("it has %d bytes", len(doc)))
	}
	w := &writer{in: apixml.NewTokens(doc), name: name, comment: comment}
	if err := w.document(); err != nil {
		return nil, bad(err)
	}
	return w.out.Bytes(), nil
}

func bad(err error) error {
	return fault.Wrap(fault.Invalid, "read configuration document of VM", "", err).
		Explain("The OVF in this restore point cannot be read.", "The VM is made from the rest of its description instead.")
}

// writer copies a document token by token.
type writer struct {
	in            *apixml.Tokens
	out           bytes.Buffer
	name, comment string
	named         bool // Content was found
}

var errForeign = errors.New("it is no OVF of an engine")

func (w *writer) document() error {
	for {
		t, err := w.in.Token()
		if err != nil {
			return err
		}
		switch t := t.(type) {
		case xml.StartElement:
			if t.Name.Local != "Envelope" {
				return errForeign
			}
			if err := w.element(t.Copy()); err != nil {
				return err
			}
			if !w.named {
				return errForeign
			}
			return w.rest()
		case xml.ProcInst:
			fmt.Fprintf(&w.out, "<?%s %s?>\n", t.Target, t.Inst)
		case xml.Directive:
			return errors.New("it has a document type")
		}
	}
}

// rest looks that nothing follows the document.
func (w *writer) rest() error {
	for {
		switch t, err := w.in.Token(); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		default:
			if text, ok := t.(xml.CharData); !ok || len(bytes.TrimSpace(text)) > 0 {
				return errors.New("something follows it")
			}
		}
	}
}

// element copies an element whose start was read, with what is in it.
func (w *writer) element(start xml.StartElement) error {
	w.start(start)
	if start.Name.Local == "Content" && !w.named {
		w.named = true
		w.text("Name", w.name)
		w.text("Comment", w.comment)
	}
	for {
		t, err := w.in.Token()
		if err != nil {
			return unexpected(err)
		}
		switch t := t.(type) {
		case xml.StartElement:
			if err := w.child(start, t.Copy()); err != nil {
				return err
			}
		case xml.EndElement:
			if t.Name != start.Name {
				return fmt.Errorf("<%s> ends as <%s>", start.Name.Local, t.Name.Local)
			}
			w.end(start)
			return nil
		case xml.CharData:
			_ = xml.EscapeText(&w.out, t) // a bytes.Buffer never fails
		case xml.Directive:
			return errors.New("it has a document type")
		}
	}
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// child copies an element of another one, or leaves it out.
func (w *writer) child(parent, t xml.StartElement) error {
	kind := typeOf(t)
	switch {
	case t.Name.Local == "References", kind == "DiskSection_Type", kind == "SnapshotsSection_Type":
		inner := &writer{in: w.in}
		if err := inner.element(t); err != nil || kind == "SnapshotsSection_Type" {
			return err
		}
		w.start(t) // the engine wants the section, but may find it empty
		w.end(t)
		return nil
	case parent.Name.Local == "Content" && (t.Name.Local == "Name" || t.Name.Local == "Comment"):
		return (&writer{in: w.in}).element(t)
	case t.Name.Local == "Item":
		return w.item(t)
	}
	return w.element(t)
}

// item copies a piece of hardware unless it is a disk or a NIC, which is known at its end.
func (w *writer) item(t xml.StartElement) error {
	inner := &writer{in: w.in}
	if err := inner.element(t); err != nil {
		return err
	}
	switch resourceType(inner.out.Bytes()) {
	case diskItem, nicItem:
		return nil
	}
	w.out.Write(inner.out.Bytes())
	return nil
}

// resourceType finds the kind of a hardware item, wherever in it that stands.
func resourceType(item []byte) string {
	d := xml.NewDecoder(bytes.NewReader(item))
	for {
		t, err := d.RawToken()
		if err != nil {
			return ""
		}
		if s, ok := t.(xml.StartElement); ok && s.Name.Local == "ResourceType" {
			if text, err := d.RawToken(); err == nil {
				if c, ok := text.(xml.CharData); ok {
					return strings.TrimSpace(string(c))
				}
			}
			return ""
		}
	}
}

// typeOf is the xsi:type of a section without its prefix.
func typeOf(t xml.StartElement) string {
	for _, a := range t.Attr {
		if a.Name.Local == "type" {
			_, kind, found := strings.Cut(a.Value, ":")
			if !found {
				kind = a.Value
			}
			return kind
		}
	}
	return ""
}

// qualified writes a name with its prefix: the tokens are raw, so that a Space is a prefix.
func qualified(n xml.Name) string {
	if n.Space == "" {
		return n.Local
	}
	return n.Space + ":" + n.Local
}

func (w *writer) start(t xml.StartElement) {
	w.out.WriteString("<" + qualified(t.Name))
	for _, a := range t.Attr {
		w.out.WriteString(" " + qualified(a.Name) + `="`)
		_ = xml.EscapeText(&w.out, []byte(a.Value))
		w.out.WriteByte('"')
	}
	w.out.WriteByte('>')
}

func (w *writer) end(t xml.StartElement) { w.out.WriteString("</" + qualified(t.Name) + ">") }

func (w *writer) text(name, value string) {
	w.out.WriteString("<" + name + ">" + apixml.Text(value) + "</" + name + ">")
}
