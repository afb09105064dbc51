package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/console"
)

// terminal is a pseudo-terminal: the program has one end, the test types and reads at the other.
type terminal struct {
	program, person *os.File
	fd              int // of program

	mu   sync.Mutex
	seen bytes.Buffer
	more *sync.Cond
	done chan struct{}
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no pseudo-terminal: %v", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 25, Col: 100}); err != nil {
		t.Fatal(err)
	}
	pts, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	x := &terminal{program: pts, person: os.NewFile(uintptr(fd), "ptmx"), fd: int(pts.Fd()), done: make(chan struct{})}
	x.more = sync.NewCond(&x.mu)
	go x.watch()
	t.Cleanup(func() {
		_ = x.program.Close()
		_ = x.person.Close()
		<-x.done
	})
	return x
}

func (x *terminal) watch() {
	defer close(x.done)
	b := make([]byte, 4096)
	for {
		n, err := x.person.Read(b)
		x.mu.Lock()
		x.seen.Write(b[:n])
		x.more.Broadcast()
		x.mu.Unlock()
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

// until waits until the program has written text.
func (x *terminal) until(text string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for !strings.Contains(x.seen.String(), text) {
		x.more.Wait()
	}
}

// hidden waits until the terminal does not show what is typed.
func (x *terminal) hidden(t *testing.T) {
	t.Helper()
	for x.flags(t)&unix.ECHO != 0 {
		runtime.Gosched()
	}
}

func (x *terminal) flags(t *testing.T) uint32 {
	t.Helper()
	termios, err := unix.IoctlGetTermios(x.fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return termios.Lflag
}

func (x *terminal) typeLine(t *testing.T, s string) {
	t.Helper()
	if _, err := io.WriteString(x.person, s+"\n"); err != nil {
		t.Fatal(err)
	}
}

// start runs a command line on the terminal.
func (x *terminal) start(ctx context.Context, e env, args ...string) (exit chan int) {
	c := console.New(func(k string) string { return e[k] }, x.program, x.program, x.program)
	c.Now, c.Location = func() time.Time { return noon }, time.UTC
	app := &App{Console: c, poll: time.Millisecond, redraw: time.Millisecond}
	exit = make(chan int, 1)
	go func() { exit <- app.Run(ctx, args) }()
	return exit
}

// ended returns the exit code and all that was shown, after the last of it has arrived.
func (x *terminal) ended(exit chan int) (int, string) {
	code := <-exit
	const mark = "\x00end"
	_, _ = io.WriteString(x.program, mark)
	x.until(mark)
	x.mu.Lock()
	defer x.mu.Unlock()
	return code, strings.TrimSuffix(x.seen.String(), mark)
}

// A person is shown the CA's fingerprint, types yes and a password that is not shown.
func TestLoginOnATerminal(t *testing.T) {
	for _, yes := range []bool{true, false} {
		a := newAppliance(t)
		var sent atomic.Bool
		a.HandleFunc("POST /login", func(w http.ResponseWriter, _ *http.Request) {
			sent.Store(true)
			reply(w, 200, client.IssuedToken{Secret: token})
		})
		home := t.TempDir()
		x := newTerminal(t)
		exit := x.start(t.Context(), env{"HOME": home, "TERM": "xterm"}, "login", a.URL)
		x.until("Is it the same? [y/N] ")
		want := 1
		if yes {
			want = 0
			x.typeLine(t, "y")
			x.until("User name: ")
			x.typeLine(t, "anna")
			x.until("Password: ")
			x.hidden(t)
			x.typeLine(t, "s3cret-passphrase")
		} else {
			x.typeLine(t, "")
		}
		code, text := x.ended(exit)
		if code != want || sent.Load() != yes {
			t.Errorf("exit code %d, want %d; password sent: %v\n%s", code, want, sent.Load(), text)
		}
		if !strings.Contains(text, a.fingerprint) || strings.Contains(text, "s3cret") {
			t.Errorf("shown:\n%s", text)
		}
		if yes {
			a.get("/vms", client.VMList{Items: []client.VM{}})
			if got := run(t, env{"HOME": home}, "", "vm", "list"); got.code != 0 {
				t.Errorf("afterwards: %+v", got)
			}
		}
	}
}

// Ctrl-C at a question ends the program, and the terminal shows again what is typed.
func TestInterruptedQuestion(t *testing.T) {
	x := newTerminal(t)
	others := goleak.IgnoreCurrent()
	a := newAppliance(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	before := x.flags(t)
	exit := x.start(ctx, env{"HOME": t.TempDir()}, "login", a.URL, "--ca-fingerprint", a.fingerprint, "--user", "anna")
	x.until("Password: ")
	x.hidden(t)
	cancel()
	if code := <-exit; code != 130 {
		t.Errorf("exit code %d, want 130", code)
	}
	if after := x.flags(t); after&unix.ECHO == 0 || after != before {
		t.Errorf("terminal flags %x, before %x", after, before)
	}
	x.typeLine(t, "") // lets the read that stayed behind end
	a.Close()
	goleak.VerifyNone(t, others)
}

func TestProgressOnATerminal(t *testing.T) {
	for _, noColour := range []string{"", "1"} {
		a := newAppliance(t)
		a.inventory()
		var asked atomic.Int32
		a.HandleFunc("POST /vms/vm_web/backup", func(w http.ResponseWriter, _ *http.Request) { reply(w, 202, backupRun("1", client.StateQueued, 0)) })
		a.HandleFunc("GET /runs/run_1", func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) == 1 {
				reply(w, 200, backupRun("1", client.StateRunning, 30))
				return
			}
			reply(w, 200, backupRun("1", client.StateSucceeded, 100))
		})
		x := newTerminal(t)
		e := env{"CAIRN_SERVER": a.URL, "CAIRN_CA_FINGERPRINT": a.fingerprint, "CAIRN_TOKEN": token, "NO_COLOR": noColour, "HOME": t.TempDir()}
		code, text := x.ended(x.start(t.Context(), e, "backup", "start", "web01", "--wait"))
		bar := "\rbackup of web01  [######..............]  transferring   30%  30 MiB of 100 MiB  10 MiB/s  5s left\x1b[K"
		if code != 0 || !strings.Contains(text, bar) || strings.Count(text, "\n") != 2 {
			t.Errorf("exit code %d:\n%q", code, text)
		}
		if got := strings.Contains(text, "\x1b[32msucceeded\x1b[0m"); got != (noColour == "") {
			t.Errorf("NO_COLOR=%q: coloured %v", noColour, got)
		}
	}
}
