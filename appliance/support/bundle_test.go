package support

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/cairn-backup/cairn/appliance/support/supporttest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func gather(v any, err error) func(context.Context) (any, error) {
	return func(context.Context) (any, error) { return v, err }
}

// A part that fails, panics, is too long or says nothing keeps no other out, and the archive says so.
func TestWrite(t *testing.T) {
	synctest.Test(t, testWrite) // in which no time passes while something is worked on
}

func testWrite(t *testing.T) {
	t.Helper()
	var out bytes.Buffer
	err := Write(t.Context(), &out, "cairn-support", time.Now(), NewRedactor("hunter2"), []Part{
		{"a.json", gather(map[string]any{"x": "hunter2", "n": 1}, nil)}, {"b.txt", gather("password hunter2", nil)}, {"c.txt", gather(nil, errors.New("no hunter2"))},
		{"d.txt", func(context.Context) (any, error) { panic("broken") }}, {"e.txt", gather([]byte("part\xff"), errors.New("not all"))}, {"f.json", gather(func() {}, nil)},
		{"g.txt", gather(strings.Repeat("é", partBytes/2)+"x", nil)}, {"h.json", gather(strings.Split(strings.Repeat(strings.Repeat("x", 99)+" ", partBytes/100), " "), nil)},
	})
	if err != nil {
		t.Fatal(err)
	}
	folder, files := supporttest.Unzip(t, out.Bytes())
	if folder != "cairn-support" || len(files) != 5 || !strings.Contains(files["a.json"], `"x": "[redacted]"`) || files["b.txt"] != "password [redacted]" || files["e.txt"] != "part\uFFFD" {
		t.Errorf("%d files, %.100q", len(files), files)
	}
	if g := files["g.txt"]; !strings.HasPrefix(g, "é") || !strings.HasSuffix(g, "éx") || len(g) > partBytes {
		t.Errorf("of a long text %d bytes are left, from %.10q", len(g), g)
	}
	for _, want := range []string{
		"c.txt: no [redacted]", "d.txt: panic: broken", "e.txt: not all", "f.json: json: unsupported type", "g.txt: only the last 4194303 of its 4194305 bytes", "h.json: it has ",
	} {
		if !strings.Contains(files["missing.txt"], want) {
			t.Errorf("missing.txt has no %q: %s", want, files["missing.txt"])
		}
	}
}

// A part that hangs is given up, and so is everything when there is no time left.
func TestWriteInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := make(chan struct{})
		hang := func(context.Context) (any, error) { <-over; return "late", nil }
		ctx, cancel := context.WithTimeout(t.Context(), partTime+partTime/2)
		defer cancel()
		var out bytes.Buffer
		err := Write(ctx, &out, "f", time.Now(), NewRedactor(), []Part{{"a.txt", hang}, {"b.txt", gather("b", nil)}, {"c.txt", hang}, {"d.txt", gather("d", nil)}})
		close(over)
		folder, files := supporttest.Unzip(t, out.Bytes())
		missing := files["missing.txt"]
		if err != nil || folder != "f" || len(files) != 2 || files["b.txt"] != "b" || strings.Count(missing, "did not come in time") != 2 || !strings.Contains(missing, "d.txt: there was no time left") {
			t.Errorf("got %v, %q", err, files)
		}
	})
}

func TestRing(t *testing.T) {
	r := NewRing(10)
	for _, s := range []string{"a", "b\nc", "\n", "", "0123456789012345\n", "0123456", "0123456", "789\nd\ne\n", "fgh\n"} {
		if n, err := r.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
	}
	if got := string(r.Bytes()); got != "c\nd\ne\nfgh\n" {
		t.Errorf("kept %q", got)
	}
	for i := range 1000 {
		fmt.Fprintf(r, "%d\n", i)
	}
	if got := string(r.Bytes()); got != "998\n999\n" {
		t.Errorf("kept %q", got)
	}
}
