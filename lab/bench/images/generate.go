package images

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
)

// First returns the path of a machine's image on day 1.
func First(dir, machine string) string { return filepath.Join(dir, machine, "day-01.img") }

// Record returns the path of what changed from the day before to this one.
func Record(dir, machine string, day int) string {
	return filepath.Join(dir, machine, fmt.Sprintf("day-%02d.json", day))
}

// Delta returns the path of the content of the extents that changed from the day before to this one.
func Delta(dir, machine string, day int) string {
	return filepath.Join(dir, machine, fmt.Sprintf("day-%02d.delta", day))
}

// Load returns the set in a directory.
func Load(dir string) (s Set, err error) {
	p, err := os.ReadFile(filepath.Join(dir, "set.json"))
	if err == nil {
		err = json.Unmarshal(p, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read set of images: %w", err)
	}
	return s, nil
}

// Generator says where a set is made.
type Generator struct {
	Cache   string       // root file systems are kept here
	Dir     string       // where the images go
	Scratch string       // where file systems are mounted and changed, much faster in memory; "" is Dir
	Say     func(string) // is told what is being done
}

// Generate makes a set. Machines that are there already stay, if they are to be as they are. It needs root, for mounting.
func (g Generator) Generate(ctx context.Context, s Set) error {
	if err := os.MkdirAll(g.Dir, 0o755); err != nil {
		return err
	}
	there, err := Load(g.Dir)
	if err == nil && reflect.DeepEqual(there, s) {
		return nil
	}
	if err != nil || there.Seed != s.Seed {
		there = Set{}
	}
	all := append(slices.Clone(s.Machines), s.Long)
	var done []Machine
	for _, m := range append(there.Machines, there.Long) {
		if slices.ContainsFunc(all, func(want Machine) bool { return reflect.DeepEqual(m, want) }) {
			done = append(done, m)
		}
	}
	for _, m := range all {
		if slices.ContainsFunc(done, func(d Machine) bool { return reflect.DeepEqual(d, m) }) {
			continue
		}
		// What is recorded is what is whole: the machine that is being made is not.
		if err := g.record(Set{Name: s.Name, Seed: s.Seed, Machines: done}); err != nil {
			return err
		}
		if err := g.machine(ctx, m, s.Seed); err != nil {
			return err
		}
		done = append(done, m)
	}
	return g.record(s)
}

func (g Generator) record(s Set) error {
	p, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(g.Dir, "set.json"), append(p, '\n'), 0o644)
}

// Build makes the image of any day of a machine.
func Build(ctx context.Context, dir, machine string, day int, path string) error {
	if err := Copy(ctx, First(dir, machine), path); err != nil {
		return err
	}
	for d := 2; d <= day; d++ {
		if err := Advance(dir, machine, d, path); err != nil {
			return err
		}
	}
	return nil
}

// Advance makes the image of the day before that of this day.
func Advance(dir, machine string, day int, path string) error {
	c, err := LoadChanges(Record(dir, machine, day))
	if err != nil {
		return err
	}
	return ApplyDelta(Delta(dir, machine, day), path, c)
}

func (g Generator) machine(ctx context.Context, m Machine, seed uint64) (err error) {
	archive, err := Root(ctx, g.Cache, g.Scratch, m)
	if err != nil {
		return err
	}
	folder := filepath.Join(g.Dir, m.Name)
	if err := errors.Join(os.RemoveAll(folder), os.MkdirAll(folder, 0o755)); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(cmp.Or(g.Scratch, folder), "making-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	current, before := filepath.Join(scratch, "current.img"), filepath.Join(scratch, "before.img")
	if err := format(ctx, archive, current, m); err != nil {
		return err
	}
	if err := advance(ctx, current, m, seed, 1); err != nil {
		return err
	}
	if err := Copy(ctx, current, First(g.Dir, m.Name)); err != nil {
		return err
	}
	g.Say(m.Name + " day 1")
	for day := 2; day <= m.Days; day++ {
		if err := Copy(ctx, current, before); err != nil {
			return err
		}
		if err := advance(ctx, current, m, seed, day); err != nil {
			return err
		}
		c, err := Compare(before, current)
		if err != nil {
			return err
		}
		if err := errors.Join(c.Save(Record(g.Dir, m.Name, day)), SaveDelta(current, Delta(g.Dir, m.Name, day), c)); err != nil {
			return err
		}
		g.Say(fmt.Sprintf("%s day %d: %.1f MiB in %d extents changed, %.1f MiB of 4 KiB blocks", m.Name, day, float64(c.ChangedBytes())/mib,
			len(c.Changed), float64(c.Blocks)*4096/mib))
	}
	return nil
}

// Copy copies an image with its holes.
func Copy(ctx context.Context, from, to string) error {
	return command(ctx, "cp", "--sparse=auto", "--reflink=auto", from, to)
}
