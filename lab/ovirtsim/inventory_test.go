package ovirtsim_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

func TestInventory(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	root := ok(s.Get().Send())(t).MustApi()
	if v := root.MustProductInfo().MustVersion(); v.MustMajor() != 4 || v.MustMinor() != 5 || v.MustFullVersion() == "" {
		t.Errorf("version %d.%d", v.MustMajor(), v.MustMinor())
	}
	dc := ok(s.DataCentersService().List().Send())(t).MustDataCenters().Slice()[0]
	cl := ok(s.ClustersService().List().Send())(t).MustClusters().Slice()[0]
	if cl.MustDataCenter().MustId() != dc.MustId() || cl.MustVersion().MustMinor() != 7 {
		t.Errorf("cluster in %s, level %d", cl.MustDataCenter().MustId(), cl.MustVersion().MustMinor())
	}
	var domains []string
	for _, d := range ok(s.DataCentersService().DataCenterService(dc.MustId()).StorageDomainsService().List().Send())(t).MustStorageDomains().Slice() {
		domains = append(domains, fmt.Sprint(d.MustName(), " ", d.MustType(), " ", d.MustStorage().MustType(), " ", d.MustStatus()))
	}
	if diff := cmp.Diff(domains, []string{"data1 data nfs active", "san1 data iscsi active", "images iso nfs active"}); diff != "" {
		t.Errorf("storage domains (-got +want):\n%s", diff)
	}
	for _, d := range ok(s.StorageDomainsService().List().Send())(t).MustStorageDomains().Slice() {
		if _, there := d.Status(); there {
			t.Errorf("storage domain %s has a status outside of its data center", d.MustName())
		}
	}
	if got := len(ok(s.HostsService().List().Send())(t).MustHosts().Slice()); got != 2 {
		t.Errorf("%d hosts, want 2", got)
	}
	if got := len(ok(s.VnicProfilesService().List().Send())(t).MustProfiles().Slice()); got != 2 {
		t.Errorf("%d vNIC profiles, want 2", got)
	}
	if got := ok(s.MacPoolsService().List().Send())(t).MustPools().Slice(); len(got) != 1 || got[0].MustId() != cl.MustMacPool().MustId() {
		t.Errorf("%d MAC pools", len(got))
	}
	user := root.MustAuthenticatedUser().MustId()
	p := ok(s.UsersService().UserService(user).PermissionsService().List().Send())(t).MustPermissions().Slice()[0]
	role := ok(s.RolesService().RoleService(p.MustRole().MustId()).Get().Send())(t).MustRole()
	if role.MustName() != "SuperUser" {
		t.Errorf("role %s", role.MustName())
	}
}

func TestVMWithItsParts(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	got := ok(s.VmsService().List().Search("name=web").Follow("disk_attachments.disk,nics,tags,affinity_labels").Send())(t).MustVms().Slice()
	if len(got) != 1 {
		t.Fatalf("%d VMs", len(got))
	}
	v := got[0]
	if v.MustStatus() != sdk.VMSTATUS_UP || v.MustMemory() != 2<<30 || v.MustCpu().MustTopology().MustCores() != 2 || !v.MustVirtioScsi().MustEnabled() {
		t.Errorf("%s, %d bytes, %d cores", v.MustStatus(), v.MustMemory(), v.MustCpu().MustTopology().MustCores())
	}
	var disks []string
	for _, a := range v.MustDiskAttachments().Slice() {
		d := a.MustDisk()
		disks = append(disks, fmt.Sprint(d.MustAlias(), " ", d.MustProvisionedSize(), " ", d.MustFormat(), " ", d.MustBackup(), " ", a.MustBootable(), " ", a.MustInterface(), " ", a.MustId() == d.MustId()))
	}
	want := []string{"web_Disk1 16777216 cow incremental true virtio_scsi true", "web_Disk2 8388608 cow incremental false virtio_scsi true"}
	if diff := cmp.Diff(disks, want); diff != "" {
		t.Errorf("disks (-got +want):\n%s", diff)
	}
	if n := v.MustNics().Slice(); len(n) != 2 || n[0].MustVnicProfile().MustId() == "" || n[0].MustMac().MustAddress() == n[1].MustMac().MustAddress() {
		t.Errorf("NICs: %d", len(n))
	}
	if tags := v.MustTags().Slice(); len(tags) != 1 || tags[0].MustName() != "prod" {
		t.Errorf("%d tags", len(tags))
	}
	if l := v.MustAffinityLabels().Slice(); len(l) != 1 || l[0].MustName() != "gold" {
		t.Errorf("%d affinity labels", len(l))
	}
	plain := vmNamed(t, s, "web")
	if a, followed := plain.DiskAttachments(); followed && len(a.Slice()) > 0 {
		t.Error("disks without having been asked for")
	}
	if _, there := plain.Initialization(); there {
		t.Error("the configuration document without having been asked for")
	}
}

