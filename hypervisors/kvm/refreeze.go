package kvm

import (
	"context"
	"slices"

	"libvirt.org/go/libvirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// Refreeze takes up a freeze that stands: libvirt keeps a backup job, and a helper, whatever becomes of who began it. Both
// carry the tag, so that the exports are those of this freeze and not of a later one at the same address.
func (d *Driver) Refreeze(ctx context.Context, s hypervisors.Standing) (hypervisors.Frozen, error) {
	vm := s.Info.VM.ID
	if err := checkTag(s.Tag); err != nil {
		return nil, err
	}
	if err := checkUUID(vm); err != nil {
		return nil, err
	}
	f := &frozen{d: d, tag: s.Tag, info: s.Info, owed: slices.Clone(s.Owed)}
	if len(s.Info.Disks) == 0 {
		return f, nil
	}
	stands, err := d.stands(ctx, vm, s)
	if err != nil {
		return nil, err
	}
	if !stands {
		return nil, fault.New(fault.Conflict, "take up freeze of VM", s.Info.VM.Name, "it does not stand any more").Explain(
			"The VM was stopped or started meanwhile, or somebody ended the backup job, so the disks cannot be read as they were.",
			"Run the backup again.")
	}
	if d.access != accessSSH {
		return f, nil
	}
	// The forward went with the process that made it.
	at, err := d.listenAt(s.Tag)
	if err != nil {
		return nil, err
	}
	base, fwd, err := d.exportBase(ctx, s.Tag, at)
	if err != nil {
		return nil, err
	}
	f.fwd = fwd
	f.info.Disks = slices.Clone(s.Info.Disks)
	for i := range f.info.Disks {
		f.info.Disks[i].Export.Address = base.Address
	}
	return f, nil
}

// stands reports whether the job, or the helper, of a freeze is there.
func (d *Driver) stands(ctx context.Context, vm string, s hypervisors.Standing) (bool, error) {
	if slices.ContainsFunc(s.Owed, func(o hypervisors.Owed) bool { return o.Kind == kindHelper }) {
		serves, err := onHelper(ctx, d, s.Tag, "look at helper", func(m monitor) (bool, error) {
			var list []struct{}
			err := qmpRun(m, "query-block-exports", nil, &list)
			return len(list) >= len(s.Info.Disks), err
		})
		if fault.KindOf(err) == fault.NotFound {
			return false, nil
		}
		return serves, err
	}
	return onDomain(ctx, d.conn, "look at backup of", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
		job, err := openJob(dom)
		if err != nil || job == nil {
			return false, err
		}
		tag, ours := job.ours()
		return ours && tag == s.Tag, nil
	})
}
