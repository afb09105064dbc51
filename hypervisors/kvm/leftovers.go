package kvm

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// user is a domain that uses a file; helper is the tag when it is a helper of ours.
type user struct{ uuid, helper string }

// usersOf returns the domains that use a file as a disk, below a disk, or for their UEFI variables.
func usersOf(lv *libvirt.Connect, path string) ([]user, error) {
	all, err := filesInUse(lv)
	return all[path], err
}

// filesInUse maps every file that domains use, as they run and as they are configured, to its users.
func filesInUse(lv *libvirt.Connect) (map[string][]user, error) {
	doms, err := lv.ListAllDomains(0)
	if err != nil {
		return nil, err
	}
	out := map[string][]user{}
	for i := range doms {
		err := addFiles(lv, &doms[i], out)
		_ = doms[i].Free()
		if err != nil && number(err) != libvirt.ERR_NO_DOMAIN {
			return nil, err
		}
	}
	return out, nil
}

func addFiles(lv *libvirt.Connect, dom *libvirt.Domain, out map[string][]user) error {
	for _, flags := range []libvirt.DomainXMLFlags{0, libvirt.DOMAIN_XML_INACTIVE} {
		x, err := domainXML(dom, flags)
		if err != nil {
			return err
		}
		u := user{uuid: x.UUID}
		if isHelper(x) {
			u.helper = readMetadata(x.Metadata.XML).Helper
		}
		add := func(path string) {
			if path != "" && !slices.Contains(out[path], u) {
				out[path] = append(out[path], u)
			}
		}
		add(nvramPath(x))
		for j := range x.Devices.Disks {
			disk := &x.Devices.Disks[j]
			for _, s := range sourcesOf(disk) {
				add(sourcePath(lv, s))
			}
			for _, below := range backingChain(lv, sourcePath(lv, disk.Source)) {
				add(below)
			}
		}
	}
	return nil
}

func sourcesOf(disk *libvirtxml.DomainDisk) []*libvirtxml.DomainDiskSource {
	out := []*libvirtxml.DomainDiskSource{disk.Source}
	if disk.Mirror != nil {
		out = append(out, disk.Mirror.Source)
	}
	for b := disk.BackingStore; b != nil; b = b.BackingStore {
		out = append(out, b.Source)
	}
	return out
}

func sourcePath(lv *libvirt.Connect, s *libvirtxml.DomainDiskSource) string {
	switch {
	case s == nil:
		return ""
	case s.File != nil:
		return s.File.File
	case s.Block != nil:
		return s.Block.Dev
	case s.Volume != nil:
		return volumePath(lv, s.Volume.Pool, s.Volume.Volume)
	}
	return ""
}

