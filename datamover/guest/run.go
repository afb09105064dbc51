//go:build linux

package guest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/datamover/control"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/version"
)

// Mover is what the machine is for. It works until ctx ends; when it returns before, it is started again with the
// configuration as it is then.
type Mover func(ctx context.Context, log *slog.Logger, cfg Config) error

// The waits of a start. What is not there by then may still come; the mover starts without it.
const (
	configWait  = 20 * time.Second // a seed's disk can be slow to appear
	networkWait = 60 * time.Second
	stateWait   = 10 * time.Second
	moverGrace  = 60 * time.Second // a mover that is told to end may take this long
	lookAgain   = 30 * time.Second // for a configuration that changes without a device that comes
)

// machine is the state of process 1.
type machine struct {
	log     *slog.Logger
	modules *modules
	changed chan struct{} // a block device came or went

	readConfig func(context.Context) (Config, error)
	config     Config // as it was when it named a manager for the first time
	keep       string // where a seed is kept that may not be looked for again; "" if that is not known
}

// Run is the whole life of process 1: it makes the machine ready, runs the mover until the machine is to stop, and
// switches it off. It does not return. Whatever fails is said on the console and does not stop what can go on.
func Run(ctx context.Context, mover Mover) {
	first := mountSystem()
	out := openConsoles()
	log := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{ReplaceAttr: consoleTime}))
	if first != nil {
		log.Error("mount the kernel's file systems", "err", first)
	}
	log.Info("cairn-mover starts", "version", version.Version, "up", uptime(), "firmware", firmware("/sys"))
	ctx, end := context.WithCancelCause(ctx)
	func() {
		defer func() {
			if v := recover(); v != nil {
				log.Error("panic", "value", v, "stack", string(debug.Stack()))
				end(errReboot)
				pause(context.Background(), 10*time.Second) // do not spin, and leave time to read it
			}
		}()
		m := &machine{log: log, changed: make(chan struct{}, 1)}
		m.readConfig = func(ctx context.Context) (Config, error) { return ReadConfig(ctx, m.keep) }
		m.start(ctx, end)
		m.work(ctx, mover)
	}()
	leave(context.Cause(ctx), log)
}

// start makes the machine ready: drivers, power button, loopback, clock.
func (m *machine) start(ctx context.Context, end context.CancelCauseFunc) {
	children := make(chan os.Signal, 1)
	signal.Notify(children, unix.SIGCHLD)
	go reap(children)
	applySettings(m.log)
	m.drivers(ctx)
	watchPower(ctx, end, m.log)
	if err := loopback(); err != nil {
		m.log.Warn("loopback interface", "err", err)
	}
	floorClock(m.log)
}

// drivers loads those of the devices that there are and keeps doing so for those that come.
func (m *machine) drivers(ctx context.Context) {
	events, err := listenUevents() // before the first look, so that nothing falls between
	if err != nil {
		m.log.Error("devices that are attached later will not be seen", "err", err)
	}
	m.modules, err = openModules(ModuleDir)
	if err != nil {
		m.log.Error("list of drivers", "err", err)
	}
	names, err := m.modules.always()
	errs := []error{err}
	for _, name := range names {
		errs = append(errs, m.modules.load(name))
	}
	errs = append(errs, m.modules.loadPresent("/sys/devices"))
	if err := errors.Join(errs...); err != nil {
		m.log.Warn("drivers", "err", err)
	}
	if events != nil {
		go events.follow(ctx, m.modules, m.log, m.changed)
	}
}

