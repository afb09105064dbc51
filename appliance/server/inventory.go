package server

import (
	"context"

	"github.com/cairn-backup/cairn/appliance/catalog"
	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// ListVMs implements httpapi.Core.
func (a *Appliance) ListVMs(ctx context.Context, f catalog.VMFilter, p catalog.Page) (catalog.List[httpapi.VMInfo], error) {
	list, err := a.catalog.VMs(ctx, f, p)
	if err != nil {
		return catalog.List[httpapi.VMInfo]{}, err
	}
	items, err := a.vmInfos(ctx, list.Items...)
	return catalog.List[httpapi.VMInfo]{Items: items, Next: list.Next, Total: list.Total}, err
}

// GetVM implements httpapi.Core.
func (a *Appliance) GetVM(ctx context.Context, id string) (httpapi.VMInfo, error) {
	vm, err := a.catalog.VM(ctx, id)
	if err != nil {
		return httpapi.VMInfo{}, err
	}
	infos, err := a.vmInfos(ctx, vm)
	if err != nil {
		return httpapi.VMInfo{}, err
	}
	if vm.GoneAt == nil {
		c, err := a.coverage(ctx, id)
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return httpapi.VMInfo{}, err
		}
		if err == nil {
			infos[0].Coverage = &c
		}
	}
	return infos[0], nil
}

func (a *Appliance) vmInfos(ctx context.Context, vms ...catalog.VM) ([]httpapi.VMInfo, error) {
	ids := make([]string, len(vms))
	for i, v := range vms {
		ids[i] = v.ID
	}
	newest, err := a.catalog.NewestPoints(ctx, ids)
	if err != nil {
		return nil, err
	}
	read, err := a.catalog.LastInventories(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]httpapi.VMInfo, len(vms))
	for i, v := range vms {
		if last := read[v.ConnectionID]; v.GoneAt == nil && last.After(v.LastSeen) {
			v.LastSeen = last
		}
		out[i] = httpapi.VMInfo{VM: v, LastPointID: newest[v.ID].ID, LastPointAt: newest[v.ID].Time}
	}
	return out, nil
}

// ListDatastores implements httpapi.Core.
func (a *Appliance) ListDatastores(ctx context.Context, connection string) ([]hypervisors.Datastore, error) {
	d, err := a.driver(ctx, connection)
	if err != nil {
		return nil, err
	}
	return d.Datastores(ctx)
}

// ListNetworks implements httpapi.Core.
func (a *Appliance) ListNetworks(ctx context.Context, connection string) ([]hypervisors.Network, error) {
	d, err := a.driver(ctx, connection)
	if err != nil {
		return nil, err
	}
	return d.Networks(ctx)
}
