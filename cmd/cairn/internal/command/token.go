package command

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func listTokens(ctx context.Context, s *remote.Session) ([]client.Token, error) {
	return remote.All(func(token *string) ([]client.Token, string, error) {
		resp, err := s.ListTokens(ctx, &client.ListTokensParams{Limit: ref(page), PageToken: token})
		l, err := remote.Decode[client.TokenList](s, resp, err)
		return l.Items, l.Next, err
	})
}

func (a *App) tokens() *cobra.Command {
	group := a.group("token", "API tokens, for scripts and other programs", "")
	var days int
	var scope string
	create := &cobra.Command{
		Use: "create NAME", Short: "Create an API token and print it, once", Args: args("NAME"), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.CreateToken(ctx, nil, client.CreateTokenRequest{Name: args[0], ExpiresInDays: days, Scope: client.TokenScope(scope)})
			t, err := remote.Decode[client.IssuedToken](s, resp, err)
			if err != nil {
				return err
			}
			a.Say("Token %s, valid until %s. It is shown only now:", t.Token.ID, output.Time(t.Token.ExpiresAt, a.Location))
			return a.one(t, t.Secret, func(_ output.Printer, w io.Writer) error {
				_, err := fmt.Fprintln(w, t.Secret)
				return err
			})
		}),
	}
	create.Flags().IntVar(&days, "days", 0, "valid for `N` days; the appliance's default when not given")
	create.Flags().StringVar(&scope, "scope", "", "what it is good for: `all` or metrics, which is /metrics only; all when not given")
	_ = create.RegisterFlagCompletionFunc("scope", cobra.FixedCompletions([]string{"all", "metrics"}, cobra.ShellCompDirectiveNoFileComp))
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List your API tokens, never their secrets", Args: args(),
		RunE: a.ask(func(ctx context.Context, s *remote.Session, _ []string) error {
			all, err := listTokens(ctx, s)
			if err != nil {
				return err
			}
			return output.List(a.Printer(), all, func(t client.Token) string { return t.ID }, "No tokens.", []output.Column[client.Token]{
				{Header: "TOKEN", Value: func(t client.Token) string { return t.ID }},
				{Header: "NAME", Value: func(t client.Token) string { return t.Name }},
				{Header: "SCOPE", Value: func(t client.Token) string { return string(t.Scope) }},
				{Header: "USER", Value: func(t client.Token) string { return t.User }},
				{Header: "EXPIRES", Value: func(t client.Token) string { return output.Time(t.ExpiresAt, a.Location) }},
				{Header: "LAST USED", Right: true, Value: func(t client.Token) string { return a.age(t.LastUsedAt) }},
			})
		}),
	}
	remove := &cobra.Command{
		Use: "remove TOKEN", Aliases: []string{"rm"}, Short: "Make an API token useless", Args: args("TOKEN"), ValidArgsFunction: a.completeTokens,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			resp, err := s.DeleteToken(ctx, args[0], nil)
			return remote.Done(s, resp, err)
		}),
	}
	group.AddCommand(create, list, remove)
	return group
}
