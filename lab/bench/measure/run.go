// Package measure runs the engines on a set of images, step by step, and makes tables of what they used.
//
// The engines take turns within each step, so that what else the machine does falls on all of them alike. It compares
// what is restored with what was backed up. Its invariant: a step of which the result is wrong has no row.
package measure

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/lab/bench/engines"
	"github.com/cairn-backup/cairn/lab/bench/images"
)

// Row is one engine's usage in one step of one round.
type Row struct {
	Step string `json:"step"`
	// Kind is that of the machines whose images were backed up, if they are of one kind.
	Kind   images.Kind `json:"kind,omitempty"`
	Engine string      `json:"engine"`
	Round  int         `json:"round"`
	Wall   float64     `json:"wall_s"`
	CPU    float64     `json:"cpu_s"`
	RSS    int64       `json:"rss_bytes"`
	Bytes  int64       `json:"repository_bytes"` // after the step
	Added  int64       `json:"added_bytes"`      // by it; negative if it freed
	// Restored is how much a restored image has that is no hole.
	Restored int64 `json:"restored_bytes,omitempty"`
}

// The steps, in their order.
const (
	Full        = "full"
	Second      = "second VM"
	Third       = "third VM"
	Fourth      = "fourth VM"
	ReRead      = "re-read of known data"
	NextDay     = "next day of all VMs"
	LaterDays   = "later days of all VMs"
	RestoreBusy = "restore of the last day, scattered VM"
	RestoreOld  = "restore of the first day"
	RestoreNew  = "restore of the last day"
	Verify      = "verify everything"
	Prune       = "prune and collect"
	LongFull    = "long series: first day"
	LongDays    = "long series: 30 days"
	LongOldest  = "long series: restore of the first day"
	LongNewest  = "long series: restore of the last day"
	BareRead    = "bare: read and BLAKE3"
	BareZstd    = "bare: full, zstd-1"
	BareS2      = "bare: full, S2"
	BareRestore = "bare: restore, zstd-1"
	BareBackS2  = "bare: restore, S2"
)

// Steps lists all of them.
var Steps = []string{
	BareRead, BareZstd, BareS2, BareRestore, BareBackS2, Full, Second, Third, Fourth, ReRead,
	NextDay, Of(NextDay, images.Quiet), Of(NextDay, images.Scattered), LaterDays, Of(LaterDays, images.Quiet), Of(LaterDays, images.Scattered),
	RestoreOld, RestoreNew, RestoreBusy, Verify, Prune, LongFull, LongDays, LongOldest, LongNewest,
}

// firsts are the first backups of the machines, in their order.
var firsts = []string{Full, Second, Third, Fourth}

// Of is the part of a step over all machines that those of one kind have in it.
func Of(step string, k images.Kind) string { return strings.Replace(step, "all", string(k), 1) }

// Run says what is to be measured.
type Run struct {
	Images   string // directory of the set
	Work     string // repositories and what is restored
	Engines  []string
	Programs engines.Programs
	Rounds   int
	Days     int  // of all machines, at most; 0 is as many as there are
	NoLong   bool // without the long series
	Out      io.Writer
	Say      func(string)
}

// contestant is an engine in a round.
type contestant struct {
	engines.Engine
	name  string
	home  string
	bytes int64
	// restored is how much the last restore gave.
	restored int64
	points   map[string][]string // by machine, a point a day
}

// round is one pass over all steps.
type round struct {
	*Run
	set    images.Set
	number int
	dir    string
	field  []*contestant
}

// Do measures, and writes a row of JSON after each step.
func (r *Run) Do(ctx context.Context) error {
	set, err := images.Load(r.Images)
	if err != nil {
		return err
	}
	if n := len(set.Machines); n < 3 || n > len(firsts) {
		return fmt.Errorf("the set in %s has %d machines, not 3 to %d", r.Images, n, len(firsts))
	}
	for i := range set.Machines {
		if m := &set.Machines[i]; r.Days > 0 {
			m.Days = min(m.Days, r.Days)
		}
	}
	for n := range r.Rounds {
		x := &round{Run: r, set: set, number: n + 1, dir: filepath.Join(r.Work, fmt.Sprintf("round-%d", n+1))}
		err := x.do(ctx)
		if err = errors.Join(err, os.RemoveAll(x.dir)); err != nil {
			return err
		}
	}
	return nil
}

