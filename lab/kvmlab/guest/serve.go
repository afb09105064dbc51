//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/lab/kvmlab/pattern"
)

// guest writes rounds to all contents of the VM. mu guards everything and is held during a round.
type guest struct {
	mu       sync.Mutex
	contents []content
	checks   []func() (pattern.Report, error)
	boot     []pattern.Report // what the check at boot found; none: the disks were blank
	failure  string           // why nothing is written any more
	rate     float64
	mover    *mover // nil if the VM is none
}

// open checks and opens the disks' contents.
func (g *guest) open(cfg config) {
	var raw []*disk
	add := func(c content, check func() (pattern.Report, error), rep pattern.Report, err error) {
		if err != nil {
			g.failure = err.Error()
			say("corrupt %v", err)
			return
		}
		if rep.Blocks > 0 {
			g.boot = append(g.boot, rep)
			say("verified %v", rep)
		}
		g.contents, g.checks = append(g.contents, c), append(g.checks, check)
	}
	for _, d := range findDisks(cfg.disks) {
		if isExt4(d) {
			add(openFileSystem(d))
			continue
		}
		raw = append(raw, d)
	}
	if len(raw) > 0 {
		add(openBlocks(raw, cfg))
	}
	say("ready contents=%d", len(g.contents))
}

// loop writes rounds at the rate that is set.
func (g *guest) loop() error {
	for first := true; ; {
		g.mu.Lock()
		rate := g.rate
		var err error
		if rate > 0 {
			if err = g.write(); err == nil && first {
				say("writing round=%d", g.round())
				first = false
			}
		}
		g.mu.Unlock()
		if rate <= 0 {
			rate = 20
		}
		time.Sleep(time.Duration(float64(time.Second) / rate))
	}
}

// write writes one round everywhere. The caller holds mu.
func (g *guest) write() error {
	if g.failure != "" {
		return fmt.Errorf("%s", g.failure)
	}
	for _, c := range g.contents {
		if err := c.WriteRound(); err != nil {
			g.failure = err.Error()
			say("failed %v", err)
			return err
		}
	}
	return nil
}

func (g *guest) round() uint64 {
	var r uint64
	for _, c := range g.contents {
		r = max(r, c.Round())
	}
	return r
}

// reply is the answer to one command.
type reply struct {
	ID     string           `json:"id"`
	Error  string           `json:"error,omitempty"`
	Round  uint64           `json:"round"`
	Boot   []pattern.Report `json:"boot,omitempty"`
	Now    []pattern.Report `json:"now,omitempty"`
	Uptime string           `json:"uptime"`
	// Of a mover's disk that could not be opened: the error's kind, text and explanation.
	Kind    string `json:"kind,omitempty"`
	Fault   string `json:"fault,omitempty"`
	Meaning string `json:"meaning,omitempty"`
	Advice  string `json:"advice,omitempty"`
}

// serve answers commands, one a line: "<id> status", "<id> write <rounds>", "<id> rate <rounds a second>",
// "<id> check"; of a mover also "<id> open <JSON of an export, without spaces> <milliseconds to wait>" and "<id> close".
func (g *guest) serve() {
	dev, err := port("cairn.lab.0")
	if err != nil {
		say("commands: %v", err)
		return
	}
	fd, err := syscall.Open(dev, syscall.O_RDWR, 0)
	if err != nil {
		say("commands: %v", err)
		return
	}
	var line []byte
	buf := make([]byte, 256)
	for {
		n, err := syscall.Read(fd, buf)
		if n <= 0 || err != nil { // nobody is connected
			time.Sleep(20 * time.Millisecond)
			line = line[:0]
			continue
		}
		for _, c := range buf[:n] {
			if c != '\n' {
				line = append(line, c)
				continue
			}
			answer, _ := json.Marshal(g.command(string(line)))
			_, _ = syscall.Write(fd, append(answer, '\n'))
			line = line[:0]
		}
	}
}

func (g *guest) command(line string) reply {
	words := append(strings.Fields(line), "", "", "", "")
	g.mu.Lock()
	defer g.mu.Unlock()
	r := reply{ID: words[0], Error: g.failure}
	switch words[1] {
	case "status":
	case "write":
		n, _ := strconv.Atoi(words[2])
		for range n {
			if err := g.write(); err != nil {
				break
			}
		}
		r.Error = g.failure
	case "rate":
		g.rate, _ = strconv.ParseFloat(words[2], 64)
	case "check":
		for _, check := range g.checks {
			rep, err := check()
			if err != nil {
				r.Error = err.Error()
			}
			r.Now = append(r.Now, rep)
		}
	case "open":
		if g.mover == nil {
			r.Error = "this VM plays no mover"
			break
		}
		r.answer(g.mover.open(words[2], words[3]))
	case "mount":
		r.answer(mount(words[2]))
	case "unmount":
		r.answer(syscall.Unmount(mountedAt, 0))
	case "close":
		if g.mover != nil {
			g.mover.close()
		}
	default:
		r.Error = "unknown command " + words[1]
	}
	up, _ := os.ReadFile("/proc/uptime")
	r.Uptime, _, _ = strings.Cut(string(up), " ")
	r.Round, r.Boot = g.round(), g.boot
	return r
}
