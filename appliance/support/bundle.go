package support

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
	"unicode/utf8"
)

// Part is a file of a bundle. One that cannot be gathered keeps no other out.
type Part struct {
	Name   string                                 // version.json
	Gather func(ctx context.Context) (any, error) // a string or []byte is text, anything else is written as JSON
}

const (
	// partTime bounds how long one part may take: what is wrong may be that something does not answer.
	partTime = 20 * time.Second
	// partBytes bounds a part, before it is compressed.
	partBytes = 4 << 20
)

// Write writes a bundle of parts, in their order, as a zip archive under a folder, at most partBytes of each. What was left out and
// why is in its last file, missing.txt. Parts that ctx leaves no time for are left out, too.
func Write(ctx context.Context, w io.Writer, folder string, now time.Time, r *Redactor, parts []Part) error {
	archive := zip.NewWriter(w)
	var missing []string
	add := func(name string, text []byte) error {
		f, err := archive.CreateHeader(&zip.FileHeader{Name: path.Join(folder, name), Method: zip.Deflate, Modified: now})
		if err == nil {
			_, err = f.Write(text)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
		return nil
	}
	for _, part := range parts {
		text, err := part.text(ctx, r)
		if err == nil && len(text) > partBytes {
			text, err = cut(part.Name, text)
		}
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v\n", part.Name, err))
		}
		if len(text) == 0 {
			continue
		}
		if err := add(part.Name, text); err != nil {
			return err
		}
	}
	if err := add("missing.txt", []byte(r.Redact(strings.Join(missing, "")))); err != nil {
		return err
	}
	return archive.Close()
}

// cut shortens what is too long: a text loses its begin, since the newest is at the end of logs; a JSON document would be none.
func cut(name string, text []byte) ([]byte, error) {
	if strings.HasSuffix(name, ".json") {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(text), partBytes)
	}
	kept := text[len(text)-partBytes:]
	for len(kept) > 0 && !utf8.RuneStart(kept[0]) {
		kept = kept[1:]
	}
	return kept, fmt.Errorf("only the last %d of its %d bytes", len(kept), len(text))
}

// text gathers a part, at most for partTime. A part that does not end even then is left behind.
func (p Part) text(ctx context.Context, r *Redactor) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("there was no time left: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, partTime)
	defer cancel()
	type answer struct {
		text []byte
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		text, err := p.gather(ctx, r)
		got <- answer{text, err}
	}()
	select {
	case a := <-got:
		return a.text, a.err
	case <-ctx.Done():
		return nil, fmt.Errorf("it did not come in time: %w", ctx.Err())
	}
}

func (p Part) gather(ctx context.Context, r *Redactor) (text []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			text, err = nil, fmt.Errorf("panic: %v", v)
		}
	}()
	v, err := p.Gather(ctx)
	switch v := v.(type) {
	case nil:
		return nil, err
	case string:
		return []byte(r.Redact(v)), err
	case []byte:
		return []byte(r.Redact(string(bytes.ToValidUTF8(v, []byte("\uFFFD"))))), err
	}
	document, encodeErr := json.Marshal(v)
	if encodeErr == nil {
		document, encodeErr = r.JSON(document)
	}
	return document, errors.Join(err, encodeErr)
}