// work runs the mover again and again until ctx ends.
func (m *machine) work(ctx context.Context, mover Mover) {
	m.state(ctx) // first: it says whether this is the machine's first start
	cfg := m.configure(ctx, configWait)
	if cfg.Name != "" {
		if err := unix.Sethostname([]byte(cfg.Name)); err != nil {
			m.log.Warn("set the host name", "err", err)
		}
	}
	net := newNetwork(cfg.Network, cfg.Name, m.log)
	go net.run(ctx)
	go keepClock(ctx, net.ntp, m.log)
	select {
	case <-net.ready:
	case <-ctx.Done():
	case <-time.After(networkWait):
		m.log.Warn("no network yet; the mover starts without", "waited", networkWait)
	}
	for wait := time.Second; ctx.Err() == nil; wait = min(2*wait, 30*time.Second) {
		begin := time.Now()
		m.log.Info("mover is up", "up", uptime(), "config", cfg, "listeners", strings.Join(listeners("/proc/net"), ","))
		err := m.once(ctx, mover, cfg)
		if ctx.Err() != nil {
			break
		}
		meaning, advice := fault.Explanation(err)
		if errors.Is(err, control.ErrDismissed) { // to try again would be to fight with the mover that has its place
			m.log.Error("the manager wants nothing of this mover, which waits for another configuration", "err", err, "meaning", meaning, "advice", advice)
			cfg = awaitOther(ctx, cfg, m.readConfig, m.changed)
			continue
		}
		m.log.Error("mover ended; it is started again", "err", err, "meaning", meaning, "advice", advice, "in", wait)
		if time.Since(begin) > time.Minute {
			wait = time.Second
		}
		pause(ctx, wait)
		cfg = m.configure(ctx, time.Second)
	}
}

// awaitOther waits for a configuration that names a manager and is another one than cfg, or for the end of ctx.
func awaitOther(ctx context.Context, cfg Config, read func(context.Context) (Config, error), changed <-chan struct{}) Config {
	for {
		select {
		case <-ctx.Done():
			return cfg
		case <-changed:
		case <-time.After(lookAgain):
		}
		now, err := read(ctx)
		like := now
		like.Sources = cfg.Sources
		if err == nil && now.Manager != "" && !reflect.DeepEqual(like, cfg) {
			return now
		}
	}
}

// once runs the mover, and gives one that is told to end a limited time.
func (m *machine) once(ctx context.Context, mover Mover, cfg Config) error {
	done := make(chan error, 1)
	go func() {
		defer func() {
			if v := recover(); v != nil {
				done <- fmt.Errorf("panic: %v\n%s", v, debug.Stack())
			}
		}()
		done <- mover(ctx, m.log, cfg)
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-done:
		return err
	case <-time.After(moverGrace):
		return fmt.Errorf("the mover did not end in %v", moverGrace)
	}
}

// configure waits for a configuration that names a manager, and then keeps to it: what is attached later does not change
// it. After the wait it takes what there is: a mover that has enrolled may need none.
func (m *machine) configure(ctx context.Context, wait time.Duration) Config {
	if m.config.Manager != "" {
		return m.config
	}
	end := time.After(wait)
	for {
		cfg, err := m.readConfig(ctx)
		if err == nil && cfg.Manager != "" {
			m.config = cfg
			return cfg
		}
		select {
		case <-ctx.Done():
			return cfg
		case <-end:
			meaning, advice := fault.Explanation(err)
			m.log.Error("no manager is configured", "err", err, "meaning", meaning, "advice", advice)
			return cfg
		case <-m.changed:
		case <-time.After(time.Second):
		}
	}
}

// state mounts the mover's state when its disk is there. Where it cannot be known which it is, nothing that may be somebody else's is
// taken for a seed either.
func (m *machine) state(ctx context.Context) {
	var dev string
	err := errNoState
	for end := time.Now().Add(stateWait); errors.Is(err, errNoState) && time.Now().Before(end) && ctx.Err() == nil; {
		if dev, err = root("/").mountState(m.modules); errors.Is(err, errNoState) {
			select {
			case <-ctx.Done():
			case <-m.changed:
			case <-time.After(500 * time.Millisecond):
			}
		}
	}
	if err == nil || errors.Is(err, errNoState) {
		m.keep = StateDir
	}
	if err != nil {
		meaning, advice := fault.Explanation(err)
		m.log.Warn("the mover's state will not outlive a restart", "err", err, "meaning", meaning, "advice", advice)
		return
	}
	m.log.Info("state is mounted", "device", dev)
}

// consoleTime shortens the time on the console to what a reader needs.
func consoleTime(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		a.Value = slog.StringValue(a.Value.Time().UTC().Format("15:04:05.000"))
	}
	return a
}

// uptime is the time since the kernel started, "6.12s".
func uptime() string {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return ""
	}
	return time.Duration(ts.Nano()).Round(10 * time.Millisecond).String()
}
