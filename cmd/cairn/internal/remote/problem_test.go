package remote

import (
	"net/http"
	"strings"
	"testing"
)

// TestProblemSaysEachThingOnce: what is wrong with a field may stand in the detail, too.
func TestProblemSaysEachThingOnce(t *testing.T) {
	resp := &http.Response{StatusCode: 422, Status: "422 Unprocessable Entity", Header: http.Header{"Content-Type": {"application/problem+json"}}}
	body := `{"title": "The request is not right", "type": "/problems/invalid/body", "detail": "#/name: minLength: got 0, want 1",
		"errors": [{"pointer": "#/name", "detail": "minLength: got 0, want 1"}, {"pointer": "#/spec/rpo", "detail": "not a number"}, {"parameter": "limit", "detail": "too large"}]}`
	got, _, _ := strings.Cut(Problem("https://a", resp, []byte(body)).Error(), "\n\n")
	if want := "name: minLength: got 0, want 1\nspec/rpo: not a number\nlimit: too large"; !strings.HasPrefix(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
