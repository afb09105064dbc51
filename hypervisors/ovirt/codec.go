package ovirt

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/internal/fault"
)

// The bounds of a document of the engine. The SDK's readers go down as deep as a document does, and a hundred VMs with all
// that belongs to them are a few MiB.
const (
	maxReply = 64 << 20
	maxDepth = 100
)

var errDepth = errors.New("its elements are nested too deeply")

// boundedTokens are the tokens of a document that is not nested without end.
type boundedTokens struct {
	raw   *xml.Decoder
	depth int
}

// Token implements xml.TokenReader.
func (b *boundedTokens) Token() (xml.Token, error) {
	t, err := b.raw.RawToken()
	switch t.(type) {
	case xml.StartElement:
		if b.depth++; b.depth > maxDepth {
			return nil, errDepth
		}
	case xml.EndElement:
		b.depth--
	}
	return t, err
}

// one is a reader of the SDK for one entity.
type one[T any] func(*sdk.XMLReader, *xml.StartElement, string) (*T, error)

// many is a reader of the SDK for a collection.
type many[S any] func(*sdk.XMLReader, *xml.StartElement) (*S, error)

// decodeOne reads a document that is one entity.
func decodeOne[T any](doc []byte, tag string, read one[T]) (*T, error) {
	return decode(doc, tag, func(r *sdk.XMLReader, start *xml.StartElement) (*T, error) { return read(r, start, tag) })
}

// decode reads a document whose root element has a name. What the SDK makes of nonsense, also a panic, is an error.
func decode[T any](doc []byte, tag string, read many[T]) (out *T, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, badReply(fmt.Errorf("%v", p))
		}
	}()
	reader := &sdk.XMLReader{Decoder: xml.NewTokenDecoder(&boundedTokens{raw: xml.NewDecoder(bytes.NewReader(doc))})}
	for {
		t, err := reader.Next()
		if err != nil {
			return nil, badReply(err)
		}
		start, ok := t.(xml.StartElement)
		if !ok {
			continue
		}
		start = start.Copy()
		if start.Name.Local != tag {
			return nil, badReply(fmt.Errorf("it is a <%s>, want <%s>", start.Name.Local, tag))
		}
		// The SDK's readers take the end of the document for that of the element: a reply that was cut is found so.
		if out, err = read(reader, &start); err == nil && out == nil {
			err = errors.New("it is empty")
		}
		if err == nil {
			_, err = reader.Next()
			for err == nil {
				_, err = reader.Next()
			}
			if errors.Is(err, io.EOF) {
				return out, nil
			}
		}
		return nil, badReply(err)
	}
}

func badReply(err error) error {
	return fault.Wrap(fault.Transient, "read reply of the engine", "", err).Explain(
		"The engine's reply is no document of its API.",
		"Check that the address is the engine's, and that no proxy or portal answers in its place; then try again.")
}

// encode writes an entity by one of the SDK's writers.
func encode[T any](entity *T, write func(*sdk.XMLWriter, *T, string) error) ([]byte, error) {
	var b bytes.Buffer
	w := sdk.NewXMLWriter(&b)
	if err := write(w, entity, ""); err != nil {
		return nil, fault.Wrap(fault.Internal, "write request", "", err)
	}
	if err := w.Flush(); err != nil {
		return nil, fault.Wrap(fault.Internal, "write request", "", err)
	}
	return b.Bytes(), nil
}

// text makes a string fit to be the text of an element: the SDK's writers put it there as it is. Everything that is not
// a constant of ours, a number or an id goes through it.
func text(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a bytes.Buffer never fails
	return b.String()
}
