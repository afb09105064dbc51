package lvm2

import (
	"fmt"
	"slices"

	"github.com/cairn-backup/cairn/internal/fault"
)

// found is a physical volume on a device.
type found struct {
	device Device
	label  label
	texts  []*Group
}

// Scan is what a set of devices holds.
type Scan struct {
	pvs []found
	// Groups are all groups, each by its newest text.
	Groups []*Group
}

// ScanDevices reads the labels and metadata of devices. Devices without a physical volume are passed over.
//
// One bad metadata area among several good ones is no failure: lvm2 keeps copies for that. A device of which no area is
// good, though it has some, is.
func ScanDevices(devices []Device) (*Scan, error) {
	s := &Scan{}
	for _, d := range devices {
		f, err := scanDevice(d)
		if err != nil {
			return nil, err
		}
		if f == nil {
			continue
		}
		if other := s.device(f.label.uuid); other != nil {
			return nil, fault.New(fault.Conflict, op, "", "%s and %s are the same physical volume %s", other.Name(), d.Name(), f.label.uuid).Explain(
				"Two LUNs with different WWNs hold one physical volume; one of them is likely a copy that the storage array made.",
				"Take the copy away from the mover, or give it new UUIDs with `vgimportclone`; then start the task again.")
		}
		s.pvs = append(s.pvs, *f)
		for _, g := range f.texts {
			if err := s.add(g); err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func scanDevice(d Device) (*found, error) {
	l, err := readLabel(d)
	if err != nil || l == nil {
		return nil, err
	}
	f := &found{device: d, label: *l}
	var bad error
	for _, a := range l.areas {
		text, err := readArea(d, a)
		var g *Group
		if err == nil && text != nil {
			if g, err = parseGroup(text); err != nil {
				err = corrupt(d.Name(), "%w", err)
			}
		}
		if err != nil && fault.KindOf(err) != fault.Corrupt {
			return nil, err
		}
		if err != nil {
			bad = err
		} else if g != nil {
			f.texts = append(f.texts, g)
		}
	}
	if len(f.texts) == 0 && bad != nil {
		return nil, bad
	}
	return f, nil
}

// add keeps the newer of two texts of a group.
func (s *Scan) add(g *Group) error {
	i := slices.IndexFunc(s.Groups, func(o *Group) bool { return SameUUID(o.UUID, g.UUID) })
	switch {
	case i < 0:
		s.Groups = append(s.Groups, g)
	case g.Seqno > s.Groups[i].Seqno:
		s.Groups[i] = g
	case g.Seqno == s.Groups[i].Seqno && !sameText(g, s.Groups[i]):
		return fault.New(fault.Conflict, op, g.Name, "two different texts have the sequence number %d", g.Seqno).Explain(
			"Two hosts have changed the volume group without knowing of each other, so it is not known where its volumes lie.",
			"Check the volume group with `vgck` on a host of the platform.")
	}
	return nil
}

// sameText compares what two texts say of places; comments and times may differ between copies.
func sameText(a, b *Group) bool {
	return fmt.Sprintf("%+v", *a) == fmt.Sprintf("%+v", *b)
}

// device returns the device of a physical volume; nil when it is not among those scanned.
func (s *Scan) device(uuid string) Device {
	for _, p := range s.pvs {
		if SameUUID(p.label.uuid, uuid) {
			return p.device
		}
	}
	return nil
}

// Group returns a group by UUID, or by name where the UUID is empty. A name that two groups have is refused.
func (s *Scan) Group(uuid, name string) (*Group, error) {
	var out *Group
	for _, g := range s.Groups {
		switch {
		case uuid != "" && !SameUUID(g.UUID, uuid), uuid == "" && g.Name != name:
			continue
		case out != nil:
			return nil, fault.New(fault.Conflict, op, name, "two volume groups have this name: %s and %s", out.UUID, g.UUID)
		case name != "" && g.Name != name:
			return nil, fault.New(fault.Conflict, op, name, "the volume group %s is called %q now", g.UUID, g.Name)
		}
		out = g
	}
	if out == nil {
		return nil, fault.New(fault.NotFound, op, name, "none of the %d devices holds this volume group", len(s.pvs)).Explain(
			"The LUNs that the mover sees do not hold the volume group that the disk lies in.",
			"Check that all LUNs of this datastore are mapped to the mover, then start the task again.")
	}
	return out, nil
}

// Open returns a reader of a volume of one of the scan's groups.
func (s *Scan) Open(g *Group, v Volume) (*Reader, error) {
	if v.Unreadable != "" {
		return nil, fault.New(fault.Unsupported, op, g.Name+"/"+v.Name, "%s", v.Unreadable).Explain(
			"The volume's layout cannot be read straight from storage.",
			"Let the policy use another transport for this disk, which lets the hypervisor read it.")
	}
	r := &Reader{volume: v, devices: map[string]Device{}}
	for _, seg := range v.Segments {
		for _, st := range seg.Stripes {
			d, err := s.stripeDevice(g, v, seg, st)
			if err != nil {
				return nil, err
			}
			r.devices[st.PV] = d
		}
	}
	return r, nil
}

// stripeDevice finds the device of a stripe and makes sure that all of the stripe is on it.
func (s *Scan) stripeDevice(g *Group, v Volume, seg Segment, st Stripe) (Device, error) {
	subject := g.Name + "/" + v.Name
	i := slices.IndexFunc(g.Physical, func(p Physical) bool { return p.UUID == st.PV })
	if g.Physical[i].Missing {
		return nil, fault.New(fault.Conflict, op, subject, "LVM has marked its physical volume %s as missing", st.PV).Explain(
			"The volume group has lost one of its LUNs, and what is on that LUN may be out of date.",
			"Repair the volume group on the platform first.")
	}
	d := s.device(st.PV)
	if d == nil {
		return nil, fault.New(fault.NotFound, op, subject, "its physical volume %s is on none of the devices", st.PV).Explain(
			"The mover does not see all LUNs that the disk lies on.",
			"Map all LUNs of this datastore to the mover, then start the task again.")
	}
	if need := seg.Length / int64(len(seg.Stripes)); st.Offset > d.Size() || need > d.Size()-st.Offset {
		return nil, corrupt(subject, "%d bytes at %d of %s, which has %d", need, st.Offset, d.Name(), d.Size())
	}
	return d, nil
}
