package store

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/blob/file"
)

// effort is how much a campaign does: little in a plain run, less under the race detector and with -short, as much as was
// promised in CI (which sets CAIRN_LAB), and very much with CAIRN_SOAK.
func effort(plain, ci, soak int) int {
	switch {
	case raceEnabled || testing.Short():
		return max(1, plain/10)
	case os.Getenv("CAIRN_SOAK") != "":
		return soak
	case os.Getenv("CAIRN_LAB") != "":
		return ci
	}
	return plain
}

// checks sets how often rapid checks in a test, unless the command line says it.
func checks(t *testing.T, n int) {
	t.Helper()
	f := flag.Lookup("rapid.checks")
	if f.Value.String() != f.DefValue {
		return
	}
	if testing.Short() {
		n *= 5 // rapid divides by it
	}
	if err := f.Value.Set(strconv.Itoa(n)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Value.Set(f.DefValue) })
}

// summary prints the line of a campaign that docs/reliability.md quotes: name=value pairs in the order given.
func summary(t *testing.T, name string, pairs ...any) {
	t.Helper()
	var line strings.Builder
	for i := 0; i+1 < len(pairs); i += 2 {
		fmt.Fprintf(&line, " %v=%v", pairs[i], pairs[i+1])
	}
	t.Logf("campaign: name=%s%s", name, line.String())
}

// plant is a bug laid around the repository: in what the disk does, in the file system, in the backend, or in place of
// one of its operations. The zero plant is the program as it is.
type plant struct {
	name    string
	lie     func(name string, isDir bool, last string) bool
	fs      func(file.FS) file.FS
	store   func(blob.Store, file.FS) blob.Store
	collect func(context.Context, *Repository) (CollectReport, error)
}

// open opens the backend of a repository with the bug around it.
func (p plant) open(fsys file.FS, create bool) (blob.Store, error) {
	if p.fs != nil {
		fsys = p.fs(fsys)
	}
	at := file.OpenFS
	if create {
		at = file.CreateFS
	}
	b, err := at(fsys, "/disk/repo")
	if err != nil {
		return nil, err
	}
	if p.store != nil {
		return p.store(b, fsys), nil
	}
	return b, nil
}

func (p plant) runCollect(ctx context.Context, r *Repository) (CollectReport, error) {
	if p.collect != nil {
		return p.collect(ctx, r)
	}
	return r.Collect(ctx, CollectOptions{})
}

// inFolder reports whether a path lies in a folder of the repository.
func inFolder(name, folder string) bool { return strings.Contains(name+"/", "/repo/"+folder+"/") }

// caught turns a panic of check into an error.
func caught(err *error) {
	switch p := recover().(type) {
	case nil:
	case checked:
		*err = p.error
	default:
		panic(p)
	}
}

type checked struct{ error }

// check panics with an error, for caught.
func check(errs ...error) {
	if err := errors.Join(errs...); err != nil {
		panic(checked{err})
	}
}
