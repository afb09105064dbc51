package peers_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/jobs"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/locked"
	"github.com/cairn-backup/cairn/internal/postgrestest"
	"github.com/cairn-backup/cairn/internal/seeded"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// Managers on one database are killed, cut off, stopped and made to stand still at random. Every task runs to its end once,
// whoever does it, and no VM is ever worked on by two.
func TestManagersThatDie(t *testing.T) {
	tasks, strikes := 36, 8
	if os.Getenv("CAIRN_SOAK") != "" {
		tasks, strikes = 500, 60
	}
	for _, managers := range []int{2, 3} {
		t.Run(fmt.Sprintf("%d managers", managers), func(t *testing.T) {
			t.Parallel()
			c := newCampaign(t, managers, tasks, strikes)
			c.run()
			c.judgeAll()
		})
	}
}

// campaign is one run of it.
type campaign struct {
	t       *testing.T
	seed    uint64
	random  *rand.Rand
	dir     string
	address string
	judge   *judge
	catalog *catalog.Catalog
	queue   *jobs.Queue
	count   int // of managers
	strikes int // that are left; negative: how many more there were, until something was proven

	vms     []*target
	repos   []string
	conn    string
	running []*process
	started int
	faults  map[string]int
	log     locked.Buffer
}

// target is a VM and what is still to be done with it.
type target struct {
	vm   hypervisors.VM
	left int
	task string // under way
}

// process is a manager.
type process struct {
	name   string
	cmd    *exec.Cmd
	link   *link
	ended  chan struct{}
	asleep bool
}

func newCampaign(t *testing.T, managers, tasks, strikes int) *campaign {
	t.Helper()
	c := &campaign{t: t, seed: seeded.Seed(t), dir: t.TempDir(), address: postgrestest.Database(t), count: managers, strikes: strikes, faults: map[string]int{}}
	c.random = rand.New(rand.NewPCG(c.seed, 1)) //nolint:gosec // a test's
	c.judge = newJudge(t, c.dir)
	c.open()
	for i := range 12 {
		vm := c.judge.platform.AddVM(memplatform.VMSpec{Name: fmt.Sprintf("vm%d", i), Disks: []int64{1 << 20}})
		c.vms = append(c.vms, &target{vm: vm, left: tasks / 12})
	}
	t.Cleanup(func() {
		for _, p := range c.running {
			p.kill()
		}
		if t.Failed() {
			t.Log(c.log.String())
		}
	})
	return c
}

// open makes the catalog, and a queue that only takes orders.
func (c *campaign) open() {
	c.t.Helper()
	var err error
	c.catalog, err = catalog.Open(c.t.Context(), catalog.Options{Address: catalog.Secret(c.address), KeyFile: filepath.Join(c.dir, keyFile)})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = c.catalog.Close() })
	conn := catalog.Connection{Name: "lab", Platform: memplatform.PlatformName}
	if err := c.catalog.CreateConnection(c.t.Context(), &conn, ""); err != nil {
		c.t.Fatal(err)
	}
	c.conn = conn.ID
	for i := range 4 {
		r := catalog.Repository{Name: fmt.Sprintf("repo%d", i), Path: fmt.Sprintf("/repo%d", i)}
		if err := c.catalog.CreateRepository(c.t.Context(), &r); err != nil {
			c.t.Fatal(err)
		}
		c.repos = append(c.repos, r.ID)
	}
	log := slog.New(slog.DiscardHandler)
	c.queue, err = jobs.New(c.t.Context(), jobs.Options{Catalog: c.catalog, Journal: jobs.NewJournal(c.catalog, nil, log), Publish: nobody{}, Log: log})
	if err != nil {
		c.t.Fatal(err)
	}
}

