package policy

import (
	"cmp"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/cairn-backup/cairn/internal/fault"
)

// SyntaxError says where a text is wrong, and what was expected there.
type SyntaxError struct {
	Text string
	At   int    // offset in bytes
	Want string // "a value", "the end"
	Got  string // what is there instead; the character there when empty
}

// Error counts characters from 1, as people do.
func (e *SyntaxError) Error() string {
	got := cmp.Or(e.Got, "the end")
	if e.Got == "" && e.At < len(e.Text) {
		r, _ := utf8.DecodeRuneInString(e.Text[e.At:])
		got = strconv.QuoteRune(r)
	}
	return fmt.Sprintf("at character %d: expected %s, got %s", utf8.RuneCountInString(e.Text[:e.At])+1, e.Want, got)
}

// syntax is the error of a text of one of the languages.
func syntax(op, text string, at int, want string) error {
	return fault.Wrap(fault.Invalid, op, strconv.Quote(text), &SyntaxError{Text: text, At: min(at, len(text)), Want: want}).Explain(
		"The text cannot be understood.", "Correct it where the message points to; docs/policies.md has the language, with examples.")
}
