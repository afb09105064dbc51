package kvm

import (
	"cmp"
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// VMs lists the domains of the host, except helpers and movers of ours.
func (d *Driver) VMs(ctx context.Context) ([]hypervisors.VM, error) {
	return call(ctx, d.conn, "list VMs", d.cfg.URI, func(lv *libvirt.Connect) ([]hypervisors.VM, error) {
		doms, err := lv.ListAllDomains(0)
		if err != nil {
			return nil, err
		}
		pools, err := listPools(lv)
		if err != nil {
			return nil, err
		}
		vms := []hypervisors.VM{}
		for i := range doms {
			vm, ours, err := describe(lv, &doms[i], pools)
			_ = doms[i].Free()
			switch {
			case number(err) == libvirt.ERR_NO_DOMAIN, ours:
			case err != nil:
				return nil, err
			default:
				vms = append(vms, vm)
			}
		}
		slices.SortFunc(vms, func(a, b hypervisors.VM) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
		return vms, nil
	})
}

// VM returns one domain.
func (d *Driver) VM(ctx context.Context, id string) (hypervisors.VM, error) {
	if err := checkUUID(id); err != nil {
		return hypervisors.VM{}, err
	}
	return onDomain(ctx, d.conn, "look up", id, func(lv *libvirt.Connect, dom *libvirt.Domain) (hypervisors.VM, error) {
		pools, err := listPools(lv)
		if err != nil {
			return hypervisors.VM{}, err
		}
		vm, ours, err := describe(lv, dom, pools)
		if err == nil && ours {
			err = fault.New(fault.NotFound, "", "", "it is a helper or a mover of this product")
		}
		return vm, err
	})
}

// checkUUID answers NotFound for anything that cannot be a domain's id.
func checkUUID(id string) error {
	if len(id) == 36 && strings.Trim(id, "0123456789abcdefABCDEF-") == "" {
		return nil
	}
	return fault.New(fault.NotFound, "look up VM", id, "no VM has this id").
		Explain("The host has no VM with this id.", "List the VMs of the connection.")
}

// describe reads a domain and says whether it is a helper or a mover of ours.
func describe(lv *libvirt.Connect, dom *libvirt.Domain, pools []pool) (hypervisors.VM, bool, error) {
	x, err := domainXML(dom, 0)
	if err != nil {
		return hypervisors.VM{}, false, err
	}
	if isOurs(x) {
		return hypervisors.VM{}, true, nil
	}
	state, _, err := dom.GetState()
	if err != nil {
		return hypervisors.VM{}, false, err
	}
	vm := describeXML(x)
	vm.Power = powerOf(state)
	if vm.Host, err = lv.GetHostname(); err != nil {
		return vm, false, err
	}
	for i := range vm.Disks {
		measure(lv, dom, &vm.Disks[i], pools)
	}
	return vm, false, nil
}

func domainXML(dom *libvirt.Domain, flags libvirt.DomainXMLFlags) (*libvirtxml.Domain, error) {
	doc, err := dom.GetXMLDesc(flags)
	if err != nil {
		return nil, err
	}
	return parseDomain(doc)
}

func parseDomain(doc string) (*libvirtxml.Domain, error) {
	x := &libvirtxml.Domain{}
	if err := x.Unmarshal(doc); err != nil {
		return nil, fault.New(fault.Invalid, "read domain XML", "", "%w", err)
	}
	if x.OS == nil {
		x.OS = &libvirtxml.DomainOS{}
	}
	if x.Devices == nil {
		x.Devices = &libvirtxml.DomainDeviceList{}
	}
	return x, nil
}

func isHelper(x *libvirtxml.Domain) bool {
	return strings.HasPrefix(x.Name, marker) && x.Metadata != nil && readMetadata(x.Metadata.XML).Helper != ""
}

func powerOf(s libvirt.DomainState) hypervisors.Power {
	switch s {
	case libvirt.DOMAIN_RUNNING, libvirt.DOMAIN_BLOCKED, libvirt.DOMAIN_SHUTDOWN:
		return hypervisors.PowerOn
	case libvirt.DOMAIN_PAUSED, libvirt.DOMAIN_PMSUSPENDED:
		return hypervisors.PowerPaused
	case libvirt.DOMAIN_SHUTOFF, libvirt.DOMAIN_CRASHED:
		return hypervisors.PowerOff
	}
	return hypervisors.PowerOther
}

// measure adds a disk's size and pool. What the host cannot say now (a missing file) makes the disk unprotectable.
func measure(lv *libvirt.Connect, dom *libvirt.Domain, disk *hypervisors.Disk, pools []pool) {
	if disk.Kind == hypervisors.KindCDROM || disk.Kind == hypervisors.KindFloppy {
		if disk.Path == "" {
			return
		}
	}
	info, err := dom.GetBlockInfo(disk.ID, 0)
	switch {
	case err == nil:
		disk.SizeBytes, disk.UsedBytes = int64(info.Capacity), int64(info.Allocation)
	case disk.Unprotectable == "" && disk.Kind == hypervisors.KindDisk:
		disk.Unprotectable = "the host cannot read its image: " + translate("", "", err).Error()
	}
	if disk.Datastore == "" && disk.Path != "" {
		disk.Datastore = poolOf(pools, disk.Path)
	} else if disk.Path == "" && disk.Datastore != "" && len(disk.Chain) == 1 {
		disk.Path = volumePath(lv, disk.Datastore, disk.Chain[0])
		disk.Chain = nil
	}
	if len(disk.Chain) == 0 && disk.Format == hypervisors.QCOW2 {
		disk.Chain = backingChain(lv, disk.Path)
	}
}

// volumePath returns the path of a volume, or "".
func volumePath(lv *libvirt.Connect, poolName, name string) string {
	p, err := lv.LookupStoragePoolByName(poolName)
	if err != nil {
		return ""
	}
	defer p.Free()
	v, err := p.LookupStorageVolByName(name)
	if err != nil {
		return ""
	}
	defer v.Free()
	path, _ := v.GetPath()
	return path
}

// backingChain returns the paths below an image, as far as the pools know them.
func backingChain(lv *libvirt.Connect, path string) []string {
	var chain []string
	for len(chain) < 64 {
		v, err := lv.LookupStorageVolByPath(path)
		if err != nil {
			return chain
		}
		doc, err := v.GetXMLDesc(0)
		_ = v.Free()
		if err != nil {
			return chain
		}
		var x libvirtxml.StorageVolume
		if x.Unmarshal(doc) != nil || x.BackingStore == nil || x.BackingStore.Path == "" {
			return chain
		}
		path = x.BackingStore.Path
		if slices.Contains(chain, path) {
			return chain
		}
		chain = append(chain, path)
	}
	return chain
}

// pool is what the inventory needs to know of a storage pool.
type pool struct {
	hypervisors.Datastore
}

func listPools(lv *libvirt.Connect) ([]pool, error) {
	ps, err := lv.ListAllStoragePools(0)
	if err != nil {
		return nil, err
	}
	var out []pool
	for i := range ps {
		p, err := describePool(&ps[i])
		_ = ps[i].Free()
		if number(err) == libvirt.ERR_NO_STORAGE_POOL {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b pool) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func describePool(p *libvirt.StoragePool) (pool, error) {
	doc, err := p.GetXMLDesc(0)
	if err != nil {
		return pool{}, err
	}
	var x libvirtxml.StoragePool
	if err := x.Unmarshal(doc); err != nil {
		return pool{}, err
	}
	info, err := p.GetInfo()
	if err != nil {
		return pool{}, err
	}
	out := pool{hypervisors.Datastore{
		ID: x.Name, Name: x.Name, Kind: x.Type, CapacityBytes: int64(info.Capacity), FreeBytes: int64(info.Available),
		Active: info.State == libvirt.STORAGE_POOL_RUNNING,
	}}
	if x.Target != nil {
		out.Path = x.Target.Path
	}
	return out, nil
}

// fileBased reports whether a kind of pool keeps volumes as files, so that they can be sparse and qcow2.
func fileBased(kind string) bool {
	switch kind {
	case "dir", "fs", "netfs", "vstorage":
		return true
	}
	return false
}

// poolOf returns the pool a path lies in: libvirt's pools have no subdirectories.
func poolOf(pools []pool, path string) string {
	dir := filepath.Dir(path)
	for _, p := range pools {
		if p.Active && p.Path != "" && filepath.Clean(p.Path) == dir {
			return p.Name
		}
	}
	return ""
}

// freshPools lists the pools after libvirt has looked at them again: what it says of free space is as old as its last
// look.
func freshPools(lv *libvirt.Connect) ([]pool, error) {
	active, err := lv.ListAllStoragePools(libvirt.CONNECT_LIST_STORAGE_POOLS_ACTIVE)
	if err != nil {
		return nil, err
	}
	for i := range active {
		_ = active[i].Refresh(0) // a pool with a job under way cannot; then the old figures must do
		_ = active[i].Free()
	}
	return listPools(lv)
}

// Datastores lists the storage pools. A pool's id is its name: libvirt keeps it unique and cannot rename pools.
func (d *Driver) Datastores(ctx context.Context) ([]hypervisors.Datastore, error) {
	return call(ctx, d.conn, "list datastores", d.cfg.URI, func(lv *libvirt.Connect) ([]hypervisors.Datastore, error) {
		pools, err := freshPools(lv)
		out := make([]hypervisors.Datastore, len(pools))
		for i, p := range pools {
			out[i] = p.Datastore
		}
		return out, err
	})
}

// Networks lists libvirt's networks and, besides, what the VMs' NICs are connected to.
func (d *Driver) Networks(ctx context.Context) ([]hypervisors.Network, error) {
	return call(ctx, d.conn, "list networks", d.cfg.URI, func(lv *libvirt.Connect) ([]hypervisors.Network, error) {
		nets, err := lv.ListAllNetworks(0)
		if err != nil {
			return nil, err
		}
		out := []hypervisors.Network{{Name: "user", Kind: "user", Active: true}}
		add := func(n hypervisors.Network) {
			if !slices.ContainsFunc(out, func(o hypervisors.Network) bool { return o.Name == n.Name }) {
				out = append(out, n)
			}
		}
		for i := range nets {
			name, err := nets[i].GetName()
			active, err2 := nets[i].IsActive()
			_ = nets[i].Free()
			if err == nil && err2 == nil {
				add(hypervisors.Network{Name: "network:" + name, Kind: "network", Active: active})
			}
		}
		doms, err := lv.ListAllDomains(0)
		if err != nil {
			return nil, err
		}
		for i := range doms {
			x, err := domainXML(&doms[i], 0)
			_ = doms[i].Free()
			if err != nil {
				continue
			}
			for _, nic := range describeNICs(x) {
				kind, _, _ := strings.Cut(nic.Network, ":")
				if kind == "bridge" || kind == "direct" {
					add(hypervisors.Network{Name: nic.Network, Kind: kind, Active: true})
				}
			}
		}
		slices.SortFunc(out, func(a, b hypervisors.Network) int { return cmp.Compare(a.Name, b.Name) })
		return out, nil
	})
}
