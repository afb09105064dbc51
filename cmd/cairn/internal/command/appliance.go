package command

import (
	"context"
	"io"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) appliance() *cobra.Command {
	group := a.group("appliance", "The appliance itself: where its configuration is saved, and its recovery", "")
	group.AddCommand(a.applianceShow(), a.applianceResume())
	return group
}

func (a *App) applianceShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Show which appliance this is, and where its configuration is saved", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			resp, err := s.GetAppliance(ctx)
			app, err := remote.Decode[client.Appliance](s, resp, err)
			if err != nil {
				return err
			}
			return a.showAppliance(app)
		}),
	}
}

func (a *App) applianceResume() *cobra.Command {
	return &cobra.Command{
		Use: "resume", Short: "Let policies and maintenance begin again after a recovery", Args: args(),
		Long: "Let policies and maintenance begin again after a recovery.\n" +
			"Make sure first that the machine the appliance was on does not run it any more. What was due before is not caught up.",
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			resp, err := s.ResumeAppliance(ctx)
			app, err := remote.Decode[client.Appliance](s, resp, err)
			if err != nil {
				return err
			}
			return a.showAppliance(app)
		}),
	}
}

func (a *App) showAppliance(app client.Appliance) error {
	return a.one(app, app.ID, func(p output.Printer, w io.Writer) error {
		fields := []output.Field{
			{Name: "ID", Value: app.ID},
			{Name: "Incarnation", Value: strconv.Itoa(app.Incarnation)},
			{Name: "State", Value: string(app.State), State: true},
		}
		if app.RecoveredFrom != "" {
			fields = append(fields, output.Field{Name: "Recovered", Value: a.when(app.RecoveredAt) + " from " + app.RecoveredFrom})
		}
		if app.SupersededBy != "" {
			fields = append(fields, output.Field{Name: "Superseded", Value: a.when(app.SupersededAt) + " by the one " + app.SupersededBy})
		}
		if app.State == client.ApplianceHeld {
			fields = append(fields, output.Field{Name: "Next", Value: "nothing begins by itself; see that the old appliance does not run any more, then \"cairn appliance resume\""})
		}
		if err := p.Fields(w, fields...); err != nil {
			return err
		}
		return output.Section(p, w, "Configuration", app.Configuration, []output.Column[client.ConfigurationSave]{
			{Header: "REPOSITORY", Value: func(c client.ConfigurationSave) string { return c.Repository }},
			{Header: "STATE", State: true, Value: func(c client.ConfigurationSave) string { return string(c.State) }},
			{Header: "SAVED", Value: func(c client.ConfigurationSave) string { return a.when(c.SavedAt) }},
			{Header: "WHY", Value: func(c client.ConfigurationSave) string { return c.Error.Detail }},
		})
	})
}
