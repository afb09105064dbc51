package rescue

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/erasure"
)

// scrubbed is what a scrub found.
type scrubbed struct {
	Location string `json:"location"`
	State    string `json:"state"` // ok, degraded or damaged
	store.ScrubReport
	Set *scrubbedSet `json:"set,omitempty"`
}

// scrubbedSet is what it found on the members of a set.
type scrubbedSet struct {
	Layout  erasure.Layout          `json:"layout"`
	CanLose int                     `json:"can_lose"` // more members; -1: something cannot be read now
	Objects int                     `json:"objects"`
	Bytes   int64                   `json:"bytes"` // read from members
	Members []member                `json:"members"`
	Damaged []erasure.DamagedObject `json:"damaged,omitempty"`
}

type member struct {
	erasure.MemberHealth
	Group int `json:"group"`
	Bad   int `json:"bad"` // shards missing or damaged
}

func (t *tool) scrub() *cobra.Command {
	var rate int64
	cmd := &cobra.Command{
		Use: "scrub", Short: "Look for rot in every file of the repository; needs no key", Args: count(0, 0),
		Long: `Read every file of the repository and compare it with its hash. Needs no key, so the host that stores a repository can
run it. On a set it reads every shard on every member first. Nothing is repaired: that is the appliance's. It finds
rot, not forgery, and not files that are gone; "verify" finds these too.

Exit code 1 where something cannot be read any more, 3 where a set has lost redundancy and all can still be read.`,
		Example: `  cairn rescue scrub --repo /srv/backup --rate 100M
  cairn rescue scrub --repo /mnt/disk1 --repo /mnt/disk2 --repo /mnt/disk3`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dirs, err := t.dirs()
			if err != nil {
				return err
			}
			return t.onBackend(cmd.Context(), dirs, func(b backend) error {
				report, err := t.scrubAll(cmd.Context(), b, rate)
				if err != nil {
					return err
				}
				p := t.Printer()
				if err := p.Value(report, func(w io.Writer) error { return scrubPage(p, w, report) }); err != nil {
					return err
				}
				return t.explainScrub(report)
			})
		},
	}
	console.SizeFlag(cmd, &rate, "rate", "read at most so much a second, `SIZE` as 50M; as fast as it goes by default")
	return cmd
}

func (t *tool) scrubAll(ctx context.Context, b backend, rate int64) (scrubbed, error) {
	out := scrubbed{Location: b.Location(), State: "ok"}
	var err error
	if b.set != nil {
		if out.Set, err = t.scrubSet(ctx, b.set, rate); err != nil {
			return out, err
		}
		out.State = out.Set.state()
	}
	show, stop := t.meter("files")
	defer stop()
	out.ScrubReport, err = store.ScrubPart(ctx, readOnly{b.Store}, store.ScrubOptions{BytesPerSecond: rate, Progress: show})
	if len(out.Problems) > 0 {
		out.State = "damaged"
	}
	return out, err
}

func (t *tool) scrubSet(ctx context.Context, s *erasure.Store, rate int64) (*scrubbedSet, error) {
	show, stop := t.meter("shards")
	defer stop()
	report, err := s.Scrub(ctx, erasure.ScrubOptions{BytesPerSecond: rate, NoRepair: true}, func(p erasure.Progress) { show(p.Bytes, p.BytesTotal) })
	if err != nil {
		return nil, err
	}
	health, err := s.Health(ctx)
	if err != nil {
		return nil, err
	}
	out := &scrubbedSet{CanLose: health.CanLose, Objects: report.Objects, Bytes: report.Bytes, Damaged: report.Damaged}
	bad := map[string]int{}
	for _, m := range report.Members {
		bad[m.ID] = m.Bad
	}
	for i, g := range health.Groups {
		out.Layout = g.Layout
		for _, m := range g.Members {
			out.Members = append(out.Members, member{MemberHealth: m, Group: i, Bad: bad[m.ID]})
		}
	}
	return out, nil
}

func (s *scrubbedSet) state() string {
	state := "ok"
	for _, m := range s.Members {
		if m.State != erasure.Online || m.Bad > 0 {
			state = "degraded"
		}
	}
	for _, d := range s.Damaged {
		if d.Lost {
			return "damaged"
		}
		state = "degraded"
	}
	return state
}