func TestDisksThatAreNoImages(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	var got []string
	for _, id := range disksOf(t, service(t, s, "cluster-node")) {
		d := ok(s.DisksService().DiskService(id).Get().Send())(t).MustDisk()
		got = append(got, fmt.Sprint(d.MustStorageType(), " ", d.MustShareable()))
	}
	if diff := cmp.Diff(got, []string{"image false", "image true", "lun false"}); diff != "" {
		t.Errorf("(-got +want):\n%s", diff)
	}
	if v := vmNamed(t, s, "HostedEngine"); v.MustOrigin() != "managed_hosted_engine" {
		t.Errorf("origin %s", v.MustOrigin())
	}
}

func TestPages(t *testing.T) {
	const n = 200
	e := start(t, ovirtsim.Config{Site: ovirtsim.LargeSite(n)})
	s := admin(t, e)
	list := func(search string, most int64) []*sdk.Vm {
		t.Helper()
		r := s.VmsService().List().Search(search)
		if most > 0 {
			r = r.Max(most)
		}
		return ok(r.Send())(t).MustVms().Slice()
	}
	seen := map[string]int{}
	var names []string
	for page := 1; ; page++ {
		got := list(fmt.Sprintf("sortby name asc page %d", page), 30)
		for _, v := range got {
			seen[v.MustId()]++
			names = append(names, v.MustName())
		}
		if len(got) < 30 {
			break
		}
	}
	if len(seen) != n+2 || len(names) != n+2 || !slices.IsSorted(names) {
		t.Errorf("%d VMs in %d rows, sorted: %v; want %d", len(seen), len(names), slices.IsSorted(names), n+2)
	}
	if got := len(list("sortby name page 1", 0)); got != 100 {
		t.Errorf("a page has %d rows, want 100", got)
	}
	if got := len(list("sortby name page 9", 0)); got != 0 {
		t.Errorf("a page behind the end has %d rows", got)
	}
	if got := len(list("", 0)); got != n+2 {
		t.Errorf("all: %d rows", got)
	}
	if got := len(list("", 7)); got != 7 {
		t.Errorf("at most seven: %d rows", got)
	}
	if got := list("name=twin", 0); len(got) != 2 || got[0].MustCluster().MustId() == got[1].MustCluster().MustId() {
		t.Errorf("%d VMs of one name", len(got))
	}
	order := func() string {
		var out []string
		for _, v := range list("", 0) {
			out = append(out, v.MustName())
		}
		return strings.Join(out, " ")
	}
	if one, other := order(), order(); one == other {
		t.Error("rows that nobody has sorted come in the same order twice")
	}
}

func TestSearch(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	for _, c := range []struct {
		search string
		want   []string
	}{
		{"name=web", []string{"web"}},
		{"name=*e*", []string{"HostedEngine", "archive", "cluster-node", "mover1", "web"}},
		{`name="web" or name=db`, []string{"db", "web"}},
		{"status=up and tag=prod", []string{"db", "web"}},
		{"tag=test or tag=prod and name=web", []string{"archive", "web"}},
		{"status!=up", []string{"archive"}},
		{`description="no such thing"`, nil},
		{"hosted*", []string{"HostedEngine"}},
		{"ived sortby name", nil},
		{"arch sortby name", []string{"archive"}},
	} {
		var got []string
		for _, v := range ok(s.VmsService().List().Search(c.search).Send())(t).MustVms().Slice() {
			got = append(got, v.MustName())
		}
		slices.Sort(got)
		if diff := cmp.Diff(got, c.want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", c.search, diff)
		}
	}
	if got := len(ok(s.VmsService().List().Search("name=WEB").CaseSensitive(false).Send())(t).MustVms().Slice()); got != 1 {
		t.Errorf("without case: %d", got)
	}
	if got := len(ok(s.DisksService().List().Search("vm_names=web").Send())(t).MustDisks().Slice()); got != 2 {
		t.Errorf("disks of a VM: %d", got)
	}
}
