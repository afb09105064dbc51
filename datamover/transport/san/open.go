//go:build linux

package santransport

import (
	"cmp"
	"context"
	"log/slog"
	"path"
	"slices"

	"github.com/cairn-backup/cairn/datamover/blockdev"
	"github.com/cairn-backup/cairn/datamover/lvm2"
	"github.com/cairn-backup/cairn/datamover/qcow2"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

const op = "read disk from the SAN"

// Options of the transport. The zero value is good.
type Options struct {
	Devices    blockdev.Options
	CacheBytes int          // of mapping tables for one disk; 0 means 16 MiB
	Log        *slog.Logger // nil logs nothing
}

// OpenTarget refuses: the platform's LUNs are never written.
func (o Options) OpenTarget(_ context.Context, e hypervisors.Export) (hypervisors.TargetDisk, error) {
	return nil, fault.New(fault.Unsupported, "write disk to the SAN", e.Name, "this transport only reads").Explain(
		"Cairn never writes to the platform's storage behind the platform's back.", "Restore by another transport.")
}

// OpenSource opens a disk for reading. ctx bounds the opening only; Close makes calls under way return.
func (o Options) OpenSource(ctx context.Context, e hypervisors.Export) (hypervisors.FrozenDisk, error) {
	s, err := o.open(ctx, e)
	if err != nil {
		return nil, err
	}
	return s, nil
}

func (o Options) open(ctx context.Context, e hypervisors.Export) (_ *source, err error) {
	if err := check(e); err != nil {
		return nil, err
	}
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	o.Devices.Log = cmp.Or(o.Devices.Log, o.Log)
	s := &source{export: e, log: o.Log}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	for _, lun := range e.SAN.LUNs {
		l, err := o.Devices.Open(lun.WWN, lun.SizeBytes)
		if err != nil {
			return nil, err
		}
		if !s.adopt(l) {
			return nil, context.Cause(ctx)
		}
	}
	layers, err := s.layers()
	if err != nil {
		return nil, err
	}
	return s, s.mount(layers, o.CacheBytes)
}

// check refuses exports that say too little, or two things at once.
func check(e hypervisors.Export) error {
	bad := func(format string, args ...any) error { return fault.New(fault.Invalid, op, e.Name, format, args...) }
	switch {
	case e.Transport != hypervisors.TransportSAN:
		return bad("its transport is %q, not san", e.Transport)
	case e.Writable:
		return bad("it is to be written")
	case e.SAN == nil || len(e.SAN.LUNs) == 0 || len(e.SAN.Layers) == 0 || e.SizeBytes <= 0:
		return bad("no LUNs, no layers, or a size of %d bytes", e.SizeBytes)
	case len(e.Extents) > 0 && e.Extents.Size() != e.SizeBytes:
		return bad("the extents are those of %d bytes, the disk has %d", e.Extents.Size(), e.SizeBytes)
	}
	for i, l := range e.SAN.Layers {
		switch {
		case l.Format != hypervisors.Raw && l.Format != hypervisors.QCOW2:
			return bad("layer %d has the format %q", i, l.Format)
		case l.Format == hypervisors.Raw && i != len(e.SAN.Layers)-1:
			return bad("layer %d is raw and not the lowest", i)
		case e.SAN.Grouped() != (l.Volume != "" || l.VolumeName != ""), !e.SAN.Grouped() && l.LUN == "":
			return bad("layer %d names no place, or a volume without a group", i)
		}
	}
	return nil
}

// place is where one layer lies.
type place struct {
	qcow2.File
	volume *lvm2.Volume // nil: a whole LUN
}

// layers finds the places of the export's layers.
func (s *source) layers() ([]place, error) {
	var out []place
	if !s.export.SAN.Grouped() {
		for _, l := range s.export.SAN.Layers {
			lun := s.lun(l.LUN)
			if lun == nil {
				return nil, fault.New(fault.Invalid, op, s.export.Name, "layer on LUN %s, which is not among its LUNs", l.LUN)
			}
			out = append(out, place{File: lun})
		}
		return out, nil
	}
	scan, group, err := s.scan()
	if err != nil {
		return nil, err
	}
	for _, l := range s.export.SAN.Layers {
		v, err := s.volume(group, l)
		if err != nil {
			return nil, err
		}
		r, err := scan.Open(group, v)
		if err != nil {
			return nil, err
		}
		out = append(out, place{File: r, volume: &v})
	}
	s.seqno = group.Seqno
	return out, nil
}

// scan reads the metadata of all LUNs.
func (s *source) scan() (*lvm2.Scan, *lvm2.Group, error) {
	var devices []lvm2.Device
	for _, l := range s.luns {
		devices = append(devices, l)
	}
	scan, err := lvm2.ScanDevices(devices)
	if err != nil {
		return nil, nil, err
	}
	group, err := scan.Group(s.export.SAN.GroupUUID, s.export.SAN.Group)
	return scan, group, err
}

// volume finds the volume of a layer.
func (s *source) volume(g *lvm2.Group, l hypervisors.SANLayer) (lvm2.Volume, error) {
	v, ok := g.Volume(l.Volume)
	which := "has the UUID " + l.Volume
	if l.Volume == "" {
		v, ok = g.Named(l.VolumeName)
		which = "has the name " + l.VolumeName
	}
	if !ok {
		return v, fault.New(fault.NotFound, op, g.Name, "no volume %s", which).Explain(
			"The volume that the disk lies in is gone: it was merged, moved or deleted since the disk was frozen.",
			"Start the task again.")
	}
	if err := s.frozen(g, v, l); err != nil {
		return v, err
	}
	if l.VolumeName != "" && l.VolumeName != v.Name {
		return v, fault.New(fault.Conflict, op, g.Name, "the volume %s is called %q now, not %q", v.UUID, v.Name, l.VolumeName).Explain(
			"The volume was renamed since the disk was frozen.", "Start the task again.")
	}
	return v, nil
}

// frozen looks at what the platform writes of a volume into its tags.
func (s *source) frozen(g *lvm2.Group, v lvm2.Volume, l hypervisors.SANLayer) error {
	has := func(tag string) bool { return slices.Contains(v.Tags, tag) }
	for _, tag := range l.Tags {
		if !has(tag) {
			return s.otherChain("volume %s has the tags %v and not %s", v.Name, v.Tags, tag)
		}
	}
	if i := slices.IndexFunc(l.NotTags, has); i >= 0 {
		return s.otherChain("volume %s has the tag %s", v.Name, l.NotTags[i])
	}
	above := func(o lvm2.Volume) bool { return o.UUID != v.UUID && slices.Contains(o.Tags, l.FrozenBy) }
	if l.FrozenBy != "" && !slices.ContainsFunc(g.Volumes, above) {
		return s.otherChain("no volume lies on %s: it may be written", v.Name)
	}
	return nil
}

// mount makes the layers one disk.
func (s *source) mount(layers []place, cacheBytes int) error {
	for _, l := range layers {
		if l.volume != nil {
			s.volumes = append(s.volumes, *l.volume)
		}
	}
	top := s.export.SAN.Layers[0]
	if top.Format == hypervisors.Raw {
		if layers[0].Size() < s.export.SizeBytes {
			return s.otherSize(layers[0].Size())
		}
		s.content = layers[0]
		return nil
	}
	img, err := qcow2.Open(layers[0], qcow2.Options{CacheBytes: cacheBytes, MaxDepth: len(layers), Backing: func(depth int, name, _ string) (qcow2.Layer, error) {
		if depth+1 >= len(layers) {
			return qcow2.Layer{}, s.otherChain("layer %d has another layer %q below it", depth, name)
		}
		below := s.export.SAN.Layers[depth+1]
		if below.Name != "" && below.Name != name && below.Name != path.Base(name) {
			return qcow2.Layer{}, s.otherChain("layer %d calls the one below it %q, not %q", depth, name, below.Name)
		}
		return qcow2.Layer{File: layers[depth+1], Raw: below.Format == hypervisors.Raw}, nil
	}})
	switch {
	case err != nil:
		return fault.Context(op, s.export.Name, err)
	case img.Layers() != len(layers):
		return s.otherChain("the images form a chain of %d layers, the platform named %d", img.Layers(), len(layers))
	case img.Size() != s.export.SizeBytes:
		return s.otherSize(img.Size())
	}
	s.image, s.content = img, img
	return nil
}

func (s *source) otherChain(format string, args ...any) error {
	return fault.New(fault.Conflict, op, s.export.Name, format, args...).Explain(
		"The disk's chain of images is not the one that the platform describes; a merge may be under way.",
		"Wait until no snapshot of the VM is being made or removed, then start the task again.")
}

func (s *source) otherSize(bytes int64) error {
	return fault.New(fault.Conflict, op, s.export.Name, "it has %d bytes, the platform says %d", bytes, s.export.SizeBytes).Explain(
		"The disk has another size on the storage than on the platform; it may be about to be resized.",
		"Start the task again; if it happens again, look at the disk on the platform.")
}
