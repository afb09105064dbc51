package rescue

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// verdict is what came of reading one restore point back.
type verdict struct {
	RestorePoint string         `json:"restore_point"`
	VM           string         `json:"vm"`
	Good         bool           `json:"good"`
	Bytes        int64          `json:"bytes"`
	Damage       []store.Damage `json:"damage,omitempty"`
	Error        string         `json:"error,omitempty"`
}

func (t *tool) verify() *cobra.Command {
	var vm string
	cmd := &cobra.Command{
		Use: "verify [POINT...]", Short: "Read restore points back and check every byte; all of them by default", Args: cobra.ArbitraryArgs,
		Long: `Read restore points back and check every byte. Without arguments all of them: then every file of the repository is read
once, however many restore points share it. Exit code 1 where something is damaged, and the restore point, disk and
place of the damage are named.`,
		Example: `  cairn rescue verify --repo /srv/backup --key backup.key
  cairn rescue verify latest --vm web01 --repo /srv/backup --key backup.key`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.use(cmd.Context(), func(r *store.Repository) error {
				chosen, listErr := choose(cmd.Context(), r, args, vm)
				if listErr != nil && len(chosen) == 0 {
					return listErr
				}
				var swept store.SweepReport
				var err error
				if len(args) == 0 && vm == "" {
					if swept, err = t.sweep(cmd.Context(), r); err != nil {
						return err
					}
				}
				verdicts, err := t.verifyAll(cmd.Context(), r, chosen)
				if err != nil {
					return err
				}
				if err := t.printVerdicts(verdicts); err != nil {
					return err
				}
				rotten := t.explainFiles(swept)
				if listErr != nil {
					return listErr
				}
				if rotten || slices.ContainsFunc(verdicts, func(v verdict) bool { return !v.Good }) {
					return failed()
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&vm, "vm", "", "only restore points of this `VM`")
	return cmd
}

// sweep reads every pack once. Which restore points it has proven, the repository knows then.
func (t *tool) sweep(ctx context.Context, r *store.Repository) (store.SweepReport, error) {
	show, stop := t.meter("all files")
	defer stop()
	report, err := r.Sweep(ctx, store.SweepOptions{Progress: func(p store.SweepProgress) { show(p.Bytes, p.BytesTotal) }})
	if err != nil && (ctx.Err() != nil || fault.KindOf(err) != fault.Corrupt) {
		return report, err
	}
	return report, nil
}

// explainFiles names damaged files on standard error and reports whether there are any.
func (t *tool) explainFiles(swept store.SweepReport) bool {
	const most = 20
	var lines []string
	for _, d := range swept.Damage {
		lines = append(lines, d.Pack+": "+d.Cause)
	}
	lines = append(lines, swept.Problems...)
	if len(lines) == 0 {
		return false
	}
	n := len(lines)
	if n > most {
		lines = append(lines[:most], fmt.Sprintf("and %d more", n-most))
	}
	failure.Explain(t.Err, "Damaged", fmt.Sprintf("files of the repository are damaged (%d)\n%s", n, strings.Join(lines, "\n")),
		"What restore points need of them, and is nowhere else, is lost until it is healed.",
		"Have the appliance heal the repository, or bring these files back from a copy of it.", t.ColourErr())
	return true
}

// choose returns the restore points that are named, or all. It may return both points and the error that kept others
// from being listed.
func choose(ctx context.Context, r *store.Repository, args []string, vm string) ([]store.RestorePoint, error) {
	var chosen []store.RestorePoint
	for _, arg := range args {
		p, err := find(ctx, r, arg, vm)
		if err != nil {
			return nil, err
		}
		chosen = append(chosen, p)
	}
	if len(args) > 0 {
		return chosen, nil
	}
	all, err := points(ctx, r)
	for _, p := range all {
		if of(p, vm) {
			chosen = append(chosen, p)
		}
	}
	return chosen, err
}

// verifyAll reads restore points back, but for those that a sweep has proven already.
func (t *tool) verifyAll(ctx context.Context, r *store.Repository, chosen []store.RestorePoint) ([]verdict, error) {
	var verdicts []verdict
	proven, err := r.LastVerified(ctx)
	if err != nil {
		return nil, err
	}
	for i, p := range chosen {
		v := verdict{RestorePoint: p.ID, VM: describe(p).VM}
		if _, ok := proven[p.ID]; ok {
			v.Good, v.Bytes = true, wholeSize(p)
			verdicts = append(verdicts, v)
			continue
		}
		show, stop := t.meter(fmt.Sprintf("%d/%d %s", i+1, len(chosen), p.ID))
		report, err := r.Verify(ctx, p.ID, show)
		stop()
		if err != nil && (ctx.Err() != nil || fault.KindOf(err) != fault.Corrupt) {
			return verdicts, err
		}
		v.Bytes, v.Damage = report.Bytes, tidy(report.Damage)
		if err != nil {
			v.Error = err.Error()
		}
		v.Good = err == nil && len(v.Damage) == 0
		verdicts = append(verdicts, v)
	}
	return verdicts, nil
}

// wholeSize is the size of a restore point's disks and documents.
func wholeSize(p store.RestorePoint) (n int64) {
	for _, image := range p.Images {
		n += image.Ref.SizeBytes
	}
	for _, d := range p.Documents {
		n += d.SizeBytes
	}
	return n
}

// meter returns a progress function that may be called from any goroutine, and what ends it.
func (t *tool) meter(label string) (show func(done, total int64), stop func()) {
	var mu sync.Mutex
	progress := t.Progress()
	var high int64
	show = func(done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		high = max(high, done)
		total = max(total, high) // that of a scrub of shards is an estimate
		progress.Show(output.State{Label: label, Done: high, Total: total})
	}
	return show, progress.Close
}

func (t *tool) printVerdicts(verdicts []verdict) error {
	err := output.List(t.Printer(), verdicts, func(v verdict) string { return v.RestorePoint }, "Nothing to verify.", []output.Column[verdict]{
		{Header: "RESTORE POINT", Value: func(v verdict) string { return v.RestorePoint }},
		{Header: "VM", Value: func(v verdict) string { return v.VM }},
		{Header: "RESULT", State: true, Value: result},
		{Header: "PROVEN", Right: true, Value: func(v verdict) string { return output.Size(v.Bytes) }},
		{Header: "DAMAGED PLACES", Right: true, Value: func(v verdict) string {
			if len(v.Damage) == 0 {
				return ""
			}
			return fmt.Sprint(len(v.Damage))
		}},
	})
	if err != nil {
		return err
	}
	for _, v := range verdicts {
		t.explainDamage(v)
	}
	return nil
}

func result(v verdict) string {
	if v.Good {
		return "ok"
	}
	return "damaged"
}

// explainDamage names the first damaged places on standard error; -o json has them all.
func (t *tool) explainDamage(v verdict) {
	if v.Good {
		return
	}
	what := fmt.Sprintf("restore point %s of %s is damaged", v.RestorePoint, v.VM) + places(v.Damage)
	if v.Error != "" && len(v.Damage) == 0 {
		what += "\n" + v.Error
	}
	failure.Explain(t.Err, "Damaged", what, "These ranges cannot be restored from here; everything else can.",
		"Restore another restore point, bring the damaged files back from a copy of the repository, or export what is left with --damaged-as-zeros.", t.ColourErr())
}

func (t *tool) check() *cobra.Command {
	return &cobra.Command{
		Use: "check", Short: "Look at the structure of the repository, without reading all data", Args: count(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return t.use(cmd.Context(), func(r *store.Repository) error {
				report, err := r.Check(cmd.Context())
				if err != nil {
					return err
				}
				p := t.Printer()
				err = p.Value(report, func(w io.Writer) error {
					state := "ok"
					if len(report.Problems) > 0 {
						state = "damaged"
					}
					fields := []output.Field{
						{Name: "Repository", Value: r.ID()},
						{Name: "State", Value: state, State: true},
						{Name: "Restore points", Value: fmt.Sprint(report.RestorePoints)},
						{Name: "Packs", Value: fmt.Sprint(report.Packs)},
					}
					return p.Fields(w, append(append(fields, output.Lines("Problems", report.Problems)...), output.Lines("Notes", report.Notes)...)...)
				})
				if err == nil && len(report.Problems) > 0 {
					return failed()
				}
				return err
			})
		},
	}
}
