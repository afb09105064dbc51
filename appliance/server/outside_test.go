package server

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/fleet"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/datamover/program"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/locked"
	"github.com/cairn-backup/cairn/lab/netfault"
)

// asMover, in the environment, makes this program cairn-mover.
const asMover = "CAIRN_TEST_AS_MOVER"

func beMover() int {
	if err := program.Main(context.Background(), os.Args[1:], func(string) string { return "" }, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// patience is how long a test waits for what must come; it is no assertion about speed.
const patience = 2 * time.Minute

// outside is a cairn-mover in a process of its own, behind a network that can be broken.
type outside struct {
	b     *bench
	name  string
	state string
	args  []string
	proxy *netfault.Proxy
	log   *locked.Buffer
	cmd   *exec.Cmd
	gone  chan struct{}
}

// listen lets movers in and returns where.
func (b *bench) listen() string {
	b.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := b.listenMovers(ctx, "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func(a *Appliance, l net.Listener) { done <- a.fleet.Serve(ctx, l, a.moverServer()) }(b.Appliance, l)
	b.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Error(err)
		}
	})
	return l.Addr().String()
}

// outside enrols a mover and starts it.
func (b *bench) outside(address, name string, args ...string) *outside {
	b.t.Helper()
	proxy, err := netfault.New(address)
	if err != nil {
		b.t.Fatal(err)
	}
	o := &outside{b: b, name: name, state: filepath.Join(b.t.TempDir(), "state"), proxy: proxy, log: &locked.Buffer{}}
	b.t.Cleanup(func() {
		o.kill()
		proxy.Close()
		if b.t.Failed() {
			b.t.Logf("log of %s:\n%s", name, o.log)
		}
	})
	token, err := b.CreateMoverToken(b.t.Context(), fleet.NewToken{Name: name, Life: time.Hour, By: "admin"})
	if err != nil {
		b.t.Fatal(err)
	}
	o.args = append([]string{"--manager", proxy.Address(), "--state", o.state, "--fingerprint", token.Fingerprint, "--log-level", "debug"}, args...)
	o.start("--token", token.Secret)
	return o
}

// start starts the process and waits until the manager has its stream.
func (o *outside) start(more ...string) {
	o.b.t.Helper()
	self, err := os.Executable()
	if err != nil {
		o.b.t.Fatal(err)
	}
	o.cmd = exec.Command(self, append(o.args, more...)...)
	o.cmd.Env = append(os.Environ(), asMover+"=1")
	o.cmd.Stdout, o.cmd.Stderr = o.log, o.log
	o.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	before := time.Now()
	if err := o.cmd.Start(); err != nil {
		o.b.t.Fatal(err)
	}
	o.gone = make(chan struct{})
	go func(cmd *exec.Cmd, gone chan struct{}) {
		_ = cmd.Wait()
		close(gone)
	}(o.cmd, o.gone)
	o.b.holds("mover "+o.name+" is online", func() bool {
		i, err := o.b.fleet.Get(o.b.t.Context(), o.name)
		return err == nil && i.Since.After(before)
	})
}

// kill is kill -9.
func (o *outside) kill() {
	if o.cmd == nil {
		return
	}
	_ = o.cmd.Process.Kill()
	<-o.gone
	o.cmd = nil
}

func (o *outside) info() fleet.Info {
	o.b.t.Helper()
	i, err := o.b.fleet.Get(o.b.t.Context(), o.name)
	if err != nil {
		o.b.t.Fatal(err)
	}
	return i
}

// holds waits until a condition holds.
func (b *bench) holds(what string, condition func() bool) {
	b.t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(patience)
	for !condition() {
		select {
		case <-tick.C:
		case <-limit:
			b.t.Fatalf("%s: it does not come", what)
		}
	}
}

// through starts a backup that a mover has to make.
func (b *bench) through(mover string) (httpapi.Started, error) {
	return b.StartBackup(b.t.Context(), httpapi.Start{User: "ann"}, httpapi.BackupRequest{VMID: b.vmID, RepositoryID: b.repo, Mover: mover})
}

// restoresThrough is restoresTo by a mover.
func (b *bench) restoresThrough(mover, point, name string, disk0, disk1 []byte) {
	b.t.Helper()
	got0, got1 := b.restored(b.StartRestore(b.t.Context(), httpapi.Start{User: "ann"}, httpapi.RestoreRequest{
		RestorePointID: point, Mode: hypervisors.RestoreNew, Name: name, Mover: mover,
	}))
	if !bytes.Equal(got0, disk0) || !bytes.Equal(got1, disk1) {
		b.t.Errorf("%s: the restored disks are not what was frozen", name)
	}
}

// pointOf is the restore point of a task that has succeeded, of which each disk went through a mover.
func (b *bench) pointOf(task catalog.Task, mover string) catalog.RestorePoint {
	b.t.Helper()
	if task.State != catalog.Succeeded {
		b.t.Fatalf("backup = %s, %+v, %v\n%s", task.State, task.Error, task.Warnings, b.said(task.RunID))
	}
	for _, p := range task.Progress.Disks {
		if p.Mover != mover {
			b.t.Errorf("disk %s went through %q", p.Disk, p.Mover)
		}
	}
	point, err := b.GetRestorePoint(b.t.Context(), task.RestorePointID)
	if err != nil {
		b.t.Fatal(err)
	}
	return point.RestorePoint
}

// said is a run's log.
func (b *bench) said(run string) string {
	b.t.Helper()
	events, err := b.ListRunEvents(b.t.Context(), run, 0, 1000)
	if err != nil {
		b.t.Fatal(err)
	}
	var out strings.Builder
	for _, e := range events {
		out.WriteString(e.Message + "\n")
	}
	return out.String()
}
