package command

import (
	"bytes"
	"context"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/internal/fault"
)

// sortFlag gives a list its --sort, with what the appliance sorts it by.
func (a *App) sortFlag(cmd *cobra.Command, to *string, by ...string) {
	cmd.Flags().StringVar(to, "sort", "", "sort by `MEMBER`: "+strings.Join(by, ", ")+"; descending after a \"-\"")
	var words []string
	for _, b := range by {
		words = append(words, b, "-"+b)
	}
	_ = cmd.RegisterFlagCompletionFunc("sort", cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
}

// watchable are the verbs that only show something.
var watchable = map[string]bool{"list": true, "show": true, "datastores": true, "networks": true, "space": true, "damage": true, "coverage": true, "history": true}

// letWatch gives --watch to the commands below c that only show something of the appliance and have none of their own.
func (a *App) letWatch(c *cobra.Command) {
	for _, sub := range c.Commands() {
		if sub.Name() == "context" || sub.Name() == "rescue" { // they ask no appliance
			continue
		}
		a.letWatch(sub)
		if !watchable[sub.Name()] || sub.RunE == nil || sub.Flags().Lookup("watch") != nil {
			continue
		}
		var again bool
		sub.Flags().BoolVarP(&again, "watch", "w", false, "show it again whenever something may have changed")
		show := sub.RunE
		sub.RunE = func(cmd *cobra.Command, args []string) error {
			return a.watch(cmd.Context(), again, func(w io.Writer) error {
				defer a.Redirect(w)()
				return show(cmd, args)
			})
		}
	}
}

// watch calls list once, or again and again until it is interrupted: on a terminal it redraws the screen, elsewhere
// it writes what is new. Only the first time the appliance must answer at once; later it may be silent for a while.
func (a *App) watch(ctx context.Context, again bool, list func(io.Writer) error) error {
	if !again {
		return list(a.Out)
	}
	if a.Format() == output.JSON || a.Format() == output.YAML {
		return failure.UsageError("For a stream of JSON use \"cairn event watch -o json\".", "--watch is for people; it does not go with -o %s", a.Format())
	}
	screen := console.IsTerminal(a.Out)
	var last []byte
	heard, seen, silent := a.Now(), false, false
	for {
		var b bytes.Buffer
		err := list(&b)
		switch {
		case err == nil:
			heard, seen, silent = a.Now(), true, false
		case ctx.Err() != nil, !seen, !fault.Retryable(err), a.Now().Sub(heard) >= patience:
			return err
		case !silent:
			a.Say("The appliance does not answer; trying again.")
			silent = true
		}
		if err == nil && !bytes.Equal(b.Bytes(), last) {
			last = b.Bytes()
			if screen {
				if _, err := io.WriteString(a.Out, "\x1b[H\x1b[2J"); err != nil {
					return err
				}
			}
			if _, err := a.Out.Write(last); err != nil {
				return err
			}
		}
		timer := time.NewTimer(a.redraw)
		select {
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
}
