package store

import (
	"testing"

	"github.com/cairn-backup/cairn/internal/fault"
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
