package command

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/profile"
)

// contextView is a context as it is shown: without its token.
type contextView struct {
	profile.Context
	Current  bool `json:"current"`
	LoggedIn bool `json:"logged_in"`
}

func view(config profile.Config, c profile.Context) contextView {
	return contextView{Context: c, Current: c.Name == config.Current, LoggedIn: c.Token != ""}
}

func (a *App) contexts() *cobra.Command {
	group := a.group("context", "The appliances this command line knows", "")
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List contexts", Args: args(),
		RunE: func(*cobra.Command, []string) error {
			config, _, err := a.config()
			if err != nil {
				return err
			}
			var views []contextView
			for _, c := range config.Contexts {
				views = append(views, view(config, c))
			}
			return output.List(a.Printer(), views, func(v contextView) string { return v.Name },
				"No contexts. Make one with \"cairn login https://HOST:PORT\".", contextColumns)
		},
	}
	use := &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one", Args: args("NAME"), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			config, path, err := a.config()
			if err != nil {
				return err
			}
			c, err := config.Find(args[0])
			if err != nil {
				return err
			}
			config.Put(c)
			if err := config.Save(path); err != nil {
				return err
			}
			a.Say("Using %q, %s.", c.Name, c.Server)
			return nil
		},
	}
	remove := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Forget a context and its token", Args: args("NAME"), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			config, path, err := a.config()
			if err != nil {
				return err
			}
			if err := config.Remove(args[0]); err != nil {
				return err
			}
			return config.Save(path)
		},
	}
	group.AddCommand(list, use, a.contextShow(), remove)
	return group
}

func (a *App) contextShow() *cobra.Command {
	return &cobra.Command{
		Use: "show [NAME]", Short: "Show a context, the current one by default", Args: args("[NAME]"), ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			config, path, err := a.config()
			if err != nil {
				return err
			}
			var c profile.Context
			if len(args) == 1 {
				c, err = config.Find(args[0])
			} else {
				c, err = profile.Resolve(config, a.choice, a.Getenv)
			}
			if err != nil {
				return err
			}
			v := view(config, c)
			p := a.Printer()
			if p.Format == output.Name {
				_, err := io.WriteString(a.Out, c.Name+"\n")
				return err
			}
			return p.Value(v, func(w io.Writer) error {
				return p.Fields(w,
					output.Field{Name: "Name", Value: v.Name},
					output.Field{Name: "Current", Value: yesNo(v.Current)},
					output.Field{Name: "Server", Value: v.Server},
					output.Field{Name: "CA fingerprint", Value: v.CAFingerprint},
					output.Field{Name: "CA file", Value: v.CAFile},
					output.Field{Name: "User", Value: v.User},
					output.Field{Name: "Logged in", Value: yesNo(v.LoggedIn)},
					output.Field{Name: "Stored in", Value: path})
			})
		},
	}
}

var contextColumns = []output.Column[contextView]{
	{Header: "CURRENT", Value: func(v contextView) string {
		if v.Current {
			return "*"
		}
		return " "
	}},
	{Header: "NAME", Value: func(v contextView) string { return v.Name }},
	{Header: "SERVER", Value: func(v contextView) string { return v.Server }},
	{Header: "USER", Value: func(v contextView) string { return v.User }},
	{Header: "LOGGED IN", State: true, Value: func(v contextView) string { return yesNo(v.LoggedIn) }},
	{Header: "CA", Wide: true, Value: func(v contextView) string { return v.CAFingerprint + v.CAFile }},
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