func (x *round) do(ctx context.Context) error {
	if err := x.bare(ctx); err != nil {
		return err
	}
	if err := x.main(ctx); err != nil || x.NoLong {
		return err
	}
	return x.long(ctx)
}

// open makes a new repository for each engine. Who begins differs from round to round.
func (x *round) open(ctx context.Context, part string) error {
	x.field = nil
	for i := range x.Engines {
		name := x.Engines[(i+x.number-1)%len(x.Engines)]
		c := &contestant{name: name, home: filepath.Join(x.dir, part, name), points: map[string][]string{}}
		var err error
		if c.Engine, err = engines.New(name, c.home, x.Programs); err != nil {
			return err
		}
		if err := c.Init(ctx); err != nil {
			return err
		}
		if c.bytes, err = c.Bytes(); err != nil {
			return err
		}
		x.field = append(x.field, c)
	}
	return nil
}

// each lets the engines do a step in turn, on machines of a kind, or of no one kind.
func (x *round) each(ctx context.Context, step string, k images.Kind, do func(c *contestant) (engines.Usage, error)) error {
	for _, c := range x.field {
		if err := ctx.Err(); err != nil {
			return err
		}
		u, err := do(c)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", c.name, step, err)
		}
		now, err := c.Bytes()
		if err != nil {
			return err
		}
		row := x.row(step, c.name, u)
		row.Kind = k
		row.Bytes, row.Added, c.bytes = now, now-c.bytes, now
		row.Restored, c.restored = c.restored, 0
		if err := x.write(row); err != nil {
			return err
		}
	}
	return nil
}

func (x *round) row(step, engine string, u engines.Usage) Row {
	return Row{Step: step, Engine: engine, Round: x.number, Wall: u.Wall.Seconds(), CPU: u.CPU.Seconds(), RSS: u.RSS}
}

func (x *round) write(row Row) error {
	x.Say(fmt.Sprintf("%s  %-38s %-14s wall %7.1f s  CPU %7.1f s  RSS %4d MiB  repository %6d MiB  added %6d MiB", time.Now().Format("15:04:05"),
		row.Step, row.Engine, row.Wall, row.CPU, row.RSS>>20, row.Bytes>>20, row.Added>>20))
	p, err := json.Marshal(row)
	if err != nil {
		return err
	}
	_, err = x.Out.Write(append(p, '\n'))
	return err
}

// backup backs up an image as the machine's disk of that day: always under the same path, as a guest's disk has it.
func (x *round) backup(ctx context.Context, c *contestant, machine, image, record string) (engines.Usage, error) {
	src := filepath.Join(c.home, "src", machine)
	disk := filepath.Join(src, "disk.img")
	if err := os.MkdirAll(src, 0o755); err != nil {
		return engines.Usage{}, err
	}
	remove, err := images.Place(ctx, image, disk)
	if err != nil {
		return engines.Usage{}, err
	}
	if err := settle(image); err != nil {
		return engines.Usage{}, errors.Join(err, remove())
	}
	point, u, err := c.Backup(ctx, machine, src, record)
	c.points[machine] = append(c.points[machine], point)
	return u, errors.Join(err, remove())
}

// live is where the image of a machine is on the day that it has come to.
func (x *round) live(machine string) string { return filepath.Join(x.dir, machine+".img") }

// tally is what an engine used and added.
type tally struct {
	engines.Usage
	added int64
}