// start starts a manager with a link of its own.
func (c *campaign) start() *process {
	c.t.Helper()
	c.started++
	p := &process{name: fmt.Sprintf("m%d", c.started), link: newLink(c.t), ended: make(chan struct{})}
	u, err := url.Parse(c.address)
	if err != nil {
		c.t.Fatal(err)
	}
	u.Host, u.RawQuery = "127.0.0.1:"+p.link.port(), "sslmode=disable"
	p.cmd = exec.Command(os.Args[0]) //nolint:gosec,noctx // this program
	p.cmd.Env = append(os.Environ(), childEnv+"="+p.name, addressEnv+"="+u.String(), dirEnv+"="+c.dir, fmt.Sprintf("%s=%d", seedEnv, c.random.Uint64()))
	p.cmd.Stdout, p.cmd.Stderr = &c.log, &c.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	c.running = append(c.running, p)
	return p
}

func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// kill ends a process that may be ended already.
func (p *process) kill() {
	p.signal(syscall.SIGKILL)
	<-p.ended
}

// run works through all there is to do while managers come and go.
func (c *campaign) run() {
	for range c.count {
		c.start()
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	next := time.Now()
	for !c.feed() {
		select {
		case <-tick.C:
		case <-c.t.Context().Done():
			c.t.Fatal("the test ends before the tasks do")
		}
		c.bury()
		if c.striking() && time.Now().After(next) {
			next = time.Now().Add(time.Duration(500+c.random.IntN(2000)) * time.Millisecond)
			c.strike()
		}
	}
	c.rest()
}

// feed gives each VM its next task when the one before has ended. One that has failed because its manager was killed before
// it had kept anything is asked for again. It reports whether all is done.
func (c *campaign) feed() bool {
	done := true
	for i, v := range c.vms {
		if v.task != "" {
			task, err := c.catalog.Task(c.t.Context(), v.task)
			if err != nil {
				c.t.Fatal(err)
			}
			switch {
			case !task.State.Final():
				done = false
				continue
			case task.State == catalog.Failed:
				c.mayFail(task)
			case task.Result == nil:
				c.t.Errorf("%s is %s and has made nothing", task.ID, task.State)
			default:
				v.left--
			}
			v.task = ""
		}
		if v.left <= 0 && !c.striking() {
			continue
		}
		done = false
		task := &catalog.Task{VMID: v.vm.ID, VMName: v.vm.Name, Subject: v.vm.ID, ConnectionID: c.conn}
		if i%4 != 0 {
			task.RepositoryID = c.repos[c.random.IntN(len(c.repos))]
		}
		if _, err := c.queue.Submit(c.t.Context(), &catalog.Run{Kind: catalog.KindRestore}, task); err != nil {
			c.t.Fatalf("%s: %v", v.vm.Name, err)
		}
		v.task = task.ID
	}
	return done
}

// mayFail looks whether a task has failed for the one reason there may be.
func (c *campaign) mayFail(task catalog.Task) {
	c.faults["failed tasks"]++
	if task.Error == nil || !strings.Contains(task.Error.What, "manager stopped") || task.Result != nil {
		c.t.Errorf("%s has failed: %+v, result %+v", task.ID, task.Error, task.Result)
	}
	c.judge.mu.Lock()
	defer c.judge.mu.Unlock()
	if c.judge.made[task.ID] != 0 {
		c.t.Errorf("%s has failed, and has made what it makes", task.ID)
	}
}

// bury replaces processes that have ended.
func (c *campaign) bury() {
	for i, p := range c.running {
		select {
		case <-p.ended:
			c.faults["swallowed"] += p.link.swallowed()
			c.running[i] = c.running[len(c.running)-1]
			c.running = c.running[:len(c.running)-1]
			c.start()
			return
		default:
		}
	}
}

// striking reports whether there is more to be done to the managers: all that was asked for, and then as much as it takes to prove
// something. It depends on the machine's load which tasks a manager has begun when it is struck.
func (c *campaign) striking() bool {
	return c.strikes > 0 || c.strikes > -100 && !c.proven()
}

// proven reports whether a task of a manager that was struck went on elsewhere, and links that were cut have lost something.
func (c *campaign) proven() bool {
	lost := c.faults["swallowed"]
	for _, p := range c.running {
		lost += p.link.swallowed()
	}
	c.judge.mu.Lock()
	defer c.judge.mu.Unlock()
	return c.judge.taken > 0 && c.faults["killed"]+c.faults["cut off"]+c.faults["stood still"] > 0 && (lost > 0 || c.faults["cut off"] == 0)
}

// strike does something to one of the managers.
func (c *campaign) strike() {
	p := c.running[c.random.IntN(len(c.running))]
	if p.asleep {
		return
	}
	c.strikes--
	switch n := c.random.IntN(10); {
	case n < 4:
		c.faults["killed"]++
		p.signal(syscall.SIGKILL)
	case n < 6:
		c.faults["asked to stop"]++
		p.signal(syscall.SIGTERM)
	case n < 8:
		c.faults["cut off"]++
		p.asleep = true
		p.link.cut()
	default:
		c.faults["stood still"]++
		p.asleep = true
		c.judge.wakes(p.name)
		p.signal(syscall.SIGSTOP)
		time.AfterFunc(lease+time.Second, func() { p.signal(syscall.SIGCONT) })
	}
}

// rest stops all managers but a new one, which has to leave nothing behind.
func (c *campaign) rest() {
	for _, p := range c.running {
		c.faults["swallowed"] += p.link.swallowed()
		p.kill()
	}
	c.running = nil
	last := c.start()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		owed, err := c.catalog.OpenCleanups(c.t.Context(), "")
		if err != nil {
			c.t.Fatal(err)
		}
		left, err := c.judge.driver.Leftovers(c.t.Context())
		if err != nil {
			c.t.Fatal(err)
		}
		if len(owed)+len(left) == 0 && c.serves(last) {
			break
		}
		select {
		case <-tick.C:
		case <-last.ended:
			c.t.Fatal("the last manager has ended")
		case <-c.t.Context().Done():
			c.t.Fatalf("owed: %v, left: %v", owed, left)
		}
	}
	last.signal(syscall.SIGTERM)
	<-last.ended
	if !last.cmd.ProcessState.Success() {
		c.t.Errorf("the last manager ended with %v", last.cmd.ProcessState)
	}
}

