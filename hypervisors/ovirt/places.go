package ovirt

import (
	"cmp"
	"context"
	"slices"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
)

// level is a cluster's compatibility level, or an engine's version.
type level struct{ major, minor int64 }

func (l level) atLeast(major, minor int64) bool {
	return l.major > major || l.major == major && l.minor >= minor
}

func levelOf(v *sdk.Version, there bool) level {
	if !there {
		return level{}
	}
	return level{val(v.Major()), val(v.Minor())}
}

// cluster is what the driver needs to know of one.
type cluster struct {
	id, name     string
	center       string // the data center's id
	centerName   string
	level        level
	bios         sdk.BiosType
	architecture string
	pool         string // the MAC pool's id
}

// profile is a vNIC profile.
type profile struct {
	id, name string // name as Network.Name
	center   string
}

// store is a storage domain that holds disks.
type store struct {
	hypervisors.Datastore
	center string // the data center it is attached to; "" is none
	backup bool   // a domain kept for backups, on which no VM runs
}

// places is what VMs refer to by id.
type places struct {
	clusters map[string]cluster
	hosts    map[string]string
	stores   map[string]store // by id
	profiles map[string]profile
	labels   map[string][]string // names, by VM
}

// look reads all of it. The collections are small: what belongs to VMs is not in it.
func (d *Driver) look(ctx context.Context) (*places, error) {
	p := &places{clusters: map[string]cluster{}, hosts: map[string]string{}, profiles: map[string]profile{}, labels: map[string][]string{}}
	list := func(op, path string) engine.Request { return engine.Request{Op: op, Path: path} }
	centers, err := d.centers(ctx)
	if err != nil {
		return nil, err
	}
	clusters, err := engine.All[*sdk.Cluster](ctx, d.conn, list("list clusters", "/clusters"), "clusters", sdk.XMLClusterReadMany)
	if err != nil {
		return nil, err
	}
	for _, c := range clusters {
		one := cluster{
			id: val(c.Id()), name: val(c.Name()), center: idOf(c.DataCenter()), level: levelOf(c.Version()), bios: val(c.BiosType()),
			pool: idOf(c.MacPool()),
		}
		if cpu, ok := c.Cpu(); ok {
			one.architecture = string(val(cpu.Architecture()))
		}
		one.centerName = centers[one.center]
		p.clusters[one.id] = one
	}
	hosts, err := engine.All[*sdk.Host](ctx, d.conn, list("list hosts", "/hosts"), "hosts", sdk.XMLHostReadMany)
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		p.hosts[val(h.Id())] = val(h.Name())
	}
	if p.stores, err = d.stores(ctx, centers); err != nil {
		return nil, err
	}
	if p.profiles, err = d.profiles(ctx, centers); err != nil {
		return nil, err
	}
	labels, err := engine.All[*sdk.AffinityLabel](ctx, d.conn, engine.Request{Op: "list affinity labels", Path: "/affinitylabels", Query: engine.Query("follow", "vms")},
		"affinity_labels", sdk.XMLAffinityLabelReadMany)
	if err != nil {
		return nil, err
	}
	for _, l := range labels {
		for _, vm := range items(l.Vms()) {
			p.labels[val(vm.Id())] = append(p.labels[val(vm.Id())], val(l.Name()))
		}
	}
	return p, nil
}

// centers maps the ids of the data centers to their names.
func (d *Driver) centers(ctx context.Context) (map[string]string, error) {
	all, err := engine.All[*sdk.DataCenter](ctx, d.conn, engine.Request{Op: "list data centers", Path: "/datacenters"}, "data_centers", sdk.XMLDataCenterReadMany)
	out := map[string]string{}
	for _, c := range all {
		out[val(c.Id())] = val(c.Name())
	}
	return out, err
}

