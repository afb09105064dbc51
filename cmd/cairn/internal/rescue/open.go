package rescue

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/erasure"
)

// backend is what a repository lies on: set is nil where it is one directory.
type backend struct {
	blob.Store
	set *erasure.Store
}

// readOnly hides that a set could repair itself: rescue writes nothing.
type readOnly struct{ blob.Store }

// use opens the repository for reading while do runs.
func (t *tool) use(ctx context.Context, do func(*store.Repository) error) error {
	return t.unlock(ctx, func(b backend, by store.Opener) (err error) {
		r, err := store.Open(ctx, readOnly{b.Store}, by, store.Options{ReadOnly: true, Log: t.log()})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.Close()) }()
		return do(r)
	})
}

// unlock opens what the repository lies on, and reads the key that was given.
func (t *tool) unlock(ctx context.Context, do func(backend, store.Opener) error) error {
	dirs, err := t.dirs()
	if err != nil {
		return err
	}
	by, err := t.opener(ctx)
	if err != nil {
		return err
	}
	return t.onBackend(ctx, dirs, func(b backend) error { return do(b, by) })
}

// dirs are the directories that flags or environment name.
func (t *tool) dirs() ([]string, error) {
	dirs := t.repos
	if len(dirs) == 0 {
		dirs = filepath.SplitList(t.Getenv("CAIRN_RESCUE_REPO"))
	}
	if len(dirs) == 0 {
		return nil, failure.UsageError("Name it with --repo DIR; a set by one --repo for each of its directories.", "it is not said which repository to read")
	}
	return dirs, nil
}

// opener reads the key that flags or environment name.
func (t *tool) opener(ctx context.Context) (store.Opener, error) {
	given := 0
	for _, flag := range []string{t.key, t.identity, t.paper} {
		if flag != "" {
			given++
		}
	}
	source := t.key
	if source == "" {
		source = t.Getenv("CAIRN_RESCUE_KEY")
	}
	switch {
	case given > 1:
		return nil, failure.UsageError("Give one of them.", "--key, --identity and --paper do not go together")
	case t.identity != "":
		return store.LoadIdentity(t.identity)
	case t.paper != "":
		text, err := t.ReadSecret(t.paper)
		if err != nil {
			return nil, err
		}
		return store.ParsePaperKey(text)
	case source == "":
		return nil, failure.UsageError("Name it with --key FILE: the copy of the key file that you keep apart from the appliance. An age identity goes with --identity, a typed paper key with --paper.",
			"the key of the repository is not given")
	}
	kind, _, ok := strings.Cut(source, ":")
	if ok && (kind == "env" || kind == "credential" || kind == "file") {
		return openerOf(store.LoadKey(ctx, source))
	}
	return openerOf(store.LoadKeyFile(source))
}

// openerOf adds to the refusal of a key which flags take the others.
func openerOf(k store.Key, err error) (store.Opener, error) {
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Kind == fault.Invalid {
		return nil, e.Explain(e.Meaning, "Give a copy of the key file. A typed paper key goes with --paper, an age identity with --identity.")
	}
	if err != nil {
		return nil, err
	}
	return k, nil
}

// onBackend opens a directory, or a set of them. One directory may be a set too: a mirror can be read from one.
func (t *tool) onBackend(ctx context.Context, dirs []string, do func(backend) error) (err error) {
	var b backend
	if len(dirs) > 1 || isMember(dirs[0]) {
		b.set, err = erasure.OpenPaths(ctx, erasure.Options{Log: slog.New(voice{t})}, dirs...)
		b.Store = b.set
	} else {
		b.Store, err = file.Open(dirs[0])
	}
	if err != nil {
		return fault.Context("read repository", strings.Join(dirs, ", "), err).Explain("The directory of the repository cannot be opened.",
			"Check the path in --repo, and that the right disk is mounted.")
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	return do(b)
}

// isMember reports whether a directory belongs to a set: store/erasure/FORMAT.md has the name of the folder.
func isMember(dir string) bool {
	info, err := os.Stat(filepath.Join(dir, "cairn-erasure"))
	return err == nil && info.IsDir()
}

func (t *tool) log() *slog.Logger {
	level := slog.LevelError
	if t.Verbose {
		level = slog.LevelDebug
	}
	return slog.New(t.lines(level))
}

func (t *tool) lines(level slog.Level) slog.Handler {
	noTime := func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}
	return slog.NewTextHandler(t.Err, &slog.HandlerOptions{Level: level, ReplaceAttr: noTime})
}

// voice is a log handler that tells a person of what is missing of a set.
type voice struct{ t *tool }

// Enabled implements slog.Handler.
func (v voice) Enabled(_ context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn || v.t.Verbose
}

// Handle implements slog.Handler.
func (v voice) Handle(ctx context.Context, r slog.Record) error {
	if r.Level < slog.LevelWarn {
		return v.t.lines(slog.LevelDebug).Handle(ctx, r)
	}
	words := []string{r.Message}
	r.Attrs(func(a slog.Attr) bool {
		words = append(words, strings.ReplaceAll(a.Key, "_", " ")+": "+a.Value.String())
		return true
	})
	v.t.Say("Warning: %s", strings.Join(words, "; "))
	return nil
}

// WithAttrs implements slog.Handler; the sets of this package's commands give none.
func (v voice) WithAttrs([]slog.Attr) slog.Handler { return v }

// WithGroup implements slog.Handler.
func (v voice) WithGroup(string) slog.Handler { return v }