// days lets days pass and has all machines backed up on each of them. There is a row for all and one for each kind.
func (x *round) days(ctx context.Context, step string, machines []images.Machine, from, to int) error {
	sums := map[images.Kind]map[string]tally{}
	all := map[string]tally{}
	for day := from; day <= to; day++ {
		for _, m := range machines {
			if day > m.Days {
				continue
			}
			if sums[m.Kind] == nil {
				sums[m.Kind] = map[string]tally{}
			}
			if err := x.day(ctx, m, day, sums[m.Kind], all); err != nil {
				return err
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	for _, k := range images.Kinds {
		if len(sums) < 2 || sums[k] == nil {
			continue
		}
		for _, c := range x.field {
			row := x.row(Of(step, k), c.name, sums[k][c.name].Usage)
			row.Kind, row.Added = k, sums[k][c.name].added
			if err := x.write(row); err != nil {
				return err
			}
		}
	}
	return x.each(ctx, step, "", func(c *contestant) (engines.Usage, error) {
		c.bytes -= all[c.name].added
		return all[c.name].Usage, nil
	})
}

// day lets a day pass on one machine and has it backed up.
func (x *round) day(ctx context.Context, m images.Machine, day int, sums ...map[string]tally) error {
	if err := images.Advance(x.Images, m.Name, day, x.live(m.Name)); err != nil {
		return err
	}
	for _, c := range x.field {
		u, err := x.backup(ctx, c, m.Name, x.live(m.Name), images.Record(x.Images, m.Name, day))
		if err != nil {
			return fmt.Errorf("%s, day %d of %s: %w", c.name, day, m.Name, err)
		}
		now, err := c.Bytes()
		if err != nil {
			return err
		}
		for _, s := range sums {
			s[c.name] = tally{s[c.name].Plus(u), s[c.name].added + now - c.bytes}
		}
		c.bytes = now
	}
	return nil
}

// begin puts the first images where they change.
func (x *round) begin(ctx context.Context, machines ...images.Machine) error {
	for _, m := range machines {
		if err := images.Copy(ctx, images.First(x.Images, m.Name), x.live(m.Name)); err != nil {
			return err
		}
	}
	return nil
}

// restore restores a point and compares it.
func (x *round) restore(ctx context.Context, c *contestant, point, want string) (engines.Usage, error) {
	into := filepath.Join(c.home, "restored")
	if err := os.MkdirAll(into, 0o755); err != nil {
		return engines.Usage{}, err
	}
	if err := settle(c.home); err != nil {
		return engines.Usage{}, err
	}
	path, u, err := c.Restore(ctx, point, into)
	if err == nil {
		err = Restored(want, path)
	}
	if err == nil {
		c.restored, err = images.Allocated(want)
	}
	return u, errors.Join(err, os.RemoveAll(into))
}

// Restored says what is wrong with a restored image: other bytes, another size, or not sparse.
func Restored(want, got string) error {
	if err := images.Same(want, got); err != nil {
		return fmt.Errorf("restored image is not what was backed up: %w", err)
	}
	w, err := images.Allocated(want)
	if err != nil {
		return err
	}
	g, err := images.Allocated(got)
	if err != nil {
		return err
	}
	if g > w+w/10+16<<20 {
		return fmt.Errorf("restored image is not sparse: it takes %d bytes, what was backed up %d", g, w)
	}
	return nil
}

// main is all machines over some days.
func (x *round) main(ctx context.Context) error {
	machines := x.set.Machines
	if err := errors.Join(x.open(ctx, "main"), x.begin(ctx, machines...)); err != nil {
		return err
	}
	first, last := machines[0], 0
	var names []string
	for _, m := range machines {
		last, names = max(last, m.Days), append(names, m.Name)
	}
	whole := func(m images.Machine) func(c *contestant) (engines.Usage, error) {
		return func(c *contestant) (engines.Usage, error) { return x.backup(ctx, c, m.Name, x.live(m.Name), "") }
	}
	for i, m := range machines {
		if err := x.each(ctx, firsts[i], m.Kind, whole(m)); err != nil {
			return err
		}
	}
	err := x.each(ctx, ReRead, first.Kind, whole(first))
	if err == nil {
		err = x.days(ctx, NextDay, machines, 2, 2)
	}
	if err == nil {
		err = x.days(ctx, LaterDays, machines, 3, last)
	}
	if err == nil {
		err = x.back(ctx, first, RestoreOld, RestoreNew)
	}
	if at := slices.IndexFunc(machines, func(m images.Machine) bool { return m.Kind == images.Scattered }); err == nil && at >= 0 {
		err = x.newest(ctx, machines[at], RestoreBusy)
	}
	if err == nil {
		err = x.each(ctx, Verify, "", func(c *contestant) (engines.Usage, error) {
			if err := settle(c.home); err != nil {
				return engines.Usage{}, err
			}
			return c.Verify(ctx)
		})
	}
	if err == nil {
		err = x.each(ctx, Prune, "", func(c *contestant) (engines.Usage, error) {
			if err := settle(c.home); err != nil {
				return engines.Usage{}, err
			}
			return c.Prune(ctx, names, 2)
		})
	}
	return errors.Join(err, x.end("main", machines...))
}

// back restores a machine's first and last day.
func (x *round) back(ctx context.Context, m images.Machine, oldest, newest string) error {
	err := x.each(ctx, oldest, m.Kind, func(c *contestant) (engines.Usage, error) {
		return x.restore(ctx, c, c.points[m.Name][0], images.First(x.Images, m.Name))
	})
	if err != nil {
		return err
	}
	return x.newest(ctx, m, newest)
}

// newest restores a machine's last day.
func (x *round) newest(ctx context.Context, m images.Machine, step string) error {
	return x.each(ctx, step, m.Kind, func(c *contestant) (engines.Usage, error) {
		points := c.points[m.Name]
		return x.restore(ctx, c, points[len(points)-1], x.live(m.Name))
	})
}

// end removes what a part left.
func (x *round) end(part string, machines ...images.Machine) error {
	errs := []error{os.RemoveAll(filepath.Join(x.dir, part))}
	for _, m := range machines {
		errs = append(errs, os.Remove(x.live(m.Name)))
	}
	return errors.Join(errs...)
}

// long follows one machine for many days.
func (x *round) long(ctx context.Context) error {
	m := x.set.Long
	if err := errors.Join(x.open(ctx, "long"), x.begin(ctx, m)); err != nil {
		return err
	}
	err := x.each(ctx, LongFull, m.Kind, func(c *contestant) (engines.Usage, error) { return x.backup(ctx, c, m.Name, x.live(m.Name), "") })
	if err == nil {
		err = x.days(ctx, LongDays, []images.Machine{m}, 2, m.Days)
	}
	if err == nil {
		err = x.back(ctx, m, LongOldest, LongNewest)
	}
	return errors.Join(err, x.end("long", m))
}

// bare measures the pipelines that have nothing around them.
func (x *round) bare(ctx context.Context) error {
	if err := os.MkdirAll(x.dir, 0o755); err != nil {
		return err
	}
	image := images.First(x.Images, x.set.Machines[0].Name)
	out, back := filepath.Join(x.dir, "bare"), filepath.Join(x.dir, "bare.img")
	for _, b := range []struct {
		step string
		args []string
	}{
		{BareRead, []string{"write", image}},
		{BareZstd, []string{"write", image, out + ".zstd", "--codec=zstd"}},
		{BareS2, []string{"write", image, out + ".s2", "--codec=s2"}},
		{BareRestore, []string{"restore", out + ".zstd", back, "--codec=zstd"}},
		{BareBackS2, []string{"restore", out + ".s2", back, "--codec=s2"}},
	} {
		if err := settle(b.args[1]); err != nil {
			return err
		}
		u, err := engines.Bare(ctx, x.Programs.Cairn, b.args)
		if err != nil {
			return err
		}
		row := x.row(b.step, "bare", u)
		if b.args[0] == "restore" {
			if err := errors.Join(Restored(image, back), os.Remove(back)); err != nil {
				return err
			}
		} else if len(b.args) > 2 {
			info, err := os.Stat(b.args[2])
			if err != nil {
				return err
			}
			row.Bytes, row.Added = info.Size(), info.Size()
		}
		if err := x.write(row); err != nil {
			return err
		}
	}
	return nil
}

// Load reads rows.
func Load(path string) (rows []Row, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for d := json.NewDecoder(f); ; {
		var row Row
		err := d.Decode(&row)
		if errors.Is(err, io.EOF) {
			return rows, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read rows of %s: %w", path, err)
		}
		if !slices.Contains(Steps, row.Step) {
			return nil, fmt.Errorf("%s has a step %q that there is not", path, row.Step)
		}
		rows = append(rows, row)
	}
}