// stores lists the storage domains that hold disks. Whether one is active is known in its data center only.
func (d *Driver) stores(ctx context.Context, centers map[string]string) (map[string]store, error) {
	all, err := engine.All[*sdk.StorageDomain](ctx, d.conn, engine.Request{Op: "list storage domains", Path: "/storagedomains"},
		"storage_domains", sdk.XMLStorageDomainReadMany)
	if err != nil {
		return nil, err
	}
	out := map[string]store{}
	add := func(s *sdk.StorageDomain, center string, active bool) {
		if t := val(s.Type()); t != sdk.STORAGEDOMAINTYPE_DATA && t != sdk.STORAGEDOMAINTYPE_MANAGED_BLOCK_STORAGE {
			return
		}
		one := store{Datastore: hypervisors.Datastore{
			ID: val(s.Id()), Name: val(s.Name()), FreeBytes: sized(s.Available()), Active: active,
		}, center: center, backup: val(s.Backup())}
		one.CapacityBytes = one.FreeBytes + sized(s.Used())
		if st, ok := s.Storage(); ok {
			one.Kind, one.Path = string(val(st.Type())), val(st.Path())
			if host := val(st.Address()); host != "" && one.Path != "" {
				one.Path = host + ":" + one.Path
			}
		}
		out[one.ID] = one
	}
	for _, s := range all {
		add(s, "", false)
	}
	for id := range centers {
		attached, err := engine.All[*sdk.StorageDomain](ctx, d.conn, engine.Request{Op: "list storage domains of data center", Subject: centers[id], Path: "/datacenters/" + id + "/storagedomains"},
			"storage_domains", sdk.XMLStorageDomainReadMany)
		if engine.Gone(err) {
			continue // removed meanwhile
		}
		if err != nil {
			return nil, err
		}
		for _, s := range attached {
			add(s, id, val(s.Status()) == sdk.STORAGEDOMAINSTATUS_ACTIVE)
		}
	}
	return out, nil
}

// profiles lists the vNIC profiles. Names of networks and profiles repeat from data center to data center, so all three
// make the name.
func (d *Driver) profiles(ctx context.Context, centers map[string]string) (map[string]profile, error) {
	networks, err := engine.All[*sdk.Network](ctx, d.conn, engine.Request{Op: "list networks", Path: "/networks"}, "networks", sdk.XMLNetworkReadMany)
	if err != nil {
		return nil, err
	}
	type network struct{ name, center string }
	byID := map[string]network{}
	for _, n := range networks {
		byID[val(n.Id())] = network{val(n.Name()), idOf(n.DataCenter())}
	}
	all, err := engine.All[*sdk.VnicProfile](ctx, d.conn, engine.Request{Op: "list vNIC profiles", Path: "/vnicprofiles"}, "vnic_profiles", sdk.XMLVnicProfileReadMany)
	if err != nil {
		return nil, err
	}
	out := map[string]profile{}
	for _, p := range all {
		n := byID[idOf(p.Network())]
		out[val(p.Id())] = profile{id: val(p.Id()), center: n.center, name: networkName(centers[n.center], n.name, val(p.Name()))}
	}
	return out, nil
}

// networkName is how a vNIC profile is called: "Default/ovirtmgmt/ovirtmgmt".
func networkName(center, network, profile string) string {
	return center + "/" + network + "/" + profile
}

// Datastores lists the storage domains that hold disks of VMs.
func (d *Driver) Datastores(ctx context.Context) ([]hypervisors.Datastore, error) {
	centers, err := d.centers(ctx)
	if err != nil {
		return nil, err
	}
	stores, err := d.stores(ctx, centers)
	if err != nil {
		return nil, err
	}
	out := []hypervisors.Datastore{}
	for _, s := range stores {
		out = append(out, s.Datastore)
	}
	slices.SortFunc(out, func(a, b hypervisors.Datastore) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out, nil
}

// Networks lists the vNIC profiles, which are what NICs are connected to.
func (d *Driver) Networks(ctx context.Context) ([]hypervisors.Network, error) {
	centers, err := d.centers(ctx)
	if err != nil {
		return nil, err
	}
	profiles, err := d.profiles(ctx, centers)
	if err != nil {
		return nil, err
	}
	out := []hypervisors.Network{}
	for _, p := range profiles {
		out = append(out, hypervisors.Network{Name: p.name, Kind: "vnic-profile", Active: true})
	}
	slices.SortFunc(out, func(a, b hypervisors.Network) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}
