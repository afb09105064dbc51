package command

import (
	"context"
	"net"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/remote"
)

func (a *App) moverDeploy() *cobra.Command {
	var w waiting
	var req client.MoverDeployRequest
	var connection, sessions string
	var memory int
	cmd := &cobra.Command{
		Use: "deploy NAME", Short: "Make a mover VM on a connection", Args: args("NAME"),
		Long: `Make a mover VM: the appliance uploads its mover image into a datastore of the connection, makes a VM of it, starts it
and waits until the mover in it has enrolled. When that fails nothing of it is left. "cairn mover remove" removes the VM, too.

The mover reaches the appliance by the address that this client uses; name another one with --manager.`,
		Example: `  cairn mover deploy m1 --connection host1 --wait
  cairn mover deploy m1 --connection host1 --datastore fast --network bridge:br0 --address 192.0.2.20/24 --gateway 192.0.2.1`,
		RunE: a.ask(func(ctx context.Context, s *remote.Session, args []string) error {
			c, err := findConnection(ctx, s, connection)
			if err != nil {
				return err
			}
			req.Name, req.Connection, req.MemoryBytes = args[0], c.ID, int64(memory)<<20
			if req.Manager == "" {
				if req.Manager = reachable(s.Server); req.Manager == "" {
					return failure.UsageError("Name the appliance's address in the mover's network, for example --manager 192.0.2.10.",
						"a mover on another machine cannot reach the appliance at %s", s.Server)
				}
			}
			if err := a.addSessions(&req, sessions); err != nil {
				return err
			}
			resp, err := s.DeployMover(ctx, &client.DeployMoverParams{IdempotencyKey: w.key()}, req)
			run, err := remote.Decode[client.Run](s, resp, err)
			if err != nil {
				return err
			}
			return a.started(ctx, s, w, []client.Run{run})
		}),
	}
	w.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&connection, "connection", "", "`CONNECTION` on which the VM is made")
	f.StringVar(&req.Datastore, "datastore", "", "`DATASTORE` for its disks; the roomiest that will do by default")
	f.StringVar(&req.Network, "network", "", "`NETWORK` of the VM; may be left out where there is only one")
	f.StringVar(&req.Address, "address", "", "the mover's `ADDRESS/PREFIX`; DHCP by default")
	f.StringVar(&req.Gateway, "gateway", "", "with --address: its `GATEWAY`")
	f.StringArrayVar(&req.DNS, "dns", nil, "with --address: a name `SERVER`; may be repeated")
	f.StringArrayVar(&req.Storage, "storage", nil, "with a Debian mover's image: a `SHARE` with repositories, nfs://HOST/PATH, that it writes to itself; may be repeated")
	f.StringArrayVar(&req.Sessions, "session", nil, "with a Debian mover's image: a `TARGET` on the storage network whose LUNs it reads, iscsi://PORTAL/IQN or nvme+tcp://ADDRESS/NQN; may be repeated")
	f.StringVar(&sessions, "sessions-file", "", "`FILE` with such targets, one a line, also those with CHAP: iscsi://NAME:SECRET@PORTAL/IQN; - for standard input")
	f.StringVar(&req.Manager, "manager", "", "`HOST[:PORT]` under which the mover reaches the appliance, where that is not this client's")
	f.StringVar(&req.Image, "image", "", "`PATH` on the appliance of another mover image")
	f.IntVar(&req.CPUs, "cpus", 0, "`NUMBER` of the VM's CPUs; 2 by default")
	f.IntVar(&memory, "memory", 0, "the VM's memory in `MIB`; 1024 by default")
	_ = cmd.MarkFlagRequired("connection")
	_ = cmd.RegisterFlagCompletionFunc("connection", a.completeConnections)
	for _, name := range []string{"datastore", "network", "address", "gateway", "dns", "storage", "session", "manager", "image", "cpus", "memory"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

// addSessions adds the targets of a file. Secrets on a command line are refused: everybody on this machine can read it.
func (a *App) addSessions(req *client.MoverDeployRequest, file string) error {
	for _, text := range req.Sessions {
		if u, err := url.Parse(text); err != nil || u.User != nil {
			return failure.UsageError("Put targets with CHAP into a file that only you can read, and name it with --sessions-file.",
				"a secret on a command line can be read by everybody on this machine")
		}
	}
	if file == "" {
		return nil
	}
	text, err := a.ReadSecret(file)
	req.Sessions = append(req.Sessions, strings.Fields(text)...)
	return err
}

// reachable is the host by which this client knows the appliance; "" if only this machine knows it so.
func reachable(address string) string {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "localhost" {
		return ""
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLoopback() {
		return ""
	}
	return u.Hostname()
}
