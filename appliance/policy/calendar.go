package policy

import (
	"slices"
	"strings"
	"time"
)

// Calendar is a calendar expression: "Mon..Fri 22:00", "*-*-01 03:00", "*:00/15". The zero value never occurs.
type Calendar struct {
	text               string
	weekdays           field // 0 is Sunday; as of time.Weekday
	years, months, day field
	fromEnd            bool  // days are counted from the end of the month, 1 is the last
	minutes            []int // of the day, ascending
}

// String returns the expression as it was written.
func (c Calendar) String() string { return c.text }

// field is what a component of an expression allows.
type field []span

type span struct{ low, high, step int }

func (f field) has(v int) bool {
	return slices.ContainsFunc(f, func(s span) bool { return s.low <= v && v <= s.high && (v-s.low)%s.step == 0 })
}

func (f field) lowest() int {
	return slices.MinFunc(f, func(a, b span) int { return a.low - b.low }).low
}

// The bounds of the components.
var (
	anyYear    = span{1970, 9999, 1}
	anyMonth   = span{1, 12, 1}
	anyDay     = span{1, 31, 1}
	anyHour    = span{0, 23, 1}
	anyMinute  = span{0, 59, 1}
	anyWeekday = span{0, 6, 1}
)

// shorthands are the expressions with a name.
var shorthands = map[string]string{
	"hourly": "*:00", "daily": "00:00", "weekly": "Mon 00:00", "monthly": "*-*-01 00:00", "yearly": "*-01-01 00:00",
}

const opCalendar = "read calendar expression"

// maxText bounds texts of both languages.
const maxText = 4096

// ParseCalendar reads an expression: [WEEKDAYS] [[YEAR-]MONTH-DAY] [HOUR:MINUTE], or hourly, daily, weekly, monthly, yearly.
func ParseCalendar(text string) (Calendar, error) {
	c := Calendar{text: text, weekdays: field{anyWeekday}, years: field{anyYear}, months: field{anyMonth}, day: field{anyDay}}
	if len(text) > maxText {
		return Calendar{}, syntax(opCalendar, text[:maxText], maxText, "the end")
	}
	p := calendarParser{text: text}
	if full, ok := shorthands[strings.ToLower(strings.TrimSpace(text))]; ok {
		p.text = full
	}
	if err := p.expression(&c); err != nil {
		return Calendar{}, err
	}
	if !c.possible() {
		return Calendar{}, syntax(opCalendar, p.text, p.dateAt, "a day that one of the months has")
	}
	return c, nil
}

// possible reports whether one of the months has one of the days.
func (c Calendar) possible() bool {
	for m := time.January; m <= time.December; m++ {
		if c.months.has(int(m)) && c.day.lowest() <= daysIn(2024, m) { // a leap year
			return true
		}
	}
	return false
}

func daysIn(year int, m time.Month) int { return time.Date(year, m+1, 0, 0, 0, 0, 0, time.UTC).Day() }

// calendarParser reads an expression from its left to its right.
type calendarParser struct {
	text   string
	at     int
	dateAt int
}

func (p *calendarParser) fail(want string) error { return syntax(opCalendar, p.text, p.at, want) }

func (p *calendarParser) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *calendarParser) spaces() (any bool) {
	for p.peek() == ' ' {
		p.at++
		any = true
	}
	return any
}

func (p *calendarParser) accept(s string) bool {
	if strings.HasPrefix(p.text[p.at:], s) {
		p.at += len(s)
		return true
	}
	return false
}

func (p *calendarParser) expression(c *Calendar) error {
	p.spaces()
	if p.peek() == 0 {
		return p.fail("days of the week, a date or a time")
	}
	if isLetter(p.peek()) {
		if err := p.weekdays(c); err != nil {
			return err
		}
		if !p.spaces() && p.peek() != 0 {
			return p.fail("a space or the end")
		}
	}
	if strings.ContainsAny(p.word(), "-~") {
		p.dateAt = p.at
		if err := p.date(c); err != nil {
			return err
		}
		if !p.spaces() && p.peek() != 0 {
			return p.fail("a space or the end")
		}
	}
	c.minutes = []int{0}
	if p.peek() != 0 {
		if err := p.time(c); err != nil {
			return err
		}
	}
	p.spaces()
	if p.peek() != 0 {
		return p.fail("the end")
	}
	return nil
}

