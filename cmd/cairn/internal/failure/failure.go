// Package failure turns errors into what the command line ends with: an exit code, and words on standard error.
//
// It makes no errors of its own besides Ended. Its one invariant: the exit code follows from the kind of the error
// alone, never from its text.
package failure

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Code is an exit code; scripts depend on them.
type Code int

// The exit codes.
const (
	OK          Code = 0
	Failed      Code = 1   // it did not work, or what was verified is damaged
	Usage       Code = 2   // the command, a flag or a value is wrong
	Warning     Code = 3   // it worked, but not all of it: somebody should look
	Denied      Code = 4   // credentials or certificates are missing, wrong or too weak
	NotFound    Code = 5   // what was named is not there
	Conflict    Code = 6   // it exists already, or its state does not allow it now
	Interrupted Code = 130 // Ctrl-C
)

// Help describes the exit codes for the help text.
const Help = `Exit codes:
  0    success
  1    failed
  2    wrong command, flag or value
  3    succeeded with warnings, or only in part
  4    not authenticated, not allowed, or the server's certificate is not trusted
  5    not found
  6    conflict: exists already, or not possible in its present state
  130  interrupted`

// Ended says that the command did what it should and that the outcome, which it has reported already, was not good.
type Ended struct{ Code Code }

// Error names the code; it is not meant to be printed.
func (e Ended) Error() string { return fmt.Sprintf("ended with code %d", e.Code) }

// CodeOf returns the exit code for err.
func CodeOf(err error) Code {
	if err == nil {
		return OK
	}
	if e, ok := errors.AsType[Ended](err); ok {
		return e.Code
	}
	switch fault.KindOf(err) {
	case fault.Invalid:
		return Usage
	case fault.Denied:
		return Denied
	case fault.NotFound:
		return NotFound
	case fault.Exists, fault.Conflict:
		return Conflict
	case fault.Canceled:
		return Interrupted
	}
	return Failed
}

// Print says on w what happened, what it means and what to do. An Ended error was reported where it arose.
func Print(w io.Writer, err error, colour bool) {
	if _, ok := errors.AsType[Ended](err); ok || err == nil {
		return
	}
	meaning, advice := fault.Explanation(err)
	Explain(w, "Error", err.Error(), meaning, advice, colour)
}

// Explain writes the three parts of every error below each other, leaving out those that are empty.
func Explain(w io.Writer, label, what, meaning, advice string, colour bool) {
	head := label + ":"
	if colour {
		head = "\x1b[1;31m" + head + "\x1b[0m"
	}
	lines := strings.Split(strings.TrimRight(what, "\n"), "\n")
	fmt.Fprintf(w, "%s %s\n", head, output.Printable(lines[0]))
	for _, l := range lines[1:] {
		fmt.Fprintf(w, "  %s\n", output.Printable(l))
	}
	if meaning != "" {
		fmt.Fprintf(w, "  What it means: %s\n", output.Printable(meaning))
	}
	if advice != "" {
		fmt.Fprintf(w, "  What to do:    %s\n", output.Printable(advice))
	}
}

// UsageError makes an error of the Usage code.
func UsageError(advice, format string, args ...any) error {
	return fault.New(fault.Invalid, "", "", format, args...).Explain("", advice)
}
