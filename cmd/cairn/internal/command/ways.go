package command

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
)

// ways are the flags that say how disks are read or written.
type ways struct {
	mover, transport string
	fallback         bool
}

var transports = []string{"network", "hotadd", "san"}

// flags adds them to a command; verb is what the mover shall do with the disks.
func (x *ways) flags(a *App, cmd *cobra.Command, verb string) {
	f := cmd.Flags()
	f.StringVar(&x.mover, "mover", "", "this `MOVER` shall "+verb+" the disks; chosen by default")
	f.StringVar(&x.transport, "transport", "", "the `WAY` to the disks: network, hotadd or san; chosen for each disk by default")
	f.BoolVar(&x.fallback, "fallback", false, "when the way to a disk fails go another one, with a warning")
	_ = cmd.RegisterFlagCompletionFunc("mover", a.completeMovers)
	_ = cmd.RegisterFlagCompletionFunc("transport", cobra.FixedCompletions(transports, cobra.ShellCompDirectiveNoFileComp))
}

// notChosen is a mover or transport that a disk did not go by.
type notChosen struct {
	disk string
	client.RejectedWay
}

// waysNotTaken shows why each disk went the way it went.
func waysNotTaken(p output.Printer, w io.Writer, transfers []client.Transfer) error {
	var all []notChosen
	var chosen []client.Transfer
	for _, t := range transfers {
		if t.ChosenBecause != "" {
			chosen = append(chosen, t)
		}
		for _, r := range t.Rejected {
			all = append(all, notChosen{t.Disk, r})
		}
	}
	if len(all) == 0 {
		return nil
	}
	err := output.Section(p, w, "Ways taken", chosen, []output.Column[client.Transfer]{
		{Header: "DISK", Value: func(t client.Transfer) string { return t.Disk }},
		{Header: "MOVER", Value: func(t client.Transfer) string { return t.Mover }},
		{Header: "TRANSPORT", Value: func(t client.Transfer) string { return t.Transport }},
		{Header: "WHY", Value: func(t client.Transfer) string { return t.ChosenBecause }},
	})
	if err != nil {
		return err
	}
	return output.Section(p, w, "Ways not taken", all, []output.Column[notChosen]{
		{Header: "DISK", Value: func(n notChosen) string { return n.disk }},
		{Header: "MOVER", Value: func(n notChosen) string { return n.Mover }},
		{Header: "TRANSPORT", Value: func(n notChosen) string { return n.Transport }},
		{Header: "WHY NOT", Value: func(n notChosen) string { return n.Reason }},
	})
}