// isBacking reports whether a volume of the same pool has a file below it.
func isBacking(lv *libvirt.Connect, path string) (bool, error) {
	p, err := lv.LookupStoragePoolByTargetPath(filepath.Dir(path))
	if number(err) == libvirt.ERR_NO_STORAGE_POOL {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer p.Free()
	vols, err := p.ListAllStorageVolumes(0)
	if err != nil {
		return false, err
	}
	found := false
	for i := range vols {
		own, err := vols[i].GetPath()
		found = found || (err == nil && own != path && slices.Contains(backingChain(lv, own), path))
		_ = vols[i].Free()
	}
	return found, nil
}

// Leftovers returns everything on the host that carries our mark and belongs to no VM.
func (d *Driver) Leftovers(ctx context.Context) ([]hypervisors.Owed, error) {
	return call(ctx, d.conn, "look for leftovers", d.cfg.URI, func(lv *libvirt.Connect) ([]hypervisors.Owed, error) {
		out := []hypervisors.Owed{}
		add := func(o hypervisors.Owed) {
			if !slices.ContainsFunc(out, func(p hypervisors.Owed) bool {
				return p.Kind == o.Kind && p.Name == o.Name && (p.VM == o.VM || o.VM == "")
			}) {
				out = append(out, o)
			}
		}
		doms, err := lv.ListAllDomains(0)
		if err != nil {
			return nil, err
		}
		dirs := map[string]bool{d.cfg.Options[OptScratchDir]: true}
		for i := range doms {
			err := leftoversOf(&doms[i], dirs, add)
			_ = doms[i].Free()
			if err != nil && number(err) != libvirt.ERR_NO_DOMAIN {
				return nil, err
			}
		}
		used, err := filesInUse(lv)
		if err != nil {
			return nil, err
		}
		if err := leftVolumes(lv, used, add); err != nil {
			return nil, err
		}
		if d.access == accessLocal {
			d.leftFiles(dirs, used, add)
		}
		return out, nil
	})
}

// leftoversOf adds what a domain has of ours, and the directories its images are in.
func leftoversOf(dom *libvirt.Domain, dirs map[string]bool, add func(hypervisors.Owed)) error {
	x, err := domainXML(dom, 0)
	if err != nil {
		return err
	}
	if isHelper(x) {
		add(hypervisors.Owed{Kind: kindHelper, Name: x.Name})
		return nil
	}
	if isDeployed(x) {
		if m := readMetadata(x.Metadata.XML); !m.Ready {
			add(hypervisors.Owed{Kind: kindMover, VM: x.UUID, Name: marker + m.Mover})
		}
	}
	for i := range x.Devices.Disks {
		if name := attachedName(&x.Devices.Disks[i]); name != "" {
			add(hypervisors.Owed{Kind: hypervisors.OwedAttached, VM: x.UUID, Name: name})
		}
		if p := describeDisk(&x.Devices.Disks[i]).Path; strings.HasPrefix(p, "/") && !strings.HasPrefix(p, "/dev/") {
			dirs[filepath.Dir(p)] = true
		}
	}
	job, err := openJob(dom)
	if err != nil {
		return err
	}
	if job != nil {
		if tag, ok := job.ours(); ok {
			add(hypervisors.Owed{Kind: kindBackupJob, VM: x.UUID, Name: marker + tag})
			if job.Server.Socket != "" {
				add(hypervisors.Owed{Kind: kindSocket, VM: x.UUID, Name: job.Server.Socket})
			}
			for _, disk := range job.Disks {
				if disk.Scratch != nil {
					add(hypervisors.Owed{Kind: kindScratch, VM: x.UUID, Name: disk.Scratch.File})
				}
			}
		}
	}
	cps, err := listCheckpoints(dom)
	for _, c := range cps {
		if strings.HasPrefix(c.Name, marker) {
			add(hypervisors.Owed{Kind: kindCheckpoint, VM: x.UUID, Name: c.Name})
		}
	}
	return err
}

// leftVolumes adds the volumes with our mark that no VM uses. Those of a helper are in use by nobody else.
func leftVolumes(lv *libvirt.Connect, used map[string][]user, add func(hypervisors.Owed)) error {
	pools, err := lv.ListAllStoragePools(libvirt.CONNECT_LIST_STORAGE_POOLS_ACTIVE)
	if err != nil {
		return err
	}
	for i := range pools {
		name, err := pools[i].GetName()
		var vols []libvirt.StorageVol
		if err == nil {
			_ = pools[i].Refresh(0) // a pool with a job under way cannot, and is up to date then
			vols, err = pools[i].ListAllStorageVolumes(0)
		}
		_ = pools[i].Free()
		if err != nil && number(err) != libvirt.ERR_NO_STORAGE_POOL {
			return err
		}
		for j := range vols {
			vol, err1 := vols[j].GetName()
			path, err2 := vols[j].GetPath()
			_ = vols[j].Free()
			if err1 != nil || err2 != nil || !strings.HasPrefix(vol, marker) {
				continue
			}
			if slices.ContainsFunc(used[path], func(u user) bool { return u.helper == "" }) {
				continue
			}
			if strings.HasSuffix(vol, ".scratch") {
				add(hypervisors.Owed{Kind: kindScratch, Name: path})
				continue
			}
			add(hypervisors.Owed{Kind: kindVolume, Name: vol, Args: map[string]string{"pool": name}})
		}
	}
	return nil
}

// leftFiles adds files of ours on this machine that no pool shows.
func (d *Driver) leftFiles(dirs map[string]bool, used map[string][]user, add func(hypervisors.Owed)) {
	for dir := range dirs {
		if dir == "" {
			continue
		}
		files, _ := filepath.Glob(filepath.Join(dir, marker+"*.scratch"))
		for _, f := range files {
			add(hypervisors.Owed{Kind: kindScratch, Name: f})
		}
	}
	sockets, _ := filepath.Glob(filepath.Join(d.socketDir(), marker+"*.sock"))
	for _, f := range sockets {
		add(hypervisors.Owed{Kind: kindSocket, Name: f})
	}
	vars, _ := filepath.Glob(filepath.Join(d.nvramDir(), marker+"*_VARS.fd"))
	for _, f := range vars {
		if len(used[f]) == 0 {
			add(hypervisors.Owed{Kind: kindNVRAM, Name: f})
		}
	}
}
