package ovirtsim

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "<a/>", `<vm id="1"><name>a &amp; b</name><memory>1</memory></vm>`, "<a><b></a>", "<a/><b/>", "<!DOCTYPE a><a/>", strings.Repeat("<a>", maxDepth+1),
		`<a xmlns:x="y" x:z="1">text<b/>more</a>`, "<a>\x00</a>", `<?xml version="1.0"?><a>&#x41;</a>`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parse(bytes.NewReader(b))
		if err != nil || n == nil || bytes.ContainsRune(b, ':') {
			return // without its prefix a name may be none
		}
		again, err := parse(bytes.NewReader(n.encode()))
		if err != nil {
			t.Fatalf("what was written cannot be read: %v: %s", err, n.encode())
		}
		if got, want := again.encode(), n.encode(); !bytes.Equal(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
	})
}

func FuzzSearch(f *testing.F) {
	for _, s := range []string{"", "name=web", `name="a b" and status!=up or tag=x sortby name desc page 2`, "=", "a=", "and", "sortby", "page 0", `"`, "a<=3", "***"} {
		f.Add(s)
	}
	r := (&row{id: "1"}).field("name", "web").field("status", "up").field("tag").field("a", "3")
	f.Fuzz(func(t *testing.T, s string) {
		q, err := parseSearch(s, true)
		if err != nil {
			return
		}
		if q.page < 0 {
			t.Errorf("page %d", q.page)
		}
		_, _ = q.matches(r) // it must only end
	})
}
