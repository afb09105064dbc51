package command

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
)

// patience is how long a waiting command bears an appliance that does not answer, as while it is started anew.
const patience = 2 * time.Minute

// waiting are the flags of commands that start a run.
type waiting struct {
	wait        bool
	idempotency string
}

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&w.wait, "wait", false, "wait for the end and show progress; the exit code says how it ended")
	cmd.Flags().StringVar(&w.idempotency, "idempotency-key", "", "start nothing when the appliance was asked with this `KEY` before")
}

// key is the caller's idempotency key, or a fresh one.
func (w *waiting) key() *string {
	if w.idempotency != "" {
		return &w.idempotency
	}
	return ref(rand.Text())
}

// started reports runs that were just started, and with --wait how they end.
func (a *App) started(ctx context.Context, s *remote.Session, w waiting, runs []client.Run) error {
	if !w.wait {
		if err := a.printRuns(runs); err != nil {
			return err
		}
		for _, r := range runs {
			if !ended(r) {
				a.Say("Follow it with \"cairn run watch %s\".", r.ID)
			}
		}
		return nil
	}
	runs, err := a.follow(ctx, s, runs, nil)
	if err != nil {
		return err
	}
	return a.outcome(runs)
}

// follow waits until all runs have ended and shows how far they are. each, if given, is called after each look at
// the runs, before the progress is drawn.
func (a *App) follow(ctx context.Context, s *remote.Session, runs []client.Run, each func(*output.Progress) error) ([]client.Run, error) {
	progress := a.Progress()
	defer progress.Close()
	heard, silent := a.Now(), false
	for {
		open, err := a.look(ctx, s, runs)
		if err == nil && each != nil {
			err = each(progress)
		}
		switch {
		case ctx.Err() != nil:
			progress.Close()
			return nil, a.left(ctx, runs)
		case err == nil:
			heard, silent = a.Now(), false
		case fault.Retryable(err) && a.Now().Sub(heard) < patience:
			if !silent {
				progress.Message("The appliance does not answer; trying again.")
			}
			silent = true
		default:
			return nil, err
		}
		if err == nil {
			if label := runLabel(runs); label != "" {
				progress.Show(progressOf(label, runs))
			}
			if !open {
				return runs, nil
			}
		}
		timer := time.NewTimer(a.poll)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// look asks for every run that has not ended and says whether one is still open.
func (a *App) look(ctx context.Context, s *remote.Session, runs []client.Run) (open bool, err error) {
	for i, r := range runs {
		if ended(r) {
			continue
		}
		resp, err := s.GetRun(ctx, r.ID)
		if runs[i], err = remote.Decode[client.Run](s, resp, err); err != nil {
			runs[i] = r
			return true, err
		}
		open = open || !ended(runs[i])
	}
	return open, nil
}

// left says what happens to runs that nobody waits for any more.
func (a *App) left(ctx context.Context, runs []client.Run) error {
	for _, r := range runs {
		if !ended(r) {
			a.Say("Run %s goes on. Follow it with \"cairn run watch %s\", stop it with \"cairn run cancel %s\".", r.ID, r.ID, r.ID)
		}
	}
	return context.Cause(ctx)
}

func ended(r client.Run) bool { return r.State != client.StateQueued && r.State != client.StateRunning }

// runLabel names what is going on: "backup of web01", or "3 runs".
func runLabel(runs []client.Run) string {
	if len(runs) != 1 {
		return fmt.Sprintf("%d runs", len(runs))
	}
	label := string(runs[0].Kind)
	if names := runVMs(runs[0]); names != "" {
		label += " of " + names
	}
	return label
}

func runVMs(r client.Run) string {
	var names []string
	for _, t := range r.Tasks {
		if t.VMName != "" {
			names = append(names, t.VMName)
		}
	}
	if len(names) > 3 {
		return fmt.Sprintf("%d VMs", len(names))
	}
	return strings.Join(names, ", ")
}

// runRepositories names the repositories that a run is about, by id where no name is known.
func runRepositories(r client.Run, names map[string]string) string {
	var out []string
	for _, t := range r.Tasks {
		if name := cmp.Or(names[t.RepositoryID], t.RepositoryID); name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}

// progressOf adds the tasks of runs up.
func progressOf(label string, runs []client.Run) output.State {
	st := output.State{Label: label}
	phases := map[string]bool{}
	for _, r := range runs {
		for _, t := range r.Tasks {
			st.Done += t.Progress.BytesScanned
			st.Total += t.Progress.BytesTotal
			st.Rate += float64(t.Progress.RateBytesPerSecond)
			st.ETA = max(st.ETA, time.Duration(t.Progress.ETASeconds)*time.Second)
			if t.Progress.Bottleneck != "" {
				st.Note = "limited by " + t.Progress.Bottleneck
			}
			phases[taskPhase(t)] = true
		}
	}
	if st.Total > 0 {
		st.Done = min(st.Done, st.Total) // totals of scrubs are estimates
	}
	if len(phases) == 1 {
		for p := range phases {
			st.Phase = p
		}
	}
	return st
}

func taskPhase(t client.Task) string {
	if t.State == client.StateRunning && t.Phase != "" {
		return t.Phase
	}
	return string(t.State)
}

// outcome prints how runs ended and returns the exit code that follows: the worst counts.
func (a *App) outcome(runs []client.Run) error {
	if err := a.printOutcome(runs); err != nil {
		return err
	}
	for _, r := range runs {
		if len(r.Tasks) == 0 && r.Error.Detail != "" {
			failure.Explain(a.Err, "Error", r.Error.Detail, r.Error.Meaning, r.Error.Advice, a.ColourErr())
		}
		for _, t := range r.Tasks {
			for _, w := range t.Warnings {
				if len(runs) > 1 && t.VMName != "" {
					w = t.VMName + ": " + w
				}
				a.Say("Warning: %s", output.Printable(w))
			}
			if t.Error.Detail != "" {
				what := t.Error.Detail
				if t.VMName != "" {
					what = t.VMName + ": " + what
				}
				failure.Explain(a.Err, "Error", what, t.Error.Meaning, t.Error.Advice, a.ColourErr())
			}
		}
	}
	return worstOf(runs)
}

// worstOf is nil if all runs have succeeded.
func worstOf(runs []client.Run) error {
	code := failure.OK
	for _, r := range runs {
		switch r.State {
		case client.StateFailed, client.StateCancelled:
			code = failure.Failed
		case client.StateWarning:
			if code == failure.OK {
				code = failure.Warning
			}
		}
	}
	if code != failure.OK {
		return failure.Ended{Code: code}
	}
	return nil
}

func (a *App) printOutcome(runs []client.Run) error {
	if !a.Format().Human() {
		return a.printRuns(runs)
	}
	for _, r := range runs {
		for _, t := range r.Tasks {
			if err := a.printTaskOutcome(a.Out, t); err != nil {
				return err
			}
		}
	}
	return nil
}

// printTaskOutcome writes one line: "web01  backup succeeded in 12s  restore point rp_…  1.2 GiB read, 300 MiB stored".
func (a *App) printTaskOutcome(w io.Writer, t client.Task) error {
	state := string(t.State)
	if a.Printer().Colour {
		state = output.StateColour(state)
	}
	words := []string{}
	if t.VMName != "" {
		words = append(words, output.Printable(t.VMName))
	}
	line := string(t.Kind) + " " + state
	if !t.StartedAt.IsZero() && !t.EndedAt.IsZero() {
		line += " in " + output.Duration(t.EndedAt.Sub(t.StartedAt))
	}
	words = append(words, line)
	if t.RestorePointID != "" {
		words = append(words, "restore point "+t.RestorePointID)
	}
	if p := t.Progress; p.BytesTotal > 0 && (t.Kind == client.RunBackup || t.Kind == client.RunRestore) {
		moved := output.Size(p.BytesRead) + " read of " + output.Size(p.BytesTotal)
		if t.Kind == client.RunBackup {
			moved += ", " + output.Size(p.BytesNew) + " new, " + output.Size(p.BytesStored) + " stored"
		}
		words = append(words, moved)
	}
	for _, r := range results(t) {
		words = append(words, r[0]+" "+output.Printable(r[1]))
	}
	_, err := fmt.Fprintln(w, strings.Join(words, "  "))
	return err
}

// printRuns prints one run as an object and several as a list.
func (a *App) printRuns(runs []client.Run) error {
	p := a.Printer()
	if len(runs) == 1 && (p.Format == output.JSON || p.Format == output.YAML) {
		return p.Value(runs[0], nil)
	}
	return output.List(p, runs, func(r client.Run) string { return r.ID }, "No runs.", a.runColumns(nil))
}
