package erasure

import (
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/oklog/ulid/v2"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Folders on each member.
const (
	objectFolder  = "objects"
	pendingFolder = "pending"
	deadFolder    = "dead"
	setFolder     = "cairn-erasure"
	leaf          = "_" // holds the files of a folder, so that listing them does not list what is below it
)

// part is one shard as its file's name tells it.
type part struct {
	name  string // the object's
	write string // ULID, lower case: the write it belongs to
	size  int64  // the object's
	k     int
	shard int
	moves int  // how often the object was renamed; the highest number is the newest name
	aside bool // it is bad, and a new one is about to have its name
}

// asideSuffix ends the name of a shard that is being exchanged, until the new one has the name durably: without it, the
// new one would be there under a pending name alone, which says nothing of the object.
const asideSuffix = ".old"

// checkName refuses what cannot be an object's name.
func checkName(name string) error {
	if !fs.ValidPath(name) || name == "." || len(name) > maxName || len(path.Base(name)) > maxName-80 {
		return fault.New(fault.Invalid, "name object", name, "not a name for an object")
	}
	return nil
}

// folderOf maps a folder of objects to that of the members.
func folderOf(folder string) string {
	out := objectFolder
	if folder == "" || folder == "." {
		return out
	}
	for c := range strings.SplitSeq(folder, "/") {
		if strings.HasPrefix(c, leaf) {
			c = leaf + c
		}
		out += "/" + c
	}
	return out
}

// leafOf is the folder of the members in which an object's shards lie.
func leafOf(name string) string { return folderOf(path.Dir(name)) + "/" + leaf + "/" }

func (p part) path() string {
	suffix := ""
	if p.aside {
		suffix = asideSuffix
	}
	return fmt.Sprintf("%s%s~%s.%x.%d.%d.%d%s", leafOf(p.name), path.Base(p.name), p.write, p.size, p.k, p.shard, p.moves, suffix)
}

func (p part) pending() string { return fmt.Sprintf("%s/%s.%d", pendingFolder, p.write, p.shard) }

// parsePart is the reverse of path.
func parsePart(file string) (p part, ok bool) {
	rest, ok := strings.CutPrefix(file, objectFolder+"/")
	if !ok {
		return p, false
	}
	comps := strings.Split(rest, "/")
	n := len(comps)
	if n < 2 || comps[n-2] != leaf {
		return p, false
	}
	base, tag, ok := cutLast(comps[n-1], "~")
	tag, p.aside = strings.CutSuffix(tag, asideSuffix)
	if !ok || base == "" {
		return p, false
	}
	for _, c := range comps[:n-2] {
		if c == leaf {
			return p, false
		}
		p.name += strings.TrimPrefix(c, leaf) + "/"
	}
	p.name += base
	fields := strings.Split(tag, ".")
	if len(fields) != 5 {
		return p, false
	}
	size, err := strconv.ParseInt(fields[1], 16, 64)
	if err != nil || size < 0 || size > maxObject {
		return p, false
	}
	p.write, p.size = fields[0], size
	for i, to := range []*int{&p.k, &p.shard, &p.moves} {
		if *to, err = strconv.Atoi(fields[2+i]); err != nil || *to < 0 {
			return p, false
		}
	}
	if _, err := writeID(p.write); err != nil || p.k < 1 || p.k > maxMembers || p.shard >= maxMembers || checkName(p.name) != nil {
		return p, false
	}
	return p, p.path() == file
}

// parsePending is the reverse of pending.
func parsePending(file string) (write string, shard int, ok bool) {
	rest, ok := strings.CutPrefix(file, pendingFolder+"/")
	write, number, found := strings.Cut(rest, ".")
	shard, err := strconv.Atoi(number)
	if _, idErr := writeID(write); !ok || !found || err != nil || idErr != nil || shard < 0 || shard >= maxMembers {
		return "", 0, false
	}
	return write, shard, true
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", "", false
}

func writeID(text string) (id, error) {
	u, err := ulid.ParseStrict(text)
	if err == nil && strings.ToLower(u.String()) != text {
		err = fmt.Errorf("not lower case")
	}
	return id(u), err
}

// slotOf tells which member of a group of n keeps a shard: the first one is another for each write, so that every
// member has its part of parity.
func slotOf(write string, shard, n int) int { return (shard + turn(write, n)) % n }

// shardOf is the reverse of slotOf.
func shardOf(write string, slot, n int) int { return (slot - turn(write, n) + n) % n }

func turn(write string, n int) int {
	w, err := writeID(write)
	if err != nil {
		return 0
	}
	return (int(w[14])<<8 | int(w[15])) % n
}

// movedMark is the mark that names of a write with fewer moves are void.
func movedMark(write string, moves int) string { return fmt.Sprintf("%s.%d", write, moves) }

func parseMoved(mark string) (write string, moves int, ok bool) {
	write, number, ok := strings.Cut(mark, ".")
	moves, err := strconv.Atoi(number)
	return write, moves, ok && err == nil
}
