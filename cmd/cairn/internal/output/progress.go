package output

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Progress shows how far something is: one line that redraws itself on a terminal, and elsewhere a plain line for
// each tenth and each change of phase. It is for one goroutine.
type Progress struct {
	out      io.Writer
	terminal bool
	width    func() int
	now      func() time.Time
	begun    time.Time
	drawn    time.Time
	tenth    int64
	phase    string
	open     bool // a line without its newline is on the terminal
}

// State is what there is to show. Rate and ETA are worked out from the beginning where they are zero.
type State struct {
	Label       string // "backup of web01"
	Phase       string // "transferring"
	Done, Total int64  // bytes
	Rate        float64
	ETA         time.Duration
	Note        string // "limited by source"
}

// spacing is how far apart plain lines about one phase are at least, so that logs stay short.
const spacing = 2 * time.Second

// redraw is how often a terminal line changes at most: faster is flicker.
const redraw = 100 * time.Millisecond

// NewProgress shows progress on out; width is asked at each drawing and may return 0 for unknown.
func NewProgress(out io.Writer, terminal bool, width func() int) *Progress {
	return &Progress{out: out, terminal: terminal, width: width, now: time.Now, tenth: -1}
}

// Show shows s.
func (p *Progress) Show(s State) {
	now := p.now()
	if p.begun.IsZero() {
		p.begun = now
	}
	if s.Rate == 0 && s.Done > 0 {
		if elapsed := now.Sub(p.begun).Seconds(); elapsed >= 1 {
			s.Rate = float64(s.Done) / elapsed
		}
	}
	if s.ETA == 0 && s.Rate > 0 && s.Total > s.Done {
		s.ETA = time.Duration(float64(s.Total-s.Done) / s.Rate * float64(time.Second))
	}
	if !p.terminal {
		p.plain(s, now)
		return
	}
	if p.open && now.Sub(p.drawn) < redraw && s.Phase == p.phase && s.Done < s.Total {
		return
	}
	p.drawn, p.phase, p.open = now, s.Phase, true
	fmt.Fprint(p.out, "\r"+fit(s, p.width())+"\x1b[K")
}

func (p *Progress) plain(s State, now time.Time) {
	tenth, last := percent(s)/10, s.Total > 0 && s.Done >= s.Total
	if s.Phase == p.phase && (tenth <= p.tenth || (now.Sub(p.drawn) < spacing && !last)) {
		return
	}
	p.phase, p.tenth, p.drawn = s.Phase, tenth, now
	fmt.Fprintln(p.out, strings.Join(parts(s), "  "))
}

// Message writes a line of its own above the progress.
func (p *Progress) Message(format string, args ...any) {
	p.Close()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// Close ends the line on a terminal, so that what follows starts on its own; Show may follow again.
func (p *Progress) Close() {
	if p.open {
		fmt.Fprintln(p.out)
		p.open = false
	}
}

func percent(s State) int64 {
	if s.Total <= 0 {
		return 0
	}
	return min(int64(float64(s.Done)/float64(s.Total)*100), 100)
}

// parts are the words of a progress line, the most important first.
func parts(s State) []string {
	words := []string{Printable(s.Label)}
	if s.Phase != "" {
		words = append(words, s.Phase)
	}
	if s.Total > 0 {
		words = append(words, fmt.Sprintf("%3d%%", percent(s)), Size(s.Done)+" of "+Size(s.Total))
	}
	if s.Rate > 0 {
		words = append(words, Rate(s.Rate))
	}
	if s.ETA > 0 && s.Done < s.Total {
		words = append(words, Duration(s.ETA)+" left")
	}
	if s.Note != "" {
		words = append(words, s.Note)
	}
	return words
}

// fit lays a progress line out for a terminal of the given width, with a bar where there is room for one.
func fit(s State, width int) string {
	if width <= 0 {
		width = 80
	}
	words := parts(s)
	text := strings.Join(words, "  ")
	for utf8.RuneCountInString(text) >= width && len(words) > 1 {
		words = words[:len(words)-1]
		text = strings.Join(words, "  ")
	}
	room := min(width-utf8.RuneCountInString(text)-5, 20)
	if s.Total <= 0 || room < 8 {
		runes := []rune(text)
		return string(runes[:min(len(runes), width-1)])
	}
	filled := int(int64(room) * percent(s) / 100)
	bar := "[" + strings.Repeat("#", filled) + strings.Repeat(".", room-filled) + "]"
	return words[0] + "  " + bar + strings.TrimPrefix(text, words[0])
}
