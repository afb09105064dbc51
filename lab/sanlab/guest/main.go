//go:build linux

// The guest program is init of a lab VM that is attached to a storage network: it loads modules and runs the commands
// that the host sends over a virtio port, several at once.
//
// It is not for use anywhere else; started as anything but process 1 it refuses. Its invariant: every request is
// answered once, with all that the command printed and how it ended.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "this is the init of a lab VM; it is of no use here")
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Println("CAIRN-GUEST failed:", err)
		time.Sleep(time.Second) // let the console drain
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}
}

func run() error {
	for _, m := range []struct{ fs, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	if con, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		os.Stdout, os.Stderr = con, con
	}
	loadModules("/lib/modules")
	if err := os.Setenv("PATH", "/bin:/sbin:/usr/bin:/usr/sbin"); err != nil {
		return err
	}
	if out, err := exec.Command("/bin/busybox", "--install", "-s", "/bin").CombinedOutput(); err != nil {
		return fmt.Errorf("busybox: %w: %s", err, out)
	}
	port, err := findPort("cairn.lab.0")
	if err != nil {
		return err
	}
	fmt.Println("CAIRN-GUEST ready")
	return serve(port)
}

// loadModules loads what the file "order" names.
func loadModules(dir string) {
	order, _ := os.ReadFile(filepath.Join(dir, "order"))
	for _, name := range strings.Fields(string(order)) {
		f, err := os.Open(filepath.Join(dir, name))
		if err == nil {
			err = unix.FinitModule(int(f.Fd()), "", 0)
			_ = f.Close()
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			fmt.Println("CAIRN-GUEST module", name, err)
		}
	}
}

// findPort waits for a virtio port, which appears shortly after its driver.
func findPort(name string) (string, error) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		dirs, _ := filepath.Glob("/sys/class/virtio-ports/*")
		for _, d := range dirs {
			dev := filepath.Join("/dev", filepath.Base(d))
			if got, _ := os.ReadFile(filepath.Join(d, "name")); string(bytes.TrimSpace(got)) == name {
				if _, err := os.Stat(dev); err == nil {
					return dev, nil
				}
			}
		}
	}
	return "", fmt.Errorf("no virtio port %s", name)
}

// request asks for a command; reply is its answer.
type request struct {
	ID    int      `json:"id"`
	Argv  []string `json:"argv"`
	Stdin []byte   `json:"stdin,omitempty"`
}

type reply struct {
	ID     int    `json:"id"`
	Out    []byte `json:"out"`
	Errors []byte `json:"errors"`
	Failed string `json:"failed,omitempty"`
}

func serve(port string) error {
	fd, err := unix.Open(port, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	var line []byte
	var writing sync.Mutex
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil { // nobody is connected
			time.Sleep(20 * time.Millisecond)
			continue
		}
		for _, part := range bytes.SplitAfter(buf[:n], []byte("\n")) {
			line = append(line, part...)
			if !bytes.HasSuffix(line, []byte("\n")) {
				continue
			}
			var r request
			if err := json.Unmarshal(line, &r); err == nil {
				go func() {
					answer, _ := json.Marshal(execute(r))
					writing.Lock()
					defer writing.Unlock()
					send(fd, append(answer, '\n'))
				}()
			}
			line = line[:0]
		}
	}
}

func send(fd int, p []byte) {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if err != nil && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return
		}
		p = p[max(0, n):]
	}
}

func execute(r request) reply {
	if len(r.Argv) == 0 {
		return reply{ID: r.ID, Failed: "no command"}
	}
	var out, problems bytes.Buffer
	cmd := exec.Command(r.Argv[0], r.Argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(r.Stdin), &out, &problems
	err := cmd.Run()
	a := reply{ID: r.ID, Out: out.Bytes(), Errors: problems.Bytes()}
	if err != nil {
		a.Failed = err.Error()
	}
	return a
}
