// Package program is cairn-mover as a running program: what it reads from its command line and environment, and which
// transports and ways to a repository it has. What a machine of its own needs beside it is in datamover/guest.
//
// Its invariant: what it needs is in the program and the kernel; it starts no other program and listens on nothing.
package program

import (
	"context"
	"errors"
	"flag"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/datamover/agent"
	"github.com/cairn-backup/cairn/datamover/control"
	"github.com/cairn-backup/cairn/internal/fault"
)

// DefaultStateDir is where a mover keeps its key and certificate.
const DefaultStateDir = "/var/lib/cairn-mover"

// Settings of a mover.
type Settings struct {
	Manager     string // host:port
	Fingerprint string // of the manager's authority
	Token       string // join token, needed once
	Name        string // wished for; "" is the host's
	StateDir    string // "" is DefaultStateDir
	Slots       int    // transfers at once; 0 is the program's default
	// Repositories are directories that are, or will be, storage of repositories as it is mounted on this machine.
	Repositories []string
}

// Run works as a mover until ctx ends; see control.Run for what it returns.
func Run(ctx context.Context, log *slog.Logger, s Settings) error {
	if s.StateDir == "" {
		s.StateDir = DefaultStateDir
	}
	mounted := newMounts(s.Repositories, log)
	var mover *agent.Local // made by Open, before there is a stream that says anything
	return control.Run(ctx, control.Config{
		Manager: s.Manager, Fingerprint: s.Fingerprint, Token: s.Token, Name: s.Name, StateDir: s.StateDir, Slots: s.Slots, Log: log,
		Facts: func() *pb.Facts {
			f := control.FactsOf(transports(), mounted.facts(ctx))
			f.Wwns = luns(ctx, log)
			return f
		},
		Open: func(conn grpc.ClientConnInterface) agent.Mover {
			mover = open(conn, mounted, log)
			return mover
		},
		ReadLimit: func(bytes int64) { mover.Limit(bytes) },
	})
}

// Main is Run with the settings of a command line: flags first, then the environment.
func Main(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) error {
	s, level, err := parse(args, getenv, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	return Run(ctx, slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})), s)
}

func parse(args []string, getenv func(string) string, output io.Writer) (s Settings, level slog.Level, err error) {
	f := flag.NewFlagSet("cairn-mover run", flag.ContinueOnError)
	f.SetOutput(output)
	f.StringVar(&s.Manager, "manager", getenv("CAIRN_MANAGER"), "`host:port` of the manager's listener for movers (CAIRN_MANAGER)")
	f.StringVar(&s.Fingerprint, "fingerprint", getenv("CAIRN_FINGERPRINT"), "SHA-256 of the manager's authority, sha256:… (CAIRN_FINGERPRINT)")
	f.StringVar(&s.Token, "token", getenv("CAIRN_TOKEN"), "join token, needed the first time (CAIRN_TOKEN)")
	file := f.String("token-file", "", "`file` with the join token: the command line can be read by everybody on this machine")
	f.StringVar(&s.Name, "name", getenv("CAIRN_NAME"), "name of this mover; the host's when not given (CAIRN_NAME)")
	f.StringVar(&s.StateDir, "state", getenv("CAIRN_STATE"), "`directory` for key and certificate; "+DefaultStateDir+" when not given (CAIRN_STATE)")
	f.Func("repository", "`directory` with a repository's storage as it is mounted on this machine: packs are written there, not sent to the manager; may be given more than once (CAIRN_REPOSITORIES, with colons between)", func(dir string) error {
		s.Repositories = append(s.Repositories, dir)
		return nil
	})
	f.IntVar(&s.Slots, "slots", 0, "transfers at once; 4 when not given")
	f.TextVar(&level, "log-level", slog.LevelInfo, "debug, info, warn or error")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return s, level, err
		}
		return s, level, fault.Wrap(fault.Invalid, "read command line", "", err)
	}
	if f.NArg() > 0 {
		return s, level, fault.New(fault.Invalid, "read command line", "", "unexpected argument %q", f.Arg(0))
	}
	if s.Repositories == nil {
		s.Repositories = filepath.SplitList(getenv("CAIRN_REPOSITORIES"))
	}
	for _, dir := range s.Repositories {
		if !filepath.IsAbs(dir) {
			return s, level, fault.New(fault.Invalid, "read command line", "", "the repository's directory %q is no absolute path", dir)
		}
	}
	if *file != "" {
		b, err := os.ReadFile(*file)
		if err != nil {
			return s, level, fault.Context("read join token", *file, err)
		}
		s.Token = strings.TrimSpace(string(b))
	}
	return s, level, nil
}
