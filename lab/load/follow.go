package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	followers = 100
	perSecond = 50
	backupOf  = 25 // one request in so many starts a backup, of which events come
	samples   = 24 // of the memory
)

// follow lets 100 clients follow the events while 50 requests a second come for some time. Every answer must be right,
// every client must have seen events until the end and never be told to start over.
func (o Options) follow(ctx context.Context, a *appliance, r *rand.Rand) error {
	vms, repository, err := o.live(ctx, a)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, gctx := errgroup.WithContext(ctx)
	streams := make([]stream, followers)
	var open sync.WaitGroup
	open.Add(followers)
	for i := range streams {
		g.Go(func() error { return streams[i].follow(gctx, a, &open) })
	}
	opened := make(chan struct{})
	go func() { open.Wait(); close(opened) }()
	select {
	case <-opened:
	case <-gctx.Done():
		return g.Wait()
	}
	var times []time.Duration
	var memory []int64
	g.Go(func() (err error) {
		defer stop()
		times, memory, err = o.ask(gctx, a, vms, repository, r)
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	o.row(fmt.Sprintf("%d requests a second for %v, %d clients follow the events", perSecond, o.Follow, followers), times, 0)
	least, most := streams[0].events.Load(), int64(0)
	for i := range streams {
		least, most = min(least, streams[i].events.Load()), max(most, streams[i].events.Load())
	}
	if least == 0 {
		return errors.New("a client that follows the events saw none")
	}
	fmt.Fprintf(o.Out, "\nErrors: none. Events that each client saw: %d to %d.\n", least, most)
	return o.flat(memory)
}

// flat prints whether the memory grew.
func (o Options) flat(memory []int64) error {
	half := len(memory) / 2
	if half < 2 {
		return errors.New("too short to say whether memory grows")
	}
	first, second := median(memory[:half]), median(memory[half:])
	verdict := "flat"
	if float64(second) > memoryLimit*float64(first) {
		verdict = "**growing**"
	}
	fmt.Fprintf(o.Out, "Memory of cairnd: %d MiB in the middle of the first half's samples, %d MiB of the second's, at most %d MiB: %s.\n",
		first>>20, second>>20, slices.Max(memory)>>20, verdict)
	return nil
}

func median(samples []int64) int64 { return slices.Sorted(slices.Values(samples))[len(samples)/2] }

// live connects the platform and makes a repository, and returns the VMs that can be backed up.
func (o Options) live(ctx context.Context, a *appliance) (vms []string, repository string, err error) {
	var conn, repo struct{ ID string }
	err = a.call(ctx, "POST", "/connections", map[string]any{"name": "live", "platform": "memory", "address": "here"}, 201, &conn)
	if err != nil {
		return nil, "", err
	}
	where := map[string]any{"name": "live", "path": filepath.Join(o.Dir, "repo")}
	if err := a.call(ctx, "POST", "/repositories", where, 201, &repo); err != nil {
		return nil, "", err
	}
	var list page
	if err := a.call(ctx, "GET", "/vms?connection="+conn.ID, nil, 200, &list); err != nil {
		return nil, "", err
	}
	for _, v := range list.Items {
		vms = append(vms, v.ID)
	}
	if len(vms) != liveVMs {
		return nil, "", fmt.Errorf("%d VMs, want %d", len(vms), liveVMs)
	}
	return vms, repo.ID, nil
}

// ask asks evenly, whether answers have come or not, and notes the memory of the appliance meanwhile.
func (o Options) ask(ctx context.Context, a *appliance, vms []string, repository string, r *rand.Rand) (times []time.Duration, memory []int64, err error) {
	g, ctx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	sample := time.NewTicker(o.Follow / samples)
	defer sample.Stop()
	began := time.Now()
	for n := 0; time.Since(began) < o.Follow; {
		select {
		case <-ctx.Done():
			return nil, nil, errors.Join(ctx.Err(), g.Wait())
		case <-sample.C:
			m, err := a.memory()
			if err != nil {
				return nil, nil, errors.Join(err, g.Wait())
			}
			memory = append(memory, m)
		case <-tick.C:
			method, path, body, status := request(n, vms, repository, r)
			n++
			g.Go(func() error {
				began := time.Now()
				if err := a.call(ctx, method, path, body, status, nil); err != nil {
					return err
				}
				mu.Lock()
				defer mu.Unlock()
				times = append(times, time.Since(began))
				return nil
			})
		}
	}
	return times, memory, g.Wait()
}

// request is the n'th request.
func request(n int, vms []string, repository string, r *rand.Rand) (method, path string, body any, status int) {
	if n%backupOf == 0 {
		vm := vms[n/backupOf%len(vms)]
		return "POST", "/vms/" + vm + "/backup", map[string]any{"repository": repository}, 202
	}
	switch r.IntN(6) {
	case 0:
		return "GET", "/restore-points?limit=50&sort=-time", nil, 200
	case 1:
		return "GET", "/restore-points?limit=20&vm=" + vms[r.IntN(len(vms))], nil, 200
	case 2:
		return "GET", "/vms?name=*" + sites[r.IntN(len(sites))] + "*&limit=50", nil, 200
	case 3:
		return "GET", "/vms/" + vms[r.IntN(len(vms))], nil, 200
	case 4:
		return "GET", "/runs?limit=50", nil, 200
	}
	return "GET", "/tasks?limit=50&state=running", nil, 200
}

// stream is one client that follows the events.
type stream struct{ events atomic.Int64 }

// follow reads events until ctx ends; a stream that ends before is an error.
func (s *stream) follow(ctx context.Context, a *appliance, open *sync.WaitGroup) error {
	resp, err := a.send(ctx, "GET", "/events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		return fmt.Errorf("follow events: %s", resp.Status)
	}
	open.Done()
	lines := bufio.NewReader(resp.Body)
	for {
		line, err := lines.ReadString('\n')
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("an event stream ended: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		topic, ok := strings.CutPrefix(line, "event: ")
		if strings.TrimSpace(topic) == "reset" {
			return errors.New("a client that follows the events was told to start over")
		}
		if ok {
			s.events.Add(1)
		}
	}
}
