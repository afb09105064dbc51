package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options of Run.
type Options struct {
	Dir    string // for the data; it must not exist
	Serve  func(data string) []string
	Points int // in the large catalog
	VMs    int
	Rounds int // pages a list is measured by, at least
	Follow time.Duration
	Seed   uint64
	Out    io.Writer
}

// limits of the issue, at the 99th percentile.
const (
	somePoints  = 10_000
	someLimit   = 50 * time.Millisecond
	manyLimit   = 100 * time.Millisecond
	vmLimit     = 100 * time.Millisecond
	memoryLimit = 1.10 // of the second half's median to the first half's: single samples rise and fall with the garbage collector
)

// Run measures, and prints a table. It removes what it made.
func Run(ctx context.Context, o Options) (err error) {
	if err := os.Mkdir(o.Dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
	r := rand.New(rand.NewPCG(o.Seed, 1))
	fmt.Fprintf(o.Out, "seed %d\n\n| what | requests | p50 | p99 | highest | limit of p99 | |\n|---|---|---|---|---|---|---|\n", o.Seed)
	data := filepath.Join(o.Dir, "data")
	if err := fill(ctx, data, o.VMs, 0, somePoints, r); err != nil {
		return err
	}
	if err := o.with(ctx, data, func(a *appliance) error { return o.small(ctx, a, r) }); err != nil {
		return err
	}
	if err := fill(ctx, data, 0, somePoints, o.Points, r); err != nil {
		return err
	}
	return o.with(ctx, data, func(a *appliance) error {
		if err := o.large(ctx, a, r); err != nil {
			return err
		}
		return o.follow(ctx, a, r)
	})
}

func fill(ctx context.Context, data string, vms, from, to int, r *rand.Rand) (err error) {
	c, err := openCatalog(ctx, data)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if vms > 0 {
		if err := fillVMs(ctx, c, vms, r); err != nil {
			return err
		}
	}
	return fillPoints(ctx, c, from, to, r)
}

// with runs something against an appliance.
func (o Options) with(ctx context.Context, data string, do func(*appliance) error) (err error) {
	a, err := begin(ctx, data, o.Serve(data))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.end()) }()
	return do(a)
}

// small measures the lists of 10,000 restore points and of the VMs.
func (o Options) small(ctx context.Context, a *appliance, r *rand.Rand) error {
	for _, l := range []struct {
		what, path string
		limit      time.Duration
	}{
		{"10,000 restore points, pages of 100", "/restore-points?limit=100", someLimit},
		{"the same, pages of 1,000", "/restore-points?limit=1000", 0},
		{"the same, sorted by stored bytes, pages of 100", "/restore-points?limit=100&sort=-stored_bytes", someLimit},
	} {
		if err := o.pages(ctx, a, l.what, l.path, l.limit); err != nil {
			return err
		}
	}
	return o.filters(ctx, a, r)
}

// filters measures lists of VMs by filters of random sites, states and names.
func (o Options) filters(ctx context.Context, a *appliance, r *rand.Rand) error {
	var times []time.Duration
	for range o.Rounds {
		q := url.Values{"limit": {"100"}}
		switch r.IntN(3) {
		case 0:
			q.Set("name", sites[r.IntN(len(sites))]+"-*")
		case 1:
			q.Set("name", fmt.Sprintf("*%03d", r.IntN(1000)))
		default:
			q.Set("name", "*"+sites[r.IntN(len(sites))]+"*9*")
			q.Set("power", "off")
		}
		if r.IntN(2) == 0 {
			q.Set("connection", filledConnection)
		}
		if r.IntN(4) == 0 {
			q.Set("include_total", "true")
		}
		if err := a.pace(ctx); err != nil {
			return err
		}
		var list page
		began := time.Now()
		if err := a.call(ctx, "GET", "/vms?"+q.Encode(), nil, 200, &list); err != nil {
			return err
		}
		times = append(times, time.Since(began))
		if len(list.Items) == 0 {
			return fmt.Errorf("no VM for %v", q)
		}
	}
	o.row(fmt.Sprintf("%s VMs filtered by name, power and connection", count(o.VMs)), times, vmLimit)
	return nil
}

