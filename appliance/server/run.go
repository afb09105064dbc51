package server

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/appliance/identity"
	"github.com/cairn-backup/cairn/appliance/support"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// drainTime is how long a stop may take for cancelling what runs and cleaning the platforms up.
const drainTime = 2 * time.Minute

// abandonTime is how long a manager that has lost the database may take: less than the rest of its lease.
const abandonTime = 5 * time.Second

type settings struct {
	dir, listen, movers string
	source              string // where the database's address is
	database            catalog.Secret
	workers             int
	notify              string // systemd's socket, "" without
	images              string
	rate                httpapi.Rate
	vmSeries            bool
	hosts               []string
	level               slog.Level
}

// ownNames are the names and addresses under which this machine may be spoken to.
func ownNames() []string {
	names := []string{"localhost"}
	if h, err := os.Hostname(); err == nil {
		names = append(names, h)
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return append(names, "127.0.0.1", "::1")
	}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLinkLocalUnicast() {
			names = append(names, n.IP.String())
		}
	}
	return names
}

// Run is cairnd: it works until ctx is done, then drains. What a person needs to know is printed on stdout, the log
// goes to stderr. `cairnd config`, `cairnd migrate`, `cairnd recover`, `cairnd health` and `cairnd support` do something else, and end.
func Run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer,
	drivers map[hypervisors.Platform]OpenDriver,
) error {
	err := run(ctx, args, getenv, stdout, stderr, drivers)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	return err
}

func run(ctx context.Context, args []string, getenv func(string) string, stdout, stderr io.Writer,
	drivers map[hypervisors.Platform]OpenDriver,
) error {
	if len(args) > 0 {
		switch args[0] {
		case "config":
			return configCommand(args[1:], getenv, stdout, stderr)
		case "migrate":
			return migrate(ctx, args[1:], getenv, stdout, stderr)
		case "recover":
			return recoverCommand(ctx, args[1:], getenv, stdout, stderr, drivers)
		case "health":
			return health(ctx, args[1:], getenv, stdout, stderr)
		case "support":
			return supportCommand(ctx, args[1:], getenv, stdout, stderr)
		}
	}
	c, err := configure("cairnd", args, getenv, stderr)
	if err != nil {
		return err
	}
	s := c.settings
	s.notify = getenv("NOTIFY_SOCKET")
	printed, err := c.printed()
	if err != nil {
		return err
	}
	recent := support.NewRing(recentLog)
	log := slog.New(slog.NewTextHandler(io.MultiWriter(recent, stderr), &slog.HandlerOptions{Level: s.level}))
	appliance, err := Open(ctx, Options{
		Dir: s.dir, Database: s.database, Drivers: drivers, Log: log, Hosts: s.hosts, Images: s.images, Workers: s.workers,
		Settings: c.shown(), Printed: printed, Recent: recent, Getenv: getenv,
	})
	if err != nil {
		return err
	}
	return appliance.work(ctx, s, stdout)
}

// work serves until ctx is done, then drains; or until the database is lost, and then ends at once.
func (a *Appliance) work(ctx context.Context, s settings, stdout io.Writer) error {
	serving, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case err := <-a.Lost():
			stop(err)
		case <-over:
		}
	})
	err := a.serve(serving, s, stdout)
	close(over)
	watch.Wait()
	if cause := context.Cause(serving); cause != nil && ctx.Err() == nil {
		abandon, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTime)
		defer cancel()
		return errors.Join(cause, err, a.Abandon(abandon))
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	return errors.Join(err, a.Close(drain))
}

// serve answers the API until ctx is done.
func (a *Appliance) serve(ctx context.Context, s settings, stdout io.Writer) error {
	people := identity.New(identity.Options{Store: a.catalog, SetUpFile: a.path("setup-token"), Log: a.log, Audit: a.fleet.Audit})
	commit, built := version.Source()
	a.metrics.Watch(a, s.vmSeries, a.log)
	api, err := httpapi.New(httpapi.Options{
		Core: a, Identity: people, Requests: a.catalog, Changes: a.catalog, Stream: a.stream, Log: a.log, Rate: s.rate,
		Metrics: a.metrics,
		Version: httpapi.Version{Version: version.Version, Commit: commit, Built: built, Schema: a.catalog.Schema()},
		Peers:   a.toPeers(),
	})
	if err != nil {
		return err
	}
	token, err := people.PrepareSetUp(ctx)
	if err != nil {
		return err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", s.listen)
	if err != nil {
		return fault.Context("listen on", s.listen, err).Explain(
			"The API cannot be reached under this address, so the appliance does not start.",
			"Stop what uses the port, or choose another address with --listen.")
	}
	movers, err := a.listenMovers(ctx, s.movers)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	address := url(listener.Addr(), s.hosts)
	if err := a.catalog.SetManagerAddress(ctx, address); err != nil {
		return errors.Join(err, listener.Close())
	}
	fmt.Fprintf(stdout, "API:            %s\n", address)
	fmt.Fprintf(stdout, "CA fingerprint: %s\n", a.authority.Fingerprint())
	if movers != nil {
		fmt.Fprintf(stdout, "movers:         %s\n", movers.Addr())
	}
	if token != "" {
		fmt.Fprintf(stdout, "set-up token:   %s\n", token)
	}
	notify(ctx, s.notify, "READY=1", a.log)
	defer notify(context.WithoutCancel(ctx), s.notify, "STOPPING=1", a.log)
	return a.answer(ctx, api, listener, movers)
}

// answer serves people and movers until ctx is done; when one of the two cannot be served any more, neither is.
func (a *Appliance) answer(ctx context.Context, api *httpapi.Server, people, movers net.Listener) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return api.Serve(ctx, people, a.authority.TLSConfig()) })
	if movers != nil {
		g.Go(func() error { return a.fleet.Serve(ctx, movers, a.moverServer()) })
	}
	return g.Wait()
}

// url is where a person finds the API: an address that is not "any".
func url(addr net.Addr, hosts []string) string {
	host, port, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = hosts[min(1, len(hosts)-1)]
	}
	return "https://" + net.JoinHostPort(host, port)
}
