//go:build linux

package blockdev

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/internal/fault"
)

const op = "find LUN"

// System is where the kernel shows what it knows. The zero value is this machine; tests put trees of their own there.
type System struct{ Sys, Dev, Proc string }

// WithDefaults puts the real places where none are given.
func (s System) WithDefaults() System {
	for _, f := range []struct {
		at   *string
		real string
	}{{&s.Sys, "/sys"}, {&s.Dev, "/dev"}, {&s.Proc, "/proc"}} {
		if *f.at == "" {
			*f.at = f.real
		}
	}
	return s
}

// device is what sysfs says of a whole device.
type device struct {
	name     string // "sda"
	number   string // "8:0"
	size     int64
	block    int64 // logical block size
	identity string
}

func (s System) dir(name string) string { return filepath.Join(s.Sys, "block", name) }

// WWNs lists the LUNs that this machine sees, by all their names; for messages and for choosing a mover.
func (s System) WWNs() ([]string, error) {
	s = s.WithDefaults()
	names, err := s.names()
	var out []string
	for _, n := range names {
		for _, w := range wwns(s.dir(n)) {
			if !slices.Contains(out, w) {
				out = append(out, w)
			}
		}
	}
	return out, err
}

// names lists the devices that can be paths to a LUN.
func (s System) names() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.Sys, "block"))
	if err != nil {
		return nil, fault.Context("list block devices", "", err)
	}
	var out []string
	for _, e := range entries {
		if Attr(s.dir(e.Name()), "hidden") != "1" && Attr(s.dir(e.Name()), "dm/uuid") == "" {
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// find returns the paths to a LUN. size is what the platform says it has, 0 if it says nothing.
func (s System) find(wwn string, size int64) ([]device, error) {
	want := CanonicalWWN(wwn)
	if want == "" {
		return nil, fault.New(fault.Invalid, op, wwn, "this is no WWN")
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	var out []device
	for _, n := range names {
		if !slices.Contains(wwns(s.dir(n)), want) {
			continue
		}
		d, err := s.look(n)
		if err != nil {
			continue // it is going away
		}
		if why := s.use(d); why != "" {
			return nil, fault.New(fault.Conflict, op, wwn, "/dev/%s %s", n, why).Explain(
				"The LUN, or something on it, is in use by this mover's own system.",
				"A mover must not use the platform's LUNs for itself: unmount what is on it, and look why it was mounted.")
		}
		out = append(out, d)
	}
	return out, agree(out, wwn, size)
}

// agree makes sure that devices are paths to one LUN of the right size.
func agree(paths []device, wwn string, size int64) error {
	if len(paths) == 0 {
		return fault.New(fault.NotFound, op, wwn, "no device of this machine has this WWN").Explain(
			"The mover does not see the LUN that the disk lies on.",
			"Map the LUN to the mover and let its kernel scan for it, or choose another transport.")
	}
	for _, p := range paths {
		if size != 0 && p.size != size {
			return fault.New(fault.Conflict, op, wwn, "/dev/%s has %d bytes, the platform says %d", p.name, p.size, size).Explain(
				"The mover's kernel knows another size of the LUN than the platform: it was resized, or it is another one.",
				"Let the mover's kernel scan the LUN anew, then start the task again.")
		}
		if p.size != paths[0].size || p.identity != paths[0].identity || p.block != paths[0].block {
			return notOne(wwn, paths[0].name, p.name)
		}
	}
	return nil
}

func notOne(wwn, a, b string) error {
	return fault.New(fault.Conflict, op, wwn, "/dev/%s and /dev/%s both have this WWN and are not the same LUN", a, b).Explain(
		"Two different LUNs carry one WWN, so it cannot be told which is the right one; none was read.",
		"Look on the storage array which of them is wrong, and take it away from the mover.")
}

// look reads what sysfs says of a device.
func (s System) look(name string) (device, error) {
	dir := s.dir(name)
	d := device{name: name, number: Attr(dir, "dev"), block: 512}
	sectors, err := strconv.ParseInt(Attr(dir, "size"), 10, 54)
	if err != nil || sectors <= 0 || d.number == "" {
		return d, fault.New(fault.NotFound, "look at device", name, "it is going away, or empty")
	}
	d.size = sectors * 512
	if n, err := strconv.ParseInt(Attr(dir, "queue/logical_block_size"), 10, 32); err == nil && n >= 512 && n <= bufferAlign && n&(n-1) == 0 {
		d.block = n
	}
	serial, _ := os.ReadFile(filepath.Join(dir, "device", "vpd_pg80"))
	d.identity = fmt.Sprintf("%q %q %q %x", Attr(dir, "device/vendor"), Attr(dir, "device/model"), Attr(dir, "device/serial"), serial)
	return d, nil
}

// use says in words what of this machine's own lies on a device: mounts and swap space on it, its partitions and all
// that is built on them. That a multipath map or a volume is built on it is no use by itself.
func (s System) use(d device) string {
	return s.Occupant(s.family(d.name, nil, nil))
}

// Occupant says in words how this machine uses one of the devices with these names ("sda1") and numbers ("8:1"): as a
// file system or as swap space; "" if it does not.
func (s System) Occupant(names, numbers []string) string {
	mounts, _ := os.ReadFile(filepath.Join(s.Proc, "self", "mountinfo"))
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		// Some file systems have a number of their own there; then the source after the dash names the device.
		dash := slices.Index(f, "-")
		if len(f) > 4 && (slices.Contains(numbers, f[2]) || dash > 0 && dash+2 < len(f) && s.isOne(names, f[dash+2])) {
			return "is mounted at " + f[4]
		}
	}
	swaps, _ := os.ReadFile(filepath.Join(s.Proc, "swaps"))
	for line := range strings.Lines(string(swaps)) {
		if f := strings.Fields(line); len(f) > 0 && s.isOne(names, f[0]) {
			return "is used as swap space"
		}
	}
	return ""
}

// isOne reports whether a path names one of the devices, by itself or through a link such as /dev/mapper's.
func (s System) isOne(names []string, path string) bool {
	if !strings.HasPrefix(path, "/dev/") {
		return false
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	return slices.Contains(names, filepath.Base(path))
}

// family collects a device, its partitions and what is built on them, at most a few levels up.
func (s System) family(name string, names, numbers []string) ([]string, []string) {
	if slices.Contains(names, name) || len(names) > 1000 {
		return names, numbers
	}
	dir := s.dir(name)
	names, numbers = append(names, name), append(numbers, Attr(dir, "dev"))
	above, _ := filepath.Glob(filepath.Join(dir, "holders", "*"))
	parts, _ := filepath.Glob(filepath.Join(dir, "*", "partition"))
	for _, p := range parts {
		part := filepath.Dir(p)
		names, numbers = append(names, filepath.Base(part)), append(numbers, Attr(part, "dev"))
		more, _ := filepath.Glob(filepath.Join(part, "holders", "*"))
		above = append(above, more...)
	}
	for _, h := range above {
		names, numbers = s.family(filepath.Base(h), names, numbers)
	}
	return names, numbers
}