// serves reports whether a manager has taken over what there is.
func (c *campaign) serves(p *process) bool {
	for _, r := range c.repos {
		owner, err := c.catalog.OwnerOf(c.t.Context(), r)
		if err != nil {
			c.t.Fatal(err)
		}
		if owner.Name != p.name {
			return false
		}
	}
	return true
}

// judgeAll says what became of everything.
func (c *campaign) judgeAll() {
	t := c.t
	var done, failed int
	for cursor := ""; ; {
		list, err := c.catalog.Tasks(context.WithoutCancel(t.Context()), catalog.TaskFilter{}, catalog.Page{Limit: catalog.MaxLimit, Cursor: cursor})
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range list.Items {
			switch {
			case task.State == catalog.Failed:
				failed++
			case task.Result != nil && (task.State == catalog.Succeeded || task.State == catalog.Warning):
				done++
			default:
				t.Errorf("%s is %s, result %v", task.ID, task.State, task.Result)
			}
		}
		if cursor = list.Next; cursor == "" {
			break
		}
	}
	c.judge.mu.Lock()
	defer c.judge.mu.Unlock()
	for _, w := range c.judge.wrong {
		t.Error(w)
	}
	if c.faults["cut off"] > 0 && c.faults["swallowed"] == 0 {
		t.Error("links were cut, and nothing was lost on them")
	}
	hit := c.faults["killed"] + c.faults["cut off"] + c.faults["stood still"]
	t.Logf("%d tasks done, %d failed and asked for again, %d went on elsewhere, %d late steps; managers: %d started, %d killed, %d cut off, %d stood still, %d asked to stop",
		done, failed, c.judge.taken, c.judge.late, c.started, c.faults["killed"], c.faults["cut off"], c.faults["stood still"], c.faults["asked to stop"])
	if hit == 0 || c.judge.taken == 0 {
		t.Errorf("%d faults, %d tasks went on elsewhere: the campaign has proven nothing", hit, c.judge.taken)
	}
	if n := bytes.Count([]byte(c.log.String()), []byte("panic")); n > 0 {
		t.Errorf("%d panics", n)
	}
}
