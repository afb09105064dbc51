package kvm

import (
	"context"
	"encoding/xml"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// CleanUp removes what an Owed describes. It looks at the host, never at what this process remembers.
func (d *Driver) CleanUp(ctx context.Context, o hypervisors.Owed) error {
	marked := o.Name
	switch o.Kind {
	case kindDomain:
		marked = marker + o.Args["tag"]
	case kindReplaced:
		marked = baseName(o.Args["new"])
	}
	if !strings.HasPrefix(baseName(marked), marker) {
		return fault.New(fault.Invalid, "clean up", string(o.Kind)+" "+o.Name, "it does not carry the mark %q", marker)
	}
	if err := d.waitMade(ctx, baseName(marked)); err != nil {
		return err
	}
	switch o.Kind {
	case kindFreeze:
		return d.thawGuest(ctx, o.VM)
	case kindBackupJob:
		return d.endJob(ctx, o.VM, func(job *backupXML) bool {
			tag, ok := job.ours()
			return ok && marker+tag == o.Name
		})
	case kindScratch, kindSocket:
		if err := d.endJob(ctx, o.VM, func(job *backupXML) bool { return job.uses(o.Name) }); err != nil {
			return err
		}
		if o.Kind == kindSocket {
			return d.removeSocket(ctx, o.Name)
		}
		return d.removeFile(ctx, o.Name)
	case kindCheckpoint:
		return d.cleanCheckpoint(ctx, o)
	case kindHelper:
		return d.stopHelper(ctx, strings.TrimPrefix(o.Name, marker))
	case hypervisors.OwedAttached:
		return d.unplug(ctx, o)
	case kindMover:
		return d.cleanMover(ctx, o)
	case kindVolume:
		return d.cleanVolume(ctx, o)
	case kindNVRAM:
		return d.cleanNVRAM(ctx, o)
	case kindDomain:
		return d.cleanDomain(ctx, o)
	case kindHanded:
		return d.cleanHanded(ctx, o)
	case kindReplaced:
		return d.cleanReplaced(ctx, o)
	}
	return fault.New(fault.Invalid, "clean up", string(o.Kind)+" "+o.Name, "this driver does not know the kind")
}

// openJob returns the backup job that is open on a domain, or nil.
func openJob(dom *libvirt.Domain) (*backupXML, error) {
	doc, err := dom.BackupGetXMLDesc(0)
	switch number(err) {
	case libvirt.ERR_NO_DOMAIN_BACKUP, libvirt.ERR_OPERATION_INVALID, libvirt.ERR_NO_DOMAIN:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	job := &backupXML{}
	return job, xml.Unmarshal([]byte(doc), job)
}

// endJob aborts the open backup job, which is how a pull backup ends, if it is one that which knows as ours.
func (d *Driver) endJob(ctx context.Context, vm string, which func(*backupXML) bool) error {
	if vm == "" {
		return nil // found as a file that no job uses
	}
	aborted := false
	return poll(ctx, time.Minute, "the backup job of VM "+vm+" has ended", func() (bool, error) {
		gone, err := onDomain(ctx, d.conn, "end backup of", vm, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
			job, err := openJob(dom)
			if err != nil || job == nil || !which(job) {
				return err == nil, err
			}
			if aborted {
				return false, nil
			}
			if err := dom.AbortJob(); err != nil && number(err) != libvirt.ERR_OPERATION_INVALID {
				return false, err
			}
			aborted = true
			return false, nil
		})
		if err != nil && fault.KindOf(err) == fault.NotFound {
			return true, nil // the VM is gone, and its job with it
		}
		return gone, err
	})
}

func (d *Driver) cleanCheckpoint(ctx context.Context, o hypervisors.Owed) error {
	err := d.endJob(ctx, o.VM, func(job *backupXML) bool {
		tag, ok := job.ours()
		return ok && marker+tag == o.Name
	})
	if err != nil {
		return err
	}
	there, err := onDomain(ctx, d.conn, "look up checkpoint "+o.Name+" of", o.VM, func(_ *libvirt.Connect, dom *libvirt.Domain) (bool, error) {
		cp, err := findCheckpoint(dom, o.Name)
		return cp != nil, err
	})
	if err == nil && there {
		err = d.deleteCheckpoints(ctx, o.VM, []string{o.Name})
	}
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return nil
	}
	return err
}

