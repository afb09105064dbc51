package ovirt

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// about is what an engine says of itself.
type about struct {
	product  string // "oVirt Engine 4.5.4-1.el8"
	version  level
	instance string
	vms      int
	user     string // our user's id
}

func (d *Driver) about(ctx context.Context) (about, error) {
	x, err := engine.One(ctx, d.conn, engine.Request{Op: "ask engine for its version", Path: ""}, "api", sdk.XMLApiReadOne)
	if err != nil {
		return about{}, err
	}
	out := about{product: "oVirt", user: idOf(x.AuthenticatedUser())}
	if p, ok := x.ProductInfo(); ok {
		v, there := p.Version()
		out.version, out.instance = levelOf(v, there), engine.Instance(x)
		full := fmt.Sprintf("%d.%d", out.version.major, out.version.minor)
		if there {
			full = cmp.Or(val(v.FullVersion()), full)
		}
		out.product = strings.TrimSpace(cmp.Or(val(p.Name()), out.product) + " " + full)
	}
	if s, ok := x.Summary(); ok {
		if n, ok := s.Vms(); ok {
			out.vms = int(max(0, val(n.Total())))
		}
	}
	if out.version == (level{}) {
		return out, fault.New(fault.Invalid, "ask engine for its version", d.base.Host, "it names none").
			Explain("This is no oVirt engine of version 4.", "Check the address.")
	}
	return out, nil
}

// Check looks whether the connection can do its work.
func (d *Driver) Check(ctx context.Context) (hypervisors.Health, error) {
	a, err := d.about(ctx)
	if err != nil {
		return hypervisors.Health{}, err
	}
	h := hypervisors.Health{Product: a.product, Host: d.base.Hostname(), HostID: a.instance, VMs: a.vms}
	p, err := d.look(ctx)
	if err != nil {
		return h, err
	}
	if err := d.countOurs(ctx, &h); err != nil {
		return h, err
	}
	h.Problems = append(h.Problems, versionProblems(a, p)...)
	h.Problems = append(h.Problems, storeProblems(p)...)
	if len(p.hosts) == 0 {
		h.Problems = append(h.Problems, "No host is to be seen: without one no disk can be read. The user of this connection may lack the right to see hosts.")
	}
	if _, err := d.conn.ImageioAuthority(ctx); err != nil {
		h.Problems = append(h.Problems, "The CA of the hosts' imageio is not known, so no disk can be read over the network: "+err.Error()+". Set the option "+OptImageioCAFile+".")
	}
	missing, err := d.missingRights(ctx, a.user)
	switch {
	case ctx.Err() != nil:
		return h, fault.Wrap(fault.KindOf(ctx.Err()), "check connection", d.base.Host, ctx.Err())
	case err != nil:
		h.Problems = append(h.Problems, "What the user of this connection may do could not be found out: "+err.Error()+".")
	case len(missing) > 0:
		h.Problems = append(h.Problems, "The user of this connection lacks rights ("+strings.Join(slices.Sorted(maps.Keys(missing)), ", ")+"); it cannot "+
			strings.Join(slices.Compact(slices.Sorted(maps.Values(missing))), ", ")+". docs/ovirt.md says how to give them.")
	}
	return h, nil
}

// countOurs takes out of the engine's number of VMs those that no inventory has, and counts the movers among them.
func (d *Driver) countOurs(ctx context.Context, h *hypervisors.Health) error {
	search := "comment=" + moverComment + "* or comment=" + strings.TrimSpace(restoreComment) + "*"
	ours, err := engine.All[*sdk.Vm](ctx, d.conn, engine.Request{Op: "look for movers", Path: "/vms", Query: engine.Query("search", search)}, "vms", sdk.XMLVmReadMany)
	if err != nil {
		return err
	}
	for _, vm := range ours {
		if isMover(vm) {
			h.Movers++
		}
		if isMover(vm) || isUnfinished(vm) {
			h.VMs = max(0, h.VMs-1)
		}
	}
	return nil
}

// versionProblems says what an engine and its clusters are too old for.
func versionProblems(a about, p *places) (out []string) {
	switch {
	case !a.version.atLeast(4, 2):
		return []string{fmt.Sprintf("Engine %d.%d is too old: backups need 4.2 or newer.", a.version.major, a.version.minor)}
	case !a.version.atLeast(4, 5):
		return []string{fmt.Sprintf("Engine %d.%d marks no checkpoints: every backup reads disks as a whole. Incremental backups need 4.5.", a.version.major, a.version.minor)}
	}
	var old []string
	for _, c := range p.clusters {
		if !c.level.atLeast(4, 5) {
			old = append(old, fmt.Sprintf("%s (%d.%d)", c.name, c.level.major, c.level.minor))
		}
	}
	if len(old) > 0 {
		slices.Sort(old)
		out = append(out, "Incremental backups need compatibility level 4.5, which these clusters have not: "+strings.Join(old, ", ")+".")
	}
	return out
}

func storeProblems(p *places) []string {
	var off []string
	for _, s := range p.stores {
		if !s.Active && s.center != "" {
			off = append(off, s.Name)
		}
	}
	slices.Sort(off)
	switch {
	case len(p.stores) == len(off):
		return []string{"No storage domain is active: nothing can be read, and nothing restored here."}
	case len(off) > 0:
		return []string{"These storage domains are not active, and disks on them cannot be read: " + strings.Join(off, ", ") + "."}
	}
	return nil
}

// rights are the engine's permits that the driver needs, and for what.
var rights = map[string]string{
	"manipulate_vm_snapshots": "freeze VMs by snapshots",
	"backup_disk":             "back up disks incrementally",
	"access_image_storage":    "read and write disks",
	"create_disk":             "restore disks",
	"edit_disk_properties":    "restore disks",
	"delete_disk":             "remove the disks of a failed restore",
	"attach_disk":             "give disks to VMs",
	"create_vm":               "restore VMs",
	"delete_vm":               "remove the VM of a failed restore",
	"edit_vm_properties":      "restore VMs",
	"configure_vm_network":    "connect restored VMs to networks",
	"vm_basic_operations":     "start VMs",
	"stop_vm":                 "stop VMs",
}

// missingRights looks at the roles of a user, which may be on the whole system or on parts of it: a right that no role
// has is missing for sure.
func (d *Driver) missingRights(ctx context.Context, user string) (map[string]string, error) {
	if err := checkID("user", user); err != nil {
		return nil, err
	}
	permissions, err := engine.All[*sdk.Permission](ctx, d.conn, engine.Request{Op: "list permissions of user", Subject: user, Path: "/users/" + user + "/permissions"},
		"permissions", sdk.XMLPermissionReadMany)
	if err != nil {
		return nil, err
	}
	missing := maps.Clone(rights)
	seen := map[string]bool{}
	for _, p := range permissions {
		role := idOf(p.Role())
		if seen[role] || !goodID.MatchString(role) {
			continue
		}
		seen[role] = true
		permits, err := engine.All[*sdk.Permit](ctx, d.conn, engine.Request{Op: "list permits of role", Subject: role, Path: "/roles/" + role + "/permits"},
			"permits", sdk.XMLPermitReadMany)
		if err != nil {
			return nil, err
		}
		for _, permit := range permits {
			delete(missing, strings.ToLower(val(permit.Name())))
		}
	}
	return missing, nil
}
