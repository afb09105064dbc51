package command

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
)

func tree(t *testing.T) *cobra.Command {
	t.Helper()
	return (&App{Console: console.New(os.Getenv, os.Stdin, os.Stdout, os.Stderr)}).root()
}

func TestManualPages(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "man1")
	if got := run(t, env{}, "", "man", dir); got.code != 0 || !strings.Contains(got.stderr, "manual pages") {
		t.Fatalf("%+v", got)
	}
	err := eachCommand(tree(t), func(c *cobra.Command) error {
		page, err := os.ReadFile(filepath.Join(dir, pageName(c)+".1"))
		if err != nil {
			return err
		}
		text := string(page)
		for _, section := range []string{".TH ", ".SH NAME\n", ".SH SYNOPSIS\n", ".SH DESCRIPTION\n", ".SH EXIT STATUS\n"} {
			if !strings.Contains(text, section) {
				t.Errorf("%s has no %s", pageName(c), section)
			}
		}
		if c.HasParent() && !strings.Contains(text, `\-\-output`) {
			t.Errorf("%s does not have --output", pageName(c))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	groff, err := exec.LookPath("groff")
	if err != nil {
		if os.Getenv("CAIRN_LAB") != "" {
			t.Fatal(err)
		}
		t.Skip("groff is not installed, so that nobody reads the pages")
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(pages) < 60 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	out, err := exec.CommandContext(t.Context(), groff, append([]string{"-man", "-ww", "-z", "-Tutf8", "-K", "utf8"}, pages...)...).CombinedOutput()
	if strings.Contains(string(out), "preconv") { // not part of the smallest groff
		out, err = exec.CommandContext(t.Context(), groff, append([]string{"-man", "-ww", "-z", "-Tutf8"}, pages...)...).CombinedOutput()
	}
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%.2000s", err, out)
	}
}

func TestEscapesOfPages(t *testing.T) {
	for text, want := range map[string]string{
		".x": `\&.x`, "'x": `\&'x`, `a\b`: `a\eb`, "a-b": `a\-b`, "a.b": "a.b",
	} {
		if got := roff(text); got != want {
			t.Errorf("roff(%q) = %q, want %q", text, got, want)
		}
	}
	if got, want := prose("a\n\n  b\n  c\nd\n"), "a\n.PP\n.nf\n  b\n  c\n.fi\nd\n"; got != want {
		t.Errorf("prose = %q, want %q", got, want)
	}
}

// TestEveryListAndPageCanBeWatched: and every command of a noun says what it does and takes the arguments that it names.
func TestEveryListAndPageCanBeWatched(t *testing.T) {
	watched := 0
	err := eachCommand(tree(t), func(c *cobra.Command) error {
		if c.Short == "" {
			t.Errorf("%s does not say what it does", c.CommandPath())
		}
		if watchable[c.Name()] && c.Parent().Name() != "context" && !strings.HasPrefix(c.CommandPath(), "cairn rescue") {
			watched++
			if c.Flags().Lookup("watch") == nil {
				t.Errorf("%s has no --watch", c.CommandPath())
			}
		}
		return nil
	})
	if err != nil || watched < 15 {
		t.Errorf("%d commands, %v", watched, err)
	}
}