func scrubPage(p output.Printer, w io.Writer, s scrubbed) error {
	fields := []output.Field{
		{Name: "Repository", Value: s.Location},
		{Name: "State", Value: s.State, State: true},
	}
	if s.Set != nil {
		fields = append(fields,
			output.Field{Name: "Set", Value: s.Set.Layout.String() + ": " + s.Set.redundancy()},
			output.Field{Name: "Shards read", Value: fmt.Sprintf("%s of %d objects", output.Size(s.Set.Bytes), s.Set.Objects)})
	}
	fields = append(fields,
		output.Field{Name: "Files read", Value: fmt.Sprintf("%s in %d packs", output.Size(s.Bytes), s.Packs)},
		output.Field{Name: "Restore points", Value: fmt.Sprint(s.RestorePoints)})
	fields = append(fields, output.Lines("Problems", s.Problems)...)
	if err := p.Fields(w, append(fields, output.Lines("Notes", s.Notes)...)...); err != nil || s.Set == nil {
		return err
	}
	err := output.Section(p, w, "Members", s.Set.Members, []output.Column[member]{
		{Header: "MEMBER", Value: func(m member) string { return m.ID }},
		{Header: "PATH", Value: func(m member) string { return m.Place }},
		{Header: "DOMAIN", Wide: true, Value: func(m member) string { return m.Domain }},
		{Header: "STATE", State: true, Value: func(m member) string { return string(m.State) }},
		{Header: "BAD SHARDS", Right: true, Value: func(m member) string { return fmt.Sprint(m.Bad) }},
		{Header: "WHY", Value: func(m member) string { return m.Reason }},
	})
	if err != nil {
		return err
	}
	worst := s.Set.worst()
	heading := "Not whole"
	if n := len(s.Set.Damaged) - len(worst); n > 0 {
		heading = fmt.Sprintf("Not whole, and %d more that -o json lists", n)
	}
	return output.Section(p, w, heading, worst, []output.Column[erasure.DamagedObject]{
		{Header: "OBJECT", Value: func(d erasure.DamagedObject) string { return d.Name }},
		{Header: "STATE", State: true, Value: func(d erasure.DamagedObject) string {
			if d.Lost {
				return "damaged"
			}
			return "degraded"
		}},
		{Header: "CAUSE", Value: func(d erasure.DamagedObject) string { return d.Cause }},
	})
}

// worst are the objects to show: those that are lost first, and not all of what only waits for a member.
func (s *scrubbedSet) worst() []erasure.DamagedObject {
	const most = 20
	all := slices.Clone(s.Damaged)
	slices.SortStableFunc(all, func(a, b erasure.DamagedObject) int {
		switch {
		case a.Lost == b.Lost:
			return 0
		case a.Lost:
			return -1
		}
		return 1
	})
	return all[:min(len(all), most)]
}

// redundancy says how many members may go. Of rot inside shards the listings that tell it know nothing.
func (s *scrubbedSet) redundancy() string {
	for _, m := range s.Members {
		if m.Bad > 0 && m.State == erasure.Online {
			return "shards are bad, see below"
		}
	}
	return mayLose(s.CanLose)
}

// mayLose says how many members may go.
func mayLose(n int) string {
	switch {
	case n < 0:
		return "something cannot be read now"
	case n == 0:
		return "no further member may be lost"
	case n == 1:
		return "1 further member may be lost"
	}
	return fmt.Sprintf("%d further members may be lost", n)
}

func (t *tool) explainScrub(s scrubbed) error {
	switch s.State {
	case "damaged":
		failure.Explain(t.Err, "Damaged", "files of the repository are not what was written", "What restore points need of them may be lost.",
			"Run \"cairn rescue verify\" with a key: it names the restore points. Then heal the repository from a copy.", t.ColourErr())
		return failed()
	case "degraded":
		failure.Explain(t.Err, "Degraded", "the set has lost redundancy", "Everything can still be read; the next failure may be one too many.",
			"Bring missing members back or replace them, then let the appliance scrub the repository: it makes the shards again.", t.ColourErr())
		return failure.Ended{Code: failure.Warning}
	}
	return nil
}
