// Package postgrestest gives tests a real PostgreSQL server of their own, from the machine's packages.
//
// It is for tests only, and knows nothing of what is stored. The first test of a process that asks starts one server, in a
// directory of its own, on a unix socket there, as a user that is not root; each test gets databases of its own on it. Its
// invariant: the server ends, and its directory goes, with the process that started it, however that ends.
package postgrestest

import (
	"bytes"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// Database makes an empty database and returns its address. It skips the test where PostgreSQL is not installed, unless
// CAIRN_LAB says that everything must be there.
func Database(t testing.TB) string {
	t.Helper()
	s := start(t)
	name := fmt.Sprintf("test%d", s.databases.Add(1))
	s.query(t, "postgres", `CREATE DATABASE `+name)
	t.Cleanup(func() { s.query(t, "postgres", `DROP DATABASE `+name+` WITH (FORCE)`) })
	return (&url.URL{
		Scheme: "postgres", User: url.User("postgres"), Path: "/" + name, RawQuery: url.Values{"host": {s.dir}}.Encode(),
	}).String()
}

// Socket returns the path of the server's socket, for tests that put something between.
func Socket(t testing.TB) string {
	t.Helper()
	return filepath.Join(start(t).dir, ".s.PGSQL.5432")
}

func start(t testing.TB) *server {
	t.Helper()
	bin := binaries()
	if bin == "" {
		if os.Getenv("CAIRN_LAB") == "" {
			t.Skip("PostgreSQL is not installed (make deps)")
		}
		t.Fatal("PostgreSQL is not installed (make deps)")
	}
	s, err := one()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// binaries is the folder of the newest server that is installed; "" if there is none.
func binaries() string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		return ""
	}
	slices.SortFunc(found, func(a, b string) int { return version(a) - version(b) })
	return filepath.Dir(found[len(found)-1])
}

func version(path string) int {
	n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path)))) //nolint:errcheck // 0 is the oldest
	return n
}

type server struct {
	bin, dir  string
	life      *os.File // held open as long as this process lives
	databases atomic.Int64
}

// one is the server of this process.
var one = sync.OnceValues(func() (*server, error) {
	dir, err := os.MkdirTemp("", "cairn-pg")
	if err != nil {
		return nil, err
	}
	s := &server{bin: binaries(), dir: dir}
	if err := s.run(); err != nil {
		_ = os.RemoveAll(dir)
		return nil, err
	}
	return s, nil
})

// The order of text is that of a language, as in most databases, so that tests notice what relies on another one. A crash of
// the machine is no concern here, so nothing is synced.
const script = `
cd "$DIR" || exit 1
"$BIN/initdb" -D data -U postgres -A trust -E UTF8 --no-locale --locale-provider=icu --icu-locale=en-US --no-sync >init.log 2>&1 || { cat init.log; exit 1; }
options="-k $DIR -c listen_addresses= -c fsync=off -c full_page_writes=off -c max_connections=200 -c shared_buffers=32MB"
"$BIN/pg_ctl" -D data -s -w -t 600 -l server.log -o "$options" start || { cat server.log; exit 1; }
echo ready
cat >/dev/null
"$BIN/pg_ctl" -D data -s -m immediate stop
rm -rf "$DIR"
`

// run starts the server under a shell that ends it as soon as this process is no more: its standard input ends then.
func (s *server) run() error {
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env = append(os.Environ(), "DIR="+s.dir, "BIN="+s.bin, "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt at the terminal is for the tests
	if os.Geteuid() == 0 {
		id, err := servant()
		if err != nil {
			return err
		}
		if err := os.Chown(s.dir, int(id.Uid), int(id.Gid)); err != nil {
			return err
		}
		cmd.SysProcAttr.Credential = id
	}
	life, ours, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdin = life
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = life.Close()
	s.life = ours
	return awaitReady(out)
}

func awaitReady(out io.Reader) error {
	var said bytes.Buffer
	part := make([]byte, 1024)
	for {
		n, err := out.Read(part)
		said.Write(part[:n])
		if strings.HasSuffix(said.String(), "ready\n") {
			return nil
		}
		if err != nil {
			return fmt.Errorf("start PostgreSQL: %w: %s", err, said.String())
		}
	}
}

// servant is who the server runs as when the tests are root's: PostgreSQL refuses that.
func servant() (*syscall.Credential, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

// query runs one statement as the server's own administrator.
func (s *server) query(t testing.TB, database, statement string) {
	t.Helper()
	out, err := exec.Command(filepath.Join(s.bin, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", s.dir, "-U", "postgres",
		"-d", database, "-c", statement).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", statement, err, out)
	}
}