// cleanVolume deletes a volume of a restore, unless a VM uses it: then it is no leftover any more.
func (d *Driver) cleanVolume(ctx context.Context, o hypervisors.Owed) error {
	helper := ""
	used, err := call(ctx, d.conn, "look at volume", o.Name, func(lv *libvirt.Connect) (bool, error) {
		path := volumePath(lv, o.Args["pool"], o.Name)
		if path == "" {
			return false, nil
		}
		users, err := usersOf(lv, path)
		for _, u := range users {
			if u.helper == "" {
				return true, err
			}
			helper = u.helper
		}
		return false, err
	})
	if err != nil || used {
		return err
	}
	if helper != "" {
		if err := d.stopHelper(ctx, helper); err != nil {
			return err
		}
	}
	_, err = call(ctx, d.conn, "delete volume", o.Name, func(lv *libvirt.Connect) (none, error) {
		p, err := lv.LookupStoragePoolByName(o.Args["pool"])
		if number(err) == libvirt.ERR_NO_STORAGE_POOL {
			return none{}, nil
		}
		if err != nil {
			return none{}, err
		}
		defer p.Free()
		return none{}, deleteVolume(p, o.Name)
	})
	return err
}

// deleteVolume deletes a volume of a pool by name; one that is not there is fine. A pool that has not seen the
// volume yet (made just before a crash of libvirtd) is refreshed first.
func deleteVolume(p *libvirt.StoragePool, name string) error {
	v, err := p.LookupStorageVolByName(name)
	if number(err) == libvirt.ERR_NO_STORAGE_VOL {
		if err := p.Refresh(0); err != nil {
			return err
		}
		v, err = p.LookupStorageVolByName(name)
	}
	return deleteFound(v, err)
}

// deleteFound deletes what a look-up of a volume answered; one that is not there is fine.
func deleteFound(v *libvirt.StorageVol, err error) error {
	if number(err) == libvirt.ERR_NO_STORAGE_VOL {
		return nil
	}
	if err != nil {
		return err
	}
	defer v.Free()
	return v.Delete(libvirt.STORAGE_VOL_DELETE_NORMAL)
}

func (d *Driver) cleanNVRAM(ctx context.Context, o hypervisors.Owed) error {
	used, err := call(ctx, d.conn, "look at", o.Name, func(lv *libvirt.Connect) (bool, error) {
		users, err := usersOf(lv, o.Name)
		return len(users) > 0, err
	})
	if err != nil || used {
		return err
	}
	return d.removeFile(ctx, o.Name)
}

// cleanDomain removes a VM that an unfinished restore has made. One that runs has been adopted by somebody.
func (d *Driver) cleanDomain(ctx context.Context, o hypervisors.Owed) error {
	_, err := onDomain(ctx, d.conn, "remove", o.VM, func(_ *libvirt.Connect, dom *libvirt.Domain) (none, error) {
		x, err := domainXML(dom, 0)
		if err != nil {
			return none{}, err
		}
		active, err := dom.IsActive()
		if err != nil {
			return none{}, err
		}
		if active || x.Metadata == nil || readMetadata(x.Metadata.XML).Restored != o.Args["tag"] {
			return none{}, nil
		}
		return none{}, dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_KEEP_NVRAM)
	})
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return nil
	}
	return err
}

// cleanReplaced removes a disk that an in-place restore has replaced. It does so only when the VM really has the
// new disk in that place, and nothing uses the old one.
func (d *Driver) cleanReplaced(ctx context.Context, o hypervisors.Owed) error {
	type answer struct {
		path   string
		remove bool
	}
	a, err := onDomain(ctx, d.conn, "look at", o.VM, func(lv *libvirt.Connect, dom *libvirt.Domain) (answer, error) {
		x, err := domainXML(dom, libvirt.DOMAIN_XML_INACTIVE)
		if err != nil {
			return answer{}, err
		}
		disk := diskOf(x, o.Args["disk"])
		if disk == nil || o.Args["new"] == "" || describeDisk(disk).Path != o.Args["new"] {
			return answer{}, nil
		}
		path := o.Name
		if p := o.Args["pool"]; p != "" {
			path = volumePath(lv, p, o.Name)
		}
		if path == "" || path == o.Args["new"] {
			return answer{}, nil
		}
		v, err := lv.LookupStorageVolByPath(o.Args["new"])
		if err != nil {
			return answer{}, err // never remove the old disk when the new one is not there
		}
		_ = v.Free()
		users, err := usersOf(lv, path)
		if err != nil || len(users) > 0 {
			return answer{}, err
		}
		based, err := isBacking(lv, path)
		return answer{path, !based}, err
	})
	if err != nil {
		if fault.KindOf(err) == fault.NotFound {
			return nil
		}
		return err
	}
	if !a.remove {
		return nil
	}
	found, err := call(ctx, d.conn, "delete replaced disk", a.path, func(lv *libvirt.Connect) (bool, error) {
		v, err := lv.LookupStorageVolByPath(a.path)
		if number(err) == libvirt.ERR_NO_STORAGE_VOL {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		defer v.Free()
		return true, v.Delete(libvirt.STORAGE_VOL_DELETE_NORMAL)
	})
	if err != nil || found || strings.HasPrefix(a.path, "/dev/") {
		return err
	}
	return d.removeFile(ctx, a.path)
}
