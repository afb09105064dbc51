package output

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestPlainProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := NewProgress(&b, false, nil)
		for done := int64(0); done <= 100; done += 4 {
			p.Show(State{Label: "web01", Phase: "transferring", Done: done << 20, Total: 100 << 20})
			time.Sleep(time.Second)
		}
		p.Show(State{Label: "web01", Phase: "publishing", Done: 100 << 20, Total: 100 << 20})
		p.Message("done")
		p.Close()
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		if len(lines) != 13 {
			t.Fatalf("got %d lines, want 11 tenths, a phase and a message:\n%s", len(lines), b.String())
		}
		want := "web01  transferring   12%  12 MiB of 100 MiB  4 MiB/s  22s left"
		if lines[1] != want {
			t.Errorf("got %q, want %q", lines[1], want)
		}
		if strings.Contains(b.String(), "\x1b") || strings.Contains(b.String(), "\r") {
			t.Errorf("control characters in plain progress: %q", b.String())
		}
	})
}

func TestTerminalProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		p := NewProgress(&b, true, func() int { return 80 })
		p.Show(State{Label: "web01", Phase: "transferring", Done: 0, Total: 4096})
		p.Show(State{Label: "web01", Phase: "transferring", Done: 1, Total: 4096}) // too soon to be drawn
		time.Sleep(time.Second)
		p.Show(State{Label: "web01", Phase: "transferring", Done: 2048, Total: 4096})
		p.Message("a line")
		p.Close()
		want := "\rweb01  [....................]  transferring    0%  0 B of 4 KiB\x1b[K" +
			"\rweb01  [########........]  transferring   50%  2 KiB of 4 KiB  2 KiB/s  1s left\x1b[K\n" +
			"a line\n"
		if diff := cmp.Diff(b.String(), want); diff != "" {
			t.Logf("%q", b.String())
			t.Errorf("-got +want:\n%s", diff)
		}
	})
}

func TestProgressFitsTheTerminal(t *testing.T) {
	s := State{Label: "a machine with a rather long name", Phase: "transferring", Done: 1 << 30, Total: 3 << 30, Rate: 1 << 20, ETA: time.Hour,
		Note: "limited by source"}
	for width := range 200 {
		got := fit(s, width)
		limit := width
		if width == 0 {
			limit = 80
		}
		if n := utf8.RuneCountInString(got); n >= limit {
			t.Errorf("width %d: %d columns: %q", width, n, got)
		}
	}
}
