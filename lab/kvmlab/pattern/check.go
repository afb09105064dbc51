package pattern

import (
	"bytes"
	"encoding/hex"
	"fmt"
)

// Report is what Check found.
type Report struct {
	Group  string `json:"group"`
	Disks  int    `json:"disks"`   // disks looked at
	Of     int    `json:"of"`      // disks in the group
	Round  uint64 `json:"round"`   // the last round that is whole on every disk
	Blocks int64  `json:"blocks"`  // blocks compared
	InTime bool   `json:"in_time"` // blocks of the round after it were found: frozen while it was being written
}

// String is the line a guest prints.
func (r Report) String() string {
	return fmt.Sprintf("blocks=%d round=%d disks=%d/%d group=%s", r.Blocks, r.Round, r.Disks, r.Of, r.Group)
}

// Check reads a group of disks and returns an error that names the first place which no crash could have left so.
// Disks may be given in any order and some may be missing.
func Check(devs ...Device) (Report, error) {
	var rep Report
	supers := make([]super, len(devs))
	for i, d := range devs {
		s, err := readSuper(d)
		if err != nil {
			return rep, fmt.Errorf("disk %d: %w", i, err)
		}
		if s.size > d.Size() {
			return rep, fmt.Errorf("disk %d: has %d bytes, the pattern was written to %d", i, d.Size(), s.size)
		}
		supers[i] = s
	}
	if err := checkSupers(supers, &rep); err != nil {
		return rep, err
	}
	for i, d := range devs {
		if err := checkDisk(d, supers[i], &rep); err != nil {
			return rep, fmt.Errorf("disk %d: %w", supers[i].disk, err)
		}
	}
	return rep, nil
}

// checkSupers compares the disks' superblocks: one group, and rounds that differ by what the order of writing allows.
func checkSupers(supers []super, rep *Report) error {
	if len(supers) == 0 {
		return ErrBlank
	}
	lo := supers[0].round
	for _, s := range supers {
		lo = min(lo, s.round)
	}
	seen := map[uint32]uint64{}
	for _, s := range supers {
		if s.id != supers[0].id || s.disks != supers[0].disks {
			return fmt.Errorf("the disks belong to different groups")
		}
		if _, dup := seen[s.disk]; dup {
			return fmt.Errorf("disk %d of the group is there twice", s.disk)
		}
		if s.round > lo+1 {
			return fmt.Errorf("disk %d is at round %d and another one at %d: not frozen at one instant", s.disk, s.round, lo)
		}
		seen[s.disk] = s.round
	}
	for disk, round := range seen {
		for other, r := range seen {
			if other > disk && r > round {
				return fmt.Errorf("disk %d is at round %d and disk %d at %d: superblocks are written in order", disk, round, other, r)
			}
		}
	}
	rep.Group, rep.Round = hex.EncodeToString(supers[0].id[:4]), lo
	rep.Disks, rep.Of = len(supers), int(supers[0].disks)
	return nil
}

// checkDisk replays the rounds on paper and compares every run of the area.
func checkDisk(d Device, s super, rep *Report) error {
	l, err := NewLayout(s.size, s.area)
	if err != nil {
		return err
	}
	last := make([]uint64, l.runs())
	// A superblock of another disk may be one ahead: then this disk's data of that round is whole, too. checkSupers
	// guarantees that s.round is lo or lo+1, so that whole is what this disk must have.
	for r := uint64(1); r <= s.round; r++ {
		for _, run := range l.roundRuns(s.id, s.disk, r) {
			last[run] = r
		}
	}
	next := map[int64]bool{}
	for _, run := range l.roundRuns(s.id, s.disk, s.round+1) {
		next[run] = true
	}
	p := make([]byte, clusterBytes)
	for c := range l.clusters {
		if _, err := d.ReadAt(p, l.offset(c*clusterRuns)); err != nil {
			return fmt.Errorf("read: %w", err)
		}
		for i := range int64(clusterRuns) {
			run := c*clusterRuns + i
			if err := checkRun(p[i*RunBlocks*BlockBytes:], s, l.offset(run), last[run], next[run], rep); err != nil {
				return err
			}
		}
	}
	return nil
}

var zeros [BlockBytes]byte

// checkRun compares one run: every block is of round want, or of the next round where that one writes here.
func checkRun(p []byte, s super, off int64, want uint64, next bool, rep *Report) error {
	for b := range int64(RunBlocks) {
		q, at := p[b*BlockBytes:(b+1)*BlockBytes], off+b*BlockBytes
		rep.Blocks++
		if bytes.Equal(q, zeros[:]) {
			if want != 0 {
				return fmt.Errorf("offset %d: zeros, want round %d", at, want)
			}
			continue
		}
		got, err := decodeBlock(q)
		if err != nil {
			return fmt.Errorf("offset %d: %w", at, err)
		}
		inTime := next && got.round == s.round+1
		rep.InTime = rep.InTime || inTime
		if got.id != s.id || got.disk != s.disk || got.offset != at || got.round != want && !inTime {
			return fmt.Errorf("offset %d: holds round %d of disk %d, offset %d; want round %d of disk %d", at, got.round, got.disk, got.offset, want, s.disk)
		}
	}
	return nil
}
