// Package apixml reads and writes the XML of oVirt's API by the readers and writers of its SDK, and makes up for what those lack:
// bounds, whole documents, text that is escaped.
//
// It makes no requests, and knows no entity: which reader is for which document is its caller's.
//
// Its invariant: whatever bytes come in, what comes out is an entity or an error of internal/fault; it neither panics nor goes down
// deeper than a hundred elements, and a document that was cut off is never taken for a whole one.
package apixml

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

// maxDepth is how deep a document may be nested: the SDK's readers go down as deep as it does.
const maxDepth = 100

var errDepth = errors.New("its elements are nested too deeply")

// Tokens are the tokens of a document that is not nested without end.
type Tokens struct {
	raw   *xml.Decoder
	depth int
}

// NewTokens returns the tokens of a document as they stand in it: a name's Space is its prefix.
func NewTokens(doc []byte) *Tokens { return &Tokens{raw: xml.NewDecoder(bytes.NewReader(doc))} }

// Token implements xml.TokenReader.
func (b *Tokens) Token() (xml.Token, error) {
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

// EntityReader is a reader of the SDK for one entity.
type EntityReader[T any] func(*sdk.XMLReader, *xml.StartElement, string) (*T, error)

// CollectionReader is a reader of the SDK for a collection.
type CollectionReader[S any] func(*sdk.XMLReader, *xml.StartElement) (*S, error)

// DecodeOne reads a document that is one entity, whose element is tag. It answers as Decode does.
func DecodeOne[T any](doc []byte, tag string, read EntityReader[T]) (*T, error) {
	return Decode(doc, tag, func(r *sdk.XMLReader, start *xml.StartElement) (*T, error) { return read(r, start, tag) })
}

// Decode reads a document whose root element is tag. What the SDK makes of nonsense, also a panic, is a Transient error: something else
// may have answered in the engine's place.
func Decode[T any](doc []byte, tag string, read CollectionReader[T]) (out *T, err error) {
	defer func() {
		if p := recover(); p != nil {
			out, err = nil, badReply(fmt.Errorf("%v", p))
		}
	}()
	reader := &sdk.XMLReader{Decoder: xml.NewTokenDecoder(NewTokens(doc))}
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

// Encode writes an entity by one of the SDK's writers. Text in it must have gone through Text.
func Encode[T any](entity *T, write func(*sdk.XMLWriter, *T, string) error) ([]byte, error) {
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

// Text makes a string fit to be the text of an element: the SDK's writers put it there as it is. Everything that is not
// a constant of ours, a number or an id goes through it.
func Text(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(s)) // a bytes.Buffer never fails
	return b.String()
}
