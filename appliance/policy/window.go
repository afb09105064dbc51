package policy

import (
	"strings"
	"time"
)

// Window is a time of the day, on some days of the week, in which something may begin: "22:00-06:00",
// "Sat,Sun 08:00-20:00". One that ends at or before its beginning ends on the next day.
type Window struct {
	text     string
	from, to Calendar
}

// String returns the window as it was written.
func (w Window) String() string { return w.text }

const opWindow = "read window"

// ParseWindow reads [WEEKDAYS] FROM-TO; 24:00 is the end of a day.
func ParseWindow(text string) (Window, error) {
	if len(text) > maxText {
		return Window{}, syntax(opWindow, text[:maxText], maxText, "the end")
	}
	p := calendarParser{text: text}
	c := Calendar{text: text, weekdays: field{anyWeekday}, years: field{anyYear}, months: field{anyMonth}, day: field{anyDay}}
	p.spaces()
	if isLetter(p.peek()) {
		if err := p.weekdays(&c); err != nil {
			return Window{}, err
		}
		if !p.spaces() {
			return Window{}, p.fail("a space and the time from which it is open")
		}
	}
	from, err := p.clock(false)
	if err != nil {
		return Window{}, err
	}
	if !p.accept("-") {
		return Window{}, p.fail(`"-" and the time until which it is open`)
	}
	to, err := p.clock(true)
	if err != nil {
		return Window{}, err
	}
	if p.spaces(); p.peek() != 0 {
		return Window{}, p.fail("the end")
	}
	w := Window{text: text, from: c, to: c}
	w.from.minutes = []int{from}
	if to <= from {
		to += 24 * 60
	}
	w.to.minutes = []int{to} // of the day on which it was opened, so possibly beyond its end
	return w, nil
}

// clock reads "22:00".
func (p *calendarParser) clock(midnight bool) (int, error) {
	if midnight && p.accept("24:00") {
		return 24 * 60, nil
	}
	h, err := p.number(anyHour, "a time of the day, such as 22:00")
	if err != nil {
		return 0, err
	}
	if !p.accept(":") {
		return 0, p.fail(`":" and a minute`)
	}
	m, err := p.number(anyMinute, "a minute, 00 to 59")
	return h*60 + m, err
}

// Windows are several; none of them is always open.
type Windows []Window

// ParseWindows reads several windows.
func ParseWindows(texts []string) (Windows, error) {
	var out Windows
	for _, text := range texts {
		w, err := ParseWindow(text)
		if err != nil {
			return nil, err
		}
		out = append(out, w)
	}
	return out, nil
}

// String returns the windows as they were written.
func (ws Windows) String() string {
	texts := make([]string, len(ws))
	for i, w := range ws {
		texts[i] = w.text
	}
	return strings.Join(texts, "; ")
}

// Open reports whether something may begin at an instant.
func (ws Windows) Open(at time.Time, loc *time.Location) bool {
	if len(ws) == 0 {
		return true
	}
	y, m, d := at.In(loc).Date()
	for _, w := range ws {
		for back := range 3 { // it may have been opened on an earlier day
			day := time.Date(y, m, d-back, 0, 0, 0, 0, time.UTC)
			from, to := w.from.on(day, loc), w.to.on(day, loc)
			if len(from) == 1 && !at.Before(from[0]) && at.Before(to[0]) {
				return true
			}
		}
	}
	return false
}

// NextOpen returns when something may begin that may not begin before an instant.
func (ws Windows) NextOpen(at time.Time, loc *time.Location) time.Time {
	if ws.Open(at, loc) {
		return at
	}
	var best time.Time
	for _, w := range ws {
		if t, ok := w.from.Next(at, loc); ok && (best.IsZero() || t.Before(best)) {
			best = t
		}
	}
	return best
}