// word returns what follows up to the next space.
func (p *calendarParser) word() string {
	word, _, _ := strings.Cut(p.text[p.at:], " ")
	return word
}

func isLetter(b byte) bool { return 'a' <= b|0x20 && b|0x20 <= 'z' }

func isDigit(b byte) bool { return '0' <= b && b <= '9' }

var weekdayNames = []string{"sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"}

func (p *calendarParser) weekdays(c *Calendar) error {
	c.weekdays = nil
	for {
		from, err := p.weekday()
		if err != nil {
			return err
		}
		to := from
		if p.accept("..") {
			if to, err = p.weekday(); err != nil {
				return err
			}
		}
		if to < from { // Fri..Mon
			c.weekdays = append(c.weekdays, span{from, 6, 1}, span{0, to, 1})
		} else {
			c.weekdays = append(c.weekdays, span{from, to, 1})
		}
		if !p.accept(",") {
			return nil
		}
	}
}

func (p *calendarParser) weekday() (int, error) {
	end := p.at
	for end < len(p.text) && isLetter(p.text[end]) {
		end++
	}
	name := strings.ToLower(p.text[p.at:end])
	i := slices.IndexFunc(weekdayNames, func(full string) bool { return name == full || name == full[:3] })
	if i < 0 {
		return 0, p.fail("a day of the week, Mon to Sun")
	}
	p.at = end
	return i, nil
}

func (p *calendarParser) date(c *Calendar) error {
	if strings.Count(p.word(), "-")+strings.Count(p.word(), "~") > 1 {
		if err := p.component(&c.years, anyYear, "a year"); err != nil {
			return err
		}
		if !p.accept("-") {
			return p.fail(`"-" and a month`)
		}
	}
	if err := p.component(&c.months, anyMonth, "a month, 1 to 12"); err != nil {
		return err
	}
	switch {
	case p.accept("-"):
	case p.accept("~"):
		c.fromEnd = true
	default:
		return p.fail(`"-" and a day`)
	}
	return p.component(&c.day, anyDay, "a day, 1 to 31")
}

func (p *calendarParser) time(c *Calendar) error {
	var hours, minutes field
	if err := p.component(&hours, anyHour, "an hour, 0 to 23"); err != nil {
		return err
	}
	if !p.accept(":") {
		return p.fail(`":" and a minute`)
	}
	if err := p.component(&minutes, anyMinute, "a minute, 0 to 59"); err != nil {
		return err
	}
	c.minutes = nil
	for m := range 24 * 60 {
		if hours.has(m/60) && minutes.has(m%60) {
			c.minutes = append(c.minutes, m)
		}
	}
	return nil
}

// component reads "*", "7", "1..5", "0/15", or several of them with commas.
func (p *calendarParser) component(f *field, bounds span, want string) error {
	*f = nil
	for {
		s := bounds
		if !p.accept("*") {
			low, err := p.number(bounds, want)
			if err != nil {
				return err
			}
			s.low, s.high = low, low
			if p.accept("..") {
				if s.high, err = p.number(span{low, bounds.high, 1}, want+", not before the first"); err != nil {
					return err
				}
			} else if p.peek() == '/' {
				s.high = bounds.high
			}
		}
		if p.accept("/") {
			step, err := p.number(span{1, bounds.high, 1}, "a step of 1 or more")
			if err != nil {
				return err
			}
			s.step = step
		}
		if *f = append(*f, s); !p.accept(",") {
			return nil
		}
	}
}

func (p *calendarParser) number(bounds span, want string) (int, error) {
	n, end := 0, p.at
	for end < len(p.text) && end-p.at < 4 && isDigit(p.text[end]) {
		n = n*10 + int(p.text[end]-'0')
		end++
	}
	if end == p.at || n < bounds.low || n > bounds.high {
		return 0, p.fail(want)
	}
	p.at = end
	return n, nil
}
