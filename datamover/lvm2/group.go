package lvm2

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Group is a volume group as its metadata describes it.
type Group struct {
	Name, UUID  string
	Seqno       int64
	ExtentBytes int64
	Tags        []string
	Physical    []Physical
	Volumes     []Volume // in the order of the text
}

// Physical is a physical volume of a group.
type Physical struct {
	Name      string // in the text: "pv0"
	UUID      string
	Missing   bool // lvm2 itself has marked it as missing
	Tags      []string
	startByte int64 // of its first extent
	extents   int64
}

// Volume is a logical volume.
type Volume struct {
	Name, UUID string
	Size       int64
	Tags       []string
	// Status are lvm2's words: READ, WRITE, VISIBLE …
	Status   []string
	Segments []Segment // ascending, without gaps, from 0 to Size; nil when it is unreadable
	// Snapshots are the names of the volumes that hold classic snapshots of this one.
	Snapshots []string
	// Unreadable says why its bytes cannot be read, in words; "" when they can.
	Unreadable string
}

// Segment is a part of a logical volume. Its bytes go round its stripes, StripeBytes at a time; a linear segment has
// one stripe.
type Segment struct {
	Offset, Length int64 // within the volume
	StripeBytes    int64
	Stripes        []Stripe
}

// Stripe is a place on a physical volume: Offset bytes from the device's begin.
type Stripe struct {
	PV     string // its UUID
	Offset int64
}

// Bounds of numbers in the text; their products stay below 2^62.
const (
	maxExtentSectors = 1 << 31 // 1 TiB
	maxExtents       = 1 << 20 << 10
	maxStart         = 1 << 50
	maxStripes       = 128
)

// parseGroup reads a text and returns the group in it.
func parseGroup(text []byte) (*Group, error) {
	top, err := parseText(text)
	if err != nil {
		return nil, err
	}
	if top.text("contents") != "Text Format Volume Group" {
		return nil, fmt.Errorf("the text is %q, not a volume group", top.text("contents"))
	}
	if _, err := top.number("version", 1, 1); err != nil {
		return nil, err
	}
	if len(top.order) != 1 {
		return nil, fmt.Errorf("the text holds %d groups", len(top.order))
	}
	s := top.sections[top.order[0]]
	g := &Group{Name: top.order[0], UUID: s.text("id"), Tags: s.tags()}
	if g.UUID == "" || !known(s.words("status"), "RESIZEABLE", "READ", "WRITE", "EXPORTED", "CLUSTERED", "SHARED", "PARTIAL") {
		return nil, fmt.Errorf("group %q has the id %q and the status %v", g.Name, g.UUID, s.words("status"))
	}
	if g.Seqno, err = s.number("seqno", 0, 1<<62); err != nil {
		return nil, err
	}
	sectors, err := s.number("extent_size", 1, maxExtentSectors)
	if err != nil {
		return nil, err
	}
	g.ExtentBytes = sectors * sectorBytes
	if err := g.parsePhysical(s.child("physical_volumes")); err != nil {
		return nil, err
	}
	return g, g.parseVolumes(s.child("logical_volumes"))
}

// known reports whether all words are among those listed.
func known(words []string, list ...string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !slices.Contains(list, w) })
}

func (g *Group) parsePhysical(s *section) error {
	for _, name := range s.order {
		c := s.sections[name]
		p := Physical{Name: name, UUID: c.text("id"), Tags: c.tags()}
		p.Missing = slices.Contains(c.words("flags"), "MISSING") || slices.Contains(c.words("status"), "MISSING")
		if p.UUID == "" || slices.ContainsFunc(g.Physical, func(o Physical) bool { return o.UUID == p.UUID }) {
			return fmt.Errorf("physical volume %q has the id %q", name, p.UUID)
		}
		start, err := c.number("pe_start", 0, maxStart)
		if err != nil {
			return fmt.Errorf("physical volume %q: %w", name, err)
		}
		p.startByte = start * sectorBytes
		if p.extents, err = c.number("pe_count", 0, maxExtents); err != nil {
			return fmt.Errorf("physical volume %q: %w", name, err)
		}
		if p.extents > (1<<62)/g.ExtentBytes {
			return fmt.Errorf("physical volume %q has %d extents of %d bytes", name, p.extents, g.ExtentBytes)
		}
		g.Physical = append(g.Physical, p)
	}
	return nil
}

func (g *Group) parseVolumes(s *section) error {
	for _, name := range s.order {
		c := s.sections[name]
		v := Volume{Name: name, UUID: c.text("id"), Tags: c.tags(), Status: c.words("status")}
		if v.UUID == "" {
			return fmt.Errorf("logical volume %q has no id", name)
		}
		if err := g.parseSegments(&v, c); err != nil {
			return fmt.Errorf("logical volume %q: %w", name, err)
		}
		g.Volumes = append(g.Volumes, v)
	}
	for _, name := range s.order {
		g.noteSnapshot(s.sections[name])
	}
	return nil
}