// large measures the lists of the large catalog, by all the indexes they have.
func (o Options) large(ctx context.Context, a *appliance, r *rand.Rand) error {
	var one struct {
		Items []struct {
			VMID string `json:"vm_id"`
		}
	}
	if err := a.call(ctx, "GET", "/restore-points?limit=1&fields=vm_id", nil, 200, &one); err != nil {
		return err
	}
	what := count(o.Points) + " restore points, pages of 100"
	for _, l := range []struct{ what, path string }{
		{what, "/restore-points?limit=100"},
		{"the same, by time", "/restore-points?limit=100&sort=time"},
		{"the same, by VM name", "/restore-points?limit=100&sort=vm_name"},
		{"the same, by stored bytes", "/restore-points?limit=100&sort=-stored_bytes"},
		{"the same, of one repository in a hundred", "/restore-points?limit=100&repository=" + smallRepository},
		{"the same, of that repository by VM name", "/restore-points?limit=100&sort=vm_name&repository=" + smallRepository},
		{"the same, of a VM", "/restore-points?limit=100&vm=" + one.Items[0].VMID},
	} {
		if err := o.pages(ctx, a, l.what, l.path, manyLimit); err != nil {
			return err
		}
	}
	if err := o.deep(ctx, a, what); err != nil {
		return err
	}
	if err := o.metrics(ctx, a); err != nil {
		return err
	}
	return o.filters(ctx, a, r)
}

// metrics measures what Prometheus asks, with the series of every VM.
func (o Options) metrics(ctx context.Context, a *appliance) error {
	var times []time.Duration
	for range 20 {
		began := time.Now()
		if err := a.call(ctx, "GET", "/metrics", nil, 200, nil); err != nil {
			return err
		}
		times = append(times, time.Since(began))
	}
	o.row("/metrics with the series of "+count(o.VMs)+" VMs", times, 0)
	return nil
}

// deep walks the whole list, which must be complete, and measures its last tenth.
func (o Options) deep(ctx context.Context, a *appliance, what string) error {
	seen, start, token := 0, "", ""
	for {
		at := "/restore-points?limit=1000&fields=id"
		if token != "" {
			at += "&page_token=" + token
		}
		if err := a.pace(ctx); err != nil {
			return err
		}
		var p page
		if err := a.call(ctx, "GET", at, nil, 200, &p); err != nil {
			return err
		}
		seen += len(p.Items)
		if token = p.Next; token == "" {
			break
		}
		if start == "" && seen >= o.Points*9/10 {
			start = token
		}
	}
	if seen != o.Points || start == "" {
		return fmt.Errorf("the list has %d restore points, want %d", seen, o.Points)
	}
	return o.pages(ctx, a, what+", from nine tenths on", "/restore-points?limit=100&page_token="+start, manyLimit)
}

type page struct {
	Items []struct{ ID string }
	Next  string
}

// pages follows a list from its beginning, again and again, until it has enough pages; all of them when it is short.
func (o Options) pages(ctx context.Context, a *appliance, what, path string, limit time.Duration) error {
	var times []time.Duration
	for len(times) < o.Rounds {
		token := ""
		for len(times) < o.Rounds {
			at := path
			if token != "" {
				at, _, _ = strings.Cut(at, "&page_token=")
				at += "&page_token=" + token
			}
			if err := a.pace(ctx); err != nil {
				return err
			}
			var p page
			began := time.Now()
			if err := a.call(ctx, "GET", at, nil, 200, &p); err != nil {
				return err
			}
			times = append(times, time.Since(began))
			if len(p.Items) == 0 {
				return fmt.Errorf("%s: an empty page", path)
			}
			if token = p.Next; token == "" {
				break
			}
		}
	}
	o.row(what, times, limit)
	return nil
}

// row prints a line of the table; limit 0 is none.
func (o Options) row(what string, times []time.Duration, limit time.Duration) {
	slices.Sort(times)
	at := func(q float64) time.Duration { return times[min(len(times)-1, int(q*float64(len(times))))] }
	verdict, bound := "", ""
	if limit > 0 {
		verdict, bound = "met", limit.String()
		if at(.99) > limit {
			verdict = "**missed**"
		}
	}
	fmt.Fprintf(o.Out, "| %s | %d | %s | %s | %s | %s | %s |\n", what, len(times), ms(at(.5)), ms(at(.99)), ms(times[len(times)-1]), bound, verdict)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// count writes 1000000 as 1,000,000.
func count(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
