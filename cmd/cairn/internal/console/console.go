// Package console is one run of the command line as its commands see it: streams, environment, output flags and
// whether a person is watching.
//
// It knows no commands and no servers. Its one invariant: standard output carries data only; questions, progress and
// messages go to standard error.
package console

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
)

// Console holds the streams of one run. The zero values of the hooks below mean the real thing.
type Console struct {
	Getenv func(string) string
	In     io.Reader
	Out    io.Writer
	Err    io.Writer

	Now      func() time.Time // for ages in tables
	Location *time.Location   // for times in tables

	screen  io.Writer // where Out ends up while it is redirected
	format  string
	Yes     bool
	Verbose bool

	lines *bufio.Reader
}

// New makes a console of a process's streams.
func New(getenv func(string) string, in io.Reader, out, err io.Writer) *Console {
	return &Console{Getenv: getenv, In: in, Out: out, Err: err, Now: time.Now, Location: time.Local}
}

// Redirect lets what is written to Out go to w, in the colours of what Out was, until the function that it returns is called.
func (c *Console) Redirect(w io.Writer) (back func()) {
	out, screen := c.Out, c.screen
	if c.screen == nil {
		c.screen = out
	}
	c.Out = w
	return func() { c.Out, c.screen = out, screen }
}

// AddFlags registers the flags that every command has.
func (c *Console) AddFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVarP(&c.format, "output", "o", "table", "output `FORMAT`: "+strings.Join(output.Formats(), ", "))
	f.BoolVarP(&c.Yes, "yes", "y", false, "answer yes to every question")
	f.BoolVarP(&c.Verbose, "verbose", "v", false, "say more on standard error")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(output.Formats(), cobra.ShellCompDirectiveNoFileComp))
}

// Check refuses an unknown output format before anything is done.
func (c *Console) Check() error {
	_, err := output.ParseFormat(c.format)
	return err
}

// Printer returns the printer for standard output.
func (c *Console) Printer() output.Printer {
	shown := c.Out
	if c.screen != nil {
		shown = c.screen
	}
	return output.Printer{Out: c.Out, Format: output.Format(c.format), Colour: c.colour(shown)}
}

// Format returns the output format.
func (c *Console) Format() output.Format { return output.Format(c.format) }

// ColourErr reports whether standard error takes colours.
func (c *Console) ColourErr() bool { return c.colour(c.Err) }

func (c *Console) colour(w io.Writer) bool {
	return c.Getenv("NO_COLOR") == "" && c.Getenv("TERM") != "dumb" && IsTerminal(w)
}

// IsTerminal reports whether a stream is a terminal.
func IsTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Progress returns a progress display on standard error.
func (c *Console) Progress() *output.Progress {
	width := func() int {
		if f, ok := c.Err.(*os.File); ok {
			if w, _, err := term.GetSize(int(f.Fd())); err == nil {
				return w
			}
		}
		return 0
	}
	return output.NewProgress(c.Err, IsTerminal(c.Err) && c.Getenv("TERM") != "dumb", width)
}

// Say writes a message to standard error.
func (c *Console) Say(format string, args ...any) {
	fmt.Fprintf(c.Err, format+"\n", args...)
}

// Debug writes a message to standard error with --verbose only.
func (c *Console) Debug(format string, args ...any) {
	if c.Verbose {
		c.Say(format, args...)
	}
}

// Confirm asks a yes-or-no question. Without a terminal and without --yes it is an error: silence is no consent.
func (c *Console) Confirm(ctx context.Context, format string, args ...any) error {
	if c.Yes {
		return nil
	}
	question := fmt.Sprintf(format, args...)
	if !IsTerminal(c.In) {
		return failure.UsageError("Repeat the command with --yes.", "%s Nobody is there to answer, so nothing was done", question)
	}
	fmt.Fprintf(c.Err, "%s [y/N] ", output.Printable(question))
	answer, err := c.await(ctx, c.line)
	if err != nil {
		return err
	}
	if a := strings.ToLower(answer); a != "y" && a != "yes" {
		c.Say("Nothing was done.")
		return failure.Ended{Code: failure.Failed}
	}
	return nil
}

// Ask asks for a line of text on a terminal; elsewhere it fails with advice, as what names it.
func (c *Console) Ask(ctx context.Context, what, advice string) (string, error) {
	if !IsTerminal(c.In) {
		return "", failure.UsageError(advice, "no %s was given", what)
	}
	fmt.Fprintf(c.Err, "%s: ", upperFirst(what))
	return c.await(ctx, c.line)
}

// AskSecret is Ask without showing what is typed.
func (c *Console) AskSecret(ctx context.Context, what, advice string) (string, error) {
	f, ok := c.In.(*os.File)
	if !ok || !IsTerminal(c.In) {
		return "", failure.UsageError(advice, "no %s was given", what)
	}
	fmt.Fprintf(c.Err, "%s: ", upperFirst(what))
	fd := int(f.Fd())
	shown, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	secret, err := c.await(ctx, func() (string, error) {
		b, err := term.ReadPassword(fd)
		return string(b), err
	})
	fmt.Fprintln(c.Err)
	if err != nil {
		_ = term.Restore(fd, shown) // an interrupted question must not leave a terminal that shows nothing
		return "", fmt.Errorf("read %s: %w", what, err)
	}
	return secret, nil
}

// await reads an answer, or gives up when ctx ends: the terminal's own read cannot be interrupted, so it stays behind
// until the program ends, which it is about to.
func (c *Console) await(ctx context.Context, read func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		text, err := read()
		got <- answer{text, err}
	}()
	select {
	case a := <-got:
		return a.text, a.err
	case <-ctx.Done():
		fmt.Fprintln(c.Err)
		return "", context.Cause(ctx)
	}
}

// ReadSecret reads a secret from a file, or from standard input where path is "-"; one newline at the end is cut off.
func (c *Console) ReadSecret(path string) (string, error) {
	const limit = 64 << 10
	in := c.In
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read secret: %w", err)
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, limit))
	if err != nil {
		return "", fmt.Errorf("read secret: %w", err)
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if s == "" {
		return "", failure.UsageError("", "the secret in %s is empty", path)
	}
	return s, nil
}

func (c *Console) line() (string, error) {
	if c.lines == nil {
		c.lines = bufio.NewReader(c.In)
	}
	s, err := c.lines.ReadString('\n')
	if err != nil && s == "" {
		return "", fmt.Errorf("read answer: %w", err)
	}
	return strings.TrimSpace(s), nil
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
