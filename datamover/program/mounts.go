package program

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob/file"
	"github.com/cairn-backup/cairn/store/remote"
)

// lookTime is how long a directory may take to say which repository it holds. A network file system whose server is gone takes for
// ever, and the mover has other work.
const lookTime = 5 * time.Second

// mounts are directories that may hold repositories' storage. Which repository one holds says the repository's own
// configuration in it, each time it is asked: a path is no proof, and what is mounted there changes.
type mounts struct {
	dirs []string
	log  *slog.Logger
	open func(ctx context.Context, dir string) (*file.Store, string, error)

	mu    sync.Mutex
	stuck map[string]int // looks that were given up and are not answered yet, by directory
}

// looking is one look at a directory.
type looking struct {
	s   *file.Store
	id  string
	err error

	answered chan struct{} // closed when the three above are set
	givenUp  bool          // under mounts.mu, as the closing is
}

func newMounts(dirs []string, log *slog.Logger) *mounts {
	return &mounts{dirs: dirs, log: log, open: openMounted, stuck: map[string]int{}}
}

// facts lists the directories that hold a repository now.
func (m *mounts) facts(ctx context.Context) (out []*pb.Mount) {
	for _, dir := range m.dirs {
		s, id, err := m.look(ctx, dir)
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
func (m *mounts) find(ctx context.Context, repository string, write bool) *file.Store {
	for _, dir := range m.dirs {
		s, id, err := m.look(ctx, dir)
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

// look opens a directory. Of one that does not answer it is told so after lookTime, and at once until it has answered.
func (m *mounts) look(ctx context.Context, dir string) (*file.Store, string, error) {
	if m.unanswered(dir) > 0 {
		return nil, "", silent(dir, "it still does not answer")
	}
	l := &looking{answered: make(chan struct{})}
	go func() {
		l.s, l.id, l.err = m.open(ctx, dir)
		if m.answer(dir, l) && l.err == nil { // nobody waits any more
			_ = l.s.Close()
		}
	}()
	limit := time.NewTimer(lookTime)
	defer limit.Stop()
	select {
	case <-l.answered:
	case <-limit.C:
	case <-ctx.Done():
	}
	if m.giveUp(dir, l) {
		if err := ctx.Err(); err != nil {
			return nil, "", err
		}
		return nil, "", silent(dir, "it has not answered for "+lookTime.String())
	}
	return l.s, l.id, l.err
}

func silent(dir, how string) error {
	return fault.New(fault.Transient, "look at directory", dir, "%s", how).Explain(
		"The file system that is mounted there does not answer; if it is one of the network, its server may be gone.",
		"Look at the server, or unmount it. What goes to the repository is sent to the manager meanwhile.")
}

func (m *mounts) unanswered(dir string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stuck[dir]
}

// answer ends a look; late says that it had been given up.
func (m *mounts) answer(dir string, l *looking) (late bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	close(l.answered)
	if l.givenUp {
		m.stuck[dir]--
	}
	return l.givenUp
}

// giveUp leaves a look to itself, unless there is an answer.
func (m *mounts) giveUp(dir string, l *looking) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-l.answered:
		return false
	default:
	}
	l.givenUp = true
	m.stuck[dir]++
	return true
}

// openMounted opens a directory and reads which repository it holds.
func openMounted(ctx context.Context, dir string) (*file.Store, string, error) {
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
