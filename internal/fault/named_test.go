package fault

import (
	"errors"
	"testing"
)

func TestNamed(t *testing.T) {
	cause := errors.New("refused")
	inner := Wrap(Transient, "look up VM", "4c4c", cause).Explain("meaning", "advice")
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"the same operation", inner, "look up VM web: refused"},
		{"said in other parts", Wrap(Transient, "look up", "VM 4c4c", cause), "look up VM web: refused"},
		{"joined alone", errors.Join(inner, nil), "look up VM web: refused"},
		{"of another", Wrap(Transient, "look up VM", "5d5d", cause), "look up VM web: look up VM 5d5d: refused"},
		{"another operation", Context("connect to", "h1", inner), "look up VM web: connect to h1: look up VM 4c4c: refused"},
		{"with others", errors.Join(inner, cause), "look up VM web: look up VM 4c4c: refused\nrefused"},
		{"no kind", cause, "look up VM web: refused"},
	} {
		got := Named("look up VM", "web", "4c4c", tt.err)
		if got.Error() != tt.want || got.Kind != KindOf(tt.err) || !errors.Is(got, cause) {
			t.Errorf("%s: %q, kind %v, want %q", tt.name, got, got.Kind, tt.want)
		}
	}
	if meaning, advice := Explanation(Named("look up VM", "web", "4c4c", inner)); meaning != "meaning" || advice != "advice" || inner.Subject != "4c4c" {
		t.Errorf("explained by %q, %q; the error was %v", meaning, advice, inner)
	}
}
