package command

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
	"github.com/cairn-backup/cairn/internal/fault"
)

func ref[T any](v T) *T { return &v }

// page is the largest page there is.
const page = 1000

func listConnections(ctx context.Context, s *remote.Session) ([]client.Connection, error) {
	return remote.All(func(token *string) ([]client.Connection, string, error) {
		resp, err := s.ListConnections(ctx, &client.ListConnectionsParams{Limit: ref(page), PageToken: token})
		l, err := remote.Decode[client.ConnectionList](s, resp, err)
		return l.Items, l.Next, err
	})
}

func listRepositories(ctx context.Context, s *remote.Session) ([]client.Repository, error) {
	return remote.All(func(token *string) ([]client.Repository, string, error) {
		resp, err := s.ListRepositories(ctx, &client.ListRepositoriesParams{Limit: ref(page), PageToken: token})
		l, err := remote.Decode[client.RepositoryList](s, resp, err)
		return l.Items, l.Next, err
	})
}

func listVMs(ctx context.Context, s *remote.Session, filter client.ListVMsParams) ([]client.VM, error) {
	return remote.All(func(token *string) ([]client.VM, string, error) {
		filter.Limit, filter.PageToken = ref(page), token
		resp, err := s.ListVMs(ctx, &filter)
		l, err := remote.Decode[client.VMList](s, resp, err)
		return l.Items, l.Next, err
	})
}

// findConnection accepts an id or a name.
func findConnection(ctx context.Context, s *remote.Session, arg string) (client.Connection, error) {
	all, err := listConnections(ctx, s)
	if err != nil {
		return client.Connection{}, err
	}
	return pick("connection", arg, all, func(c client.Connection) (string, string, string) { return c.ID, c.Name, c.Address })
}

// findRepository accepts an id or a name; nothing means the only one there is.
func findRepository(ctx context.Context, s *remote.Session, arg string) (client.Repository, error) {
	all, err := listRepositories(ctx, s)
	if err != nil {
		return client.Repository{}, err
	}
	if arg == "" && len(all) == 1 {
		return all[0], nil
	}
	if arg == "" && len(all) == 0 {
		return client.Repository{}, fault.New(fault.NotFound, "", "", "there is no repository yet").
			Explain("Backups need a place to go to.", "Make one with \"cairn repository create NAME PATH\".")
	}
	if arg == "" {
		var names []string
		for _, r := range all {
			names = append(names, r.Name)
		}
		return client.Repository{}, failure.UsageError("Choose one with --repository: "+strings.Join(names, ", ")+".",
			"there are %d repositories", len(all))
	}
	return pick("repository", arg, all, func(r client.Repository) (string, string, string) { return r.ID, r.Name, r.Path })
}

// pick finds the one item whose id or name is arg.
func pick[T any](noun, arg string, all []T, names func(T) (id, name, note string)) (T, error) {
	var hits []T
	for _, item := range all {
		id, name, _ := names(item)
		if id == arg {
			return item, nil
		}
		if name == arg {
			hits = append(hits, item)
		}
	}
	var none T
	switch len(hits) {
	case 0:
		return none, fault.New(fault.NotFound, "", "", "there is no %s %q", noun, arg).
			Explain("", fmt.Sprintf("List them with \"cairn %s list\".", strings.ToLower(noun)))
	case 1:
		return hits[0], nil
	}
	lines := []string{fmt.Sprintf("%q is the name of %d %ss:", arg, len(hits), noun)}
	for _, h := range hits {
		id, name, note := names(h)
		lines = append(lines, fmt.Sprintf("%s  %s  %s", id, name, note))
	}
	return none, failure.UsageError("Name one by its id.", "%s", strings.Join(lines, "\n"))
}

// findVM accepts an id, a name, or CONNECTION/NAME. A name that several VMs have means the one that is still there,
// if only one is.
func findVM(ctx context.Context, s *remote.Session, arg string) (client.VM, error) {
	if strings.HasPrefix(arg, "vm_") {
		resp, err := s.GetVM(ctx, arg)
		vm, err := remote.Decode[client.VM](s, resp, err)
		if err == nil || fault.KindOf(err) != fault.NotFound {
			return vm, err
		}
	}
	hits, err := vmsNamed(ctx, s, arg, "")
	if err != nil {
		return client.VM{}, err
	}
	if connection, name, ok := strings.Cut(arg, "/"); ok && len(hits) == 0 {
		c, err := findConnection(ctx, s, connection)
		if err != nil {
			return client.VM{}, err
		}
		if hits, err = vmsNamed(ctx, s, name, c.ID); err != nil {
			return client.VM{}, err
		}
	}
	if here := slices.DeleteFunc(slices.Clone(hits), func(v client.VM) bool { return v.Gone }); len(here) == 1 {
		hits = here
	}
	byName := func(v client.VM) (string, string, string) {
		note := "power " + string(v.Power) + ", connection " + v.ConnectionID
		if v.Gone {
			note = "gone, connection " + v.ConnectionID
		}
		return v.ID, arg, note
	}
	return pick("VM", arg, hits, byName)
}

// vmsNamed lists the VMs of exactly that name: the filter's stars would match more.
func vmsNamed(ctx context.Context, s *remote.Session, name, connection string) ([]client.VM, error) {
	filter := client.ListVMsParams{Name: &name, Gone: ref(true)}
	if connection != "" {
		filter.Connection = &connection
	}
	all, err := listVMs(ctx, s, filter)
	return slices.DeleteFunc(all, func(v client.VM) bool { return v.Name != name }), err
}
