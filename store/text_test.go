package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// Text that is not UTF-8 would come back as other text: two series would become one.
func TestTextThatIsNotUTF8IsRefused(t *testing.T) {
	g := newRig(t)
	if _, err := g.repo.Begin(t.Context(), SessionOptions{Series: "vm\xff"}); fault.KindOf(err) != fault.Invalid || err == nil {
		t.Errorf("series: %v", err)
	}
	ref := g.backup([]byte("x"), nil, nil).Images[0].Ref
	for name, m := range map[string]Manifest{
		"label":      {Labels: map[string]string{"a": "\xff"}},
		"label key":  {Labels: map[string]string{"\xff": "a"}},
		"image":      {Images: []NamedImage{{Name: "vda\xfe", Ref: ref}}},
		"document":   {Documents: []Document{{Name: "\xfd"}}},
		"media type": {Documents: []Document{{Name: "a", MediaType: "\xfd"}}},
	} {
		s := g.begin() // a refused manifest ends it
		if _, err := s.Publish(t.Context(), m); fault.KindOf(err) != fault.Invalid || err == nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Abort(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if _, err := g.begin().Publish(t.Context(), Manifest{Images: []NamedImage{{Name: "é/..\n", Ref: ref}}}); err != nil {
		t.Errorf("odd, but text: %v", err)
	}
}

// Whatever is written is held to the limits that FORMAT.md states; one byte less is accepted.
func TestTextThatIsTooLongIsRefused(t *testing.T) {
	g := newRig(t)
	ctx := t.Context()
	ref := g.backup([]byte("x"), nil, nil).Images[0].Ref
	publish := func(make func(text string) Manifest) func(string) error {
		return func(text string) error {
			s := g.begin()
			_, err := s.Publish(ctx, make(text))
			return errors.Join(err, s.Abort(ctx))
		}
	}
	begin := func(o SessionOptions) error {
		s, err := g.repo.Begin(ctx, o)
		if err != nil {
			return err
		}
		return s.Abort(ctx)
	}
	for name, c := range map[string]struct {
		most  int
		write func(text string) error
	}{
		"series":        {1 << 10, func(text string) error { return begin(SessionOptions{Series: text}) }},
		"writer":        {1 << 10, func(text string) error { return begin(SessionOptions{Series: "vm", Writer: text}) }},
		"name of label": {255, publish(func(text string) Manifest { return Manifest{Labels: map[string]string{text: "a"}} })},
		"label":         {4 << 10, publish(func(text string) Manifest { return Manifest{Labels: map[string]string{"a": text}} })},
		"image":         {255, publish(func(text string) Manifest { return Manifest{Images: []NamedImage{{Name: text, Ref: ref}}} })},
		"document":      {255, publish(func(text string) Manifest { return Manifest{Documents: []Document{{Name: text}}} })},
		"media type":    {255, publish(func(text string) Manifest { return Manifest{Documents: []Document{{Name: "a", MediaType: text}}} })},
		"repository": {1 << 10, func(text string) error {
			b, err := file.Create(t.TempDir())
			if err != nil {
				return err
			}
			return errors.Join(Create(ctx, b, g.key, CreateOptions{Name: text}), b.Close())
		}},
		"label of a key": {1 << 10, func(text string) error {
			k, err := NewKeyFile(filepath.Join(t.TempDir(), "key"))
			if err != nil {
				return err
			}
			_, err = AddKey(ctx, g.b, g.key, k, text)
			return err
		}},
	} {
		if err := c.write(strings.Repeat("x", c.most)); err != nil {
			t.Errorf("%s of %d bytes: %v", name, c.most, err)
		}
		err := c.write(strings.Repeat("x", c.most+1))
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(fmt.Sprint(err), fmt.Sprint(c.most+1)) {
			t.Errorf("%s of %d bytes: %v", name, c.most+1, err)
		}
	}
}
