package program

import (
	"context"
	"log/slog"

	"golang.org/x/sys/unix"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/remote"
)

// mounts are directories that may hold repositories' storage. Which repository one holds says the repository's own
// configuration in it, each time it is asked: a path is no proof, and what is mounted there changes.
type mounts struct {
	dirs []string
	log  *slog.Logger
}

// facts lists the directories that hold a repository now.
func (m mounts) facts(ctx context.Context) (out []*pb.Mount) {
	for _, dir := range m.dirs {
		s, id, err := look(ctx, dir)
		if err != nil {
			m.log.WarnContext(ctx, "there is no repository in a directory that was named; what goes to one is sent to the manager", "path", dir, "err", err)
			continue
		}
		_ = s.Close()
		out = append(out, &pb.Mount{Path: dir, Repository: id})
	}
	return out
}

// find opens the directory of a repository; nil if none of them is, or none that may be written. The caller closes it.
func (m mounts) find(ctx context.Context, repository string, write bool) *file.Store {
	for _, dir := range m.dirs {
		s, id, err := look(ctx, dir)
		if err != nil {
			continue
		}
		if id == repository && (!write || unix.Access(dir, unix.W_OK) == nil) {
			return s
		}
		_ = s.Close()
	}
	return nil
}

func look(ctx context.Context, dir string) (*file.Store, string, error) {
	s, err := file.Open(dir)
	if err != nil {
		return nil, "", err
	}
	id, err := remote.RepositoryIn(ctx, s)
	if err == nil && id == "" {
		err = fault.New(fault.Invalid, "look at directory", dir, "it holds no repository")
	}
	if err != nil {
		_ = s.Close()
		return nil, "", err
	}
	return s, id, nil
}