// parseSegments reads the segments of a volume or says why it is not readable.
func (g *Group) parseSegments(v *Volume, s *section) error {
	count, err := s.number("segment_count", 0, maxExtents)
	if err != nil {
		return err
	}
	for i := range count {
		c := s.sections[fmt.Sprintf("segment%d", i+1)]
		if c == nil {
			return fmt.Errorf("segment %d of %d is missing", i+1, count)
		}
		start, err := c.number("start_extent", 0, maxExtents)
		if err != nil {
			return err
		}
		extents, err := c.number("extent_count", 1, maxExtents)
		if err != nil {
			return err
		}
		if start*g.ExtentBytes != v.Size || extents > (1<<61)/g.ExtentBytes-start {
			return fmt.Errorf("segment %d begins at extent %d and has %d", i+1, start, extents)
		}
		v.Size += extents * g.ExtentBytes
		if v.Unreadable != "" {
			continue
		}
		seg, why := g.parseSegment(c, start, extents)
		v.Unreadable = why
		v.Segments = append(v.Segments, seg)
	}
	if v.Unreadable == "" {
		v.Unreadable = unreadableStatus(v.Status)
	}
	if v.Unreadable == "" && v.Size == 0 {
		v.Unreadable = "it has no extents"
	}
	if v.Unreadable != "" {
		v.Segments = nil
	}
	return nil
}

func unreadableStatus(status []string) string {
	switch {
	case slices.Contains(status, "PVMOVE"), slices.Contains(status, "LOCKED"):
		return "it is being moved between physical volumes"
	case !slices.Contains(status, "VISIBLE"):
		return "it is a part of another volume"
	case !slices.Contains(status, "READ"):
		return "its metadata does not allow reading"
	case !known(status, "READ", "WRITE", "VISIBLE", "FIXED_MINOR"):
		return "its status " + strings.Join(status, ", ") + " is not known"
	}
	return ""
}

// kinds are words for the segment types that people know; the others are named as lvm2 names them.
var kinds = map[string]string{
	"thin": "a thin volume", "thin-pool": "a thin pool", "snapshot": "a snapshot", "mirror": "a mirror", "cache": "a cached volume",
	"cache-pool": "a cache pool", "writecache": "a cached volume", "error": "a part that only gives errors", "zero": "a part that is only zeros",
	"vdo": "a VDO volume", "vdo-pool": "a VDO pool", "integrity": "a volume with integrity data",
}

// parseSegment returns one segment, or why it cannot be read.
func (g *Group) parseSegment(s *section, start, extents int64) (Segment, string) {
	seg := Segment{Offset: start * g.ExtentBytes, Length: extents * g.ExtentBytes}
	if kind := s.text("type"); kind != "striped" && kind != "linear" {
		if strings.HasPrefix(kind, "raid") {
			return seg, "it is a RAID volume (" + kind + ")"
		}
		return seg, "it is " + cmp.Or(kinds[kind], fmt.Sprintf("of the unknown type %q", kind))
	}
	count, err := s.number("stripe_count", 1, maxStripes)
	list, _ := s.values["stripes"].([]any)
	if err != nil || int64(len(list)) != 2*count || extents%count != 0 {
		return seg, fmt.Sprintf("a segment of %d extents has %d values for its stripes", extents, len(list))
	}
	seg.StripeBytes = seg.Length
	if count > 1 {
		sectors, err := s.number("stripe_size", 1, maxExtentSectors)
		if err != nil || g.ExtentBytes%(sectors*sectorBytes) != 0 {
			return seg, "the size of its stripes does not divide its extents"
		}
		seg.StripeBytes = sectors * sectorBytes
	}
	for i := 0; i < len(list); i += 2 {
		name, _ := list[i].(string)
		first, ok := list[i+1].(int64)
		n := slices.IndexFunc(g.Physical, func(p Physical) bool { return p.Name == name })
		if n < 0 {
			if strings.HasPrefix(name, "pvmove") {
				return seg, "it is being moved between physical volumes"
			}
			return seg, fmt.Sprintf("it lies on %q, which is no physical volume", name)
		}
		p := g.Physical[n]
		if !ok || first < 0 || first > p.extents || extents/count > p.extents-first {
			return seg, fmt.Sprintf("it lies beyond the end of physical volume %q", name)
		}
		seg.Stripes = append(seg.Stripes, Stripe{PV: p.UUID, Offset: p.startByte + first*g.ExtentBytes})
	}
	return seg, ""
}

// noteSnapshot looks for a classic snapshot: a volume of its own in the text, which names origin and store.
func (g *Group) noteSnapshot(s *section) {
	for _, name := range s.order {
		c := s.sections[name]
		if c.text("type") != "snapshot" {
			continue
		}
		merging := c.text("merging_store")
		store := cmp.Or(c.text("cow_store"), merging)
		for i := range g.Volumes {
			v := &g.Volumes[i]
			switch v.Name {
			case c.text("origin"):
				v.Snapshots = append(v.Snapshots, store)
				if merging != "" && v.Unreadable == "" {
					v.Segments, v.Unreadable = nil, "a snapshot is being merged into it"
				}
			case store:
				v.Segments, v.Unreadable = nil, "it is the store of a snapshot, whose bytes are not the snapshot's content"
			}
		}
	}
}

// Volume returns a logical volume by its UUID, with or without hyphens.
func (g *Group) Volume(uuid string) (Volume, bool) {
	for _, v := range g.Volumes {
		if SameUUID(v.UUID, uuid) {
			return v, true
		}
	}
	return Volume{}, false
}

// Named returns a logical volume by its name.
func (g *Group) Named(name string) (Volume, bool) {
	for _, v := range g.Volumes {
		if v.Name == name {
			return v, true
		}
	}
	return Volume{}, false
}

// SameUUID compares two of LVM's UUIDs without their hyphens.
func SameUUID(a, b string) bool {
	return a != "" && strings.ReplaceAll(a, "-", "") == strings.ReplaceAll(b, "-", "")
}
