package ovirtsim_test

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/lab/ovirtsim"
)

func newDisk(alias string, size int64, format sdk.DiskFormat, store string) *sdk.DiskBuilder {
	return sdk.NewDiskBuilder().Alias(alias).Format(format).Sparse(format == sdk.DISKFORMAT_COW).ProvisionedSize(size).
		StorageDomainsOfAny(sdk.NewStorageDomainBuilder().Name(store).MustBuild())
}

// makeDisk makes a disk and returns its id when it is there.
func makeDisk(t *testing.T, e *ovirtsim.Engine, s *sdk.SystemService, b *sdk.DiskBuilder) string {
	t.Helper()
	d := ok(s.DisksService().Add().Disk(b.MustBuild()).Send())(t).MustDisk()
	if d.MustStatus() != sdk.DISKSTATUS_LOCKED {
		t.Errorf("a new disk is %s", d.MustStatus())
	}
	settle(e)
	if got := ok(s.DisksService().DiskService(d.MustId()).Get().Send())(t).MustDisk().MustStatus(); got != sdk.DISKSTATUS_OK {
		t.Errorf("then it is %s", got)
	}
	return d.MustId()
}

func TestNewDisks(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	id := makeDisk(t, e, s, newDisk("a", 1<<20, sdk.DISKFORMAT_COW, "data1").Backup(sdk.DISKBACKUP_INCREMENTAL))
	for _, c := range []struct {
		name, why string
		b         *sdk.DiskBuilder
	}{
		{"raw and sparse on a block domain", "RAW Sparse", newDisk("b", 1<<20, sdk.DISKFORMAT_RAW, "san1").Sparse(true)},
		{"half a sector", "multiple of 512", newDisk("b", 1000, sdk.DISKFORMAT_COW, "data1")},
		{"an ISO domain", "no data domain", newDisk("b", 1<<20, sdk.DISKFORMAT_COW, "images")},
		{"changed blocks of a raw disk", "RAW", newDisk("b", 1<<20, sdk.DISKFORMAT_RAW, "data1").Backup(sdk.DISKBACKUP_INCREMENTAL)},
		{"an id that is taken", "same id", newDisk("b", 1<<20, sdk.DISKFORMAT_COW, "data1").Id(id)},
		{"more than there is", "space", newDisk("b", 2<<40, sdk.DISKFORMAT_COW, "data1")},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := s.DisksService().Add().Disk(c.b.MustBuild()).Send()
			conflicts(t, err, c.why)
		})
	}
	if _, err := s.DisksService().Add().Disk(sdk.NewDiskBuilder().Alias("b").MustBuild()).Send(); err == nil || !strings.Contains(err.Error(), "required") {
		t.Errorf("without a size: %v", err)
	}
	ok(s.DisksService().DiskService(id).Remove().Send())(t)
	settle(e)
	_, err := s.DisksService().DiskService(id).Get().Send()
	absent(t, err)
}

// document returns the configuration document of a VM.
func document(t *testing.T, v *sdk.VmService) string {
	t.Helper()
	return ok(v.Get().AllContent(true).Send())(t).MustVm().MustInitialization().MustConfiguration().MustData()
}

// importVM makes a VM of a configuration document.
func importVM(s *sdk.SystemService, name, ovf string, fresh bool) (*sdk.Vm, error) {
	var escaped bytes.Buffer
	if err := xml.EscapeText(&escaped, []byte(ovf)); err != nil {
		return nil, err
	}
	c := sdk.NewConfigurationBuilder().Type(sdk.CONFIGURATIONTYPE_OVF).Data(escaped.String()).MustBuild()
	v := sdk.NewVmBuilder().Cluster(sdk.NewClusterBuilder().Name("Default").MustBuild()).
		Initialization(sdk.NewInitializationBuilder().Configuration(c).RegenerateIds(fresh).MustBuild())
	if name != "" {
		v.Name(name)
	}
	got, err := s.VmsService().Add().Vm(v.MustBuild()).Send()
	if err != nil {
		return nil, err
	}
	return got.MustVm(), nil
}

func TestImportFromConfiguration(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	archive := service(t, s, "archive")
	was := vmNamed(t, s, "archive")
	ovf := document(t, archive)

	_, err := importVM(s, "again", ovf, false)
	conflicts(t, err, "same identifier")
	_, err = importVM(s, "archive", ovf, true)
	conflicts(t, err, "name is already in use")

	second := ok(importVM(s, "second", ovf, true))(t)
	if second.MustStatus() != sdk.VMSTATUS_IMAGE_LOCKED {
		t.Errorf("at once it is %s", second.MustStatus())
	}
	settle(e)
	now := vmNamed(t, s, "second")
	if now.MustStatus() != sdk.VMSTATUS_DOWN || now.MustBios().MustType() != sdk.BIOSTYPE_Q35_OVMF || now.MustMemory() != was.MustMemory() || now.MustId() == was.MustId() ||
		now.MustCpu().MustTopology().MustCores() != was.MustCpu().MustTopology().MustCores() {
		t.Errorf("%s, %s, %d bytes", now.MustStatus(), now.MustBios().MustType(), now.MustMemory())
	}
	nics := func(name string) []*sdk.Nic {
		return ok(service(t, s, name).NicsService().List().Send())(t).MustNics().Slice()
	}
	if a, b := nics("archive")[0], nics("second")[0]; a.MustMac().MustAddress() == b.MustMac().MustAddress() || a.MustVnicProfile().MustId() != b.MustVnicProfile().MustId() {
		t.Error("the new VM has the old one's MAC, or another network")
	}
	if n := len(disksOf(t, service(t, s, "second"))); n != 0 {
		t.Errorf("%d disks", n)
	}
	if !audited(t, s, "could not be attached on import") {
		t.Error("no event of the disks that are attached elsewhere")
	}

	lost := strings.ReplaceAll(ovf, "<rasd:Connection>ovirtmgmt<", "<rasd:Connection>nowhere<")
	ok(importVM(s, "third", lost, true))(t)
	settle(e)
	if n := nics("third"); len(n) != 1 {
		t.Errorf("%d NICs", len(n))
	} else if _, connected := n[0].VnicProfile(); connected || !audited(t, s, "nowhere") {
		t.Errorf("a NIC of an unknown network is connected: %v", connected)
	}

	// In place: the original goes, its disks stay and are attached again by their ids.
	disks := disksOf(t, archive)
	_, err = archive.Remove().DetachOnly(true).Send()
	if err != nil {
		t.Fatal(err)
	}
	settle(e)
	ok(importVM(s, "", ovf, false))(t)
	settle(e)
	if now := vmNamed(t, s, "archive"); now.MustId() != was.MustId() || fmt.Sprint(disksOf(t, archive)) != fmt.Sprint(disks) {
		t.Errorf("id %s, disks %v; were %s, %v", now.MustId(), disksOf(t, archive), was.MustId(), disks)
	}
	_, err = importVM(s, "broken", "<ovf:Envelope", true)
	conflicts(t, err, "cannot be read")
}

// audited says whether an event has a text.
func audited(t *testing.T, s *sdk.SystemService, text string) bool {
	t.Helper()
	for _, v := range ok(s.EventsService().List().Send())(t).MustEvents().Slice() {
		if strings.Contains(v.MustDescription(), text) {
			return true
		}
	}
	return false
}

func TestBuiltVM(t *testing.T) {
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	add := func(b *sdk.VmBuilder) (*sdk.Vm, error) {
		got, err := s.VmsService().Add().Vm(b.Cluster(sdk.NewClusterBuilder().Name("Default").MustBuild()).MustBuild()).Send()
		if err != nil {
			return nil, err
		}
		return got.MustVm(), nil
	}
	blank := sdk.NewTemplateBuilder().Name("Blank").MustBuild()
	if _, err := add(sdk.NewVmBuilder().Name("a")); err == nil || !strings.Contains(err.Error(), "template") {
		t.Errorf("without a template: %v", err)
	}
	_, err := add(sdk.NewVmBuilder().Name("web").Template(blank))
	conflicts(t, err, "already in use")
	topology := sdk.NewCpuTopologyBuilder().Sockets(2).Cores(3).Threads(1).MustBuild()
	ok(add(sdk.NewVmBuilder().Name("built").Comment("cairn-x").Template(blank).Memory(3 << 30).Cpu(sdk.NewCpuBuilder().Topology(topology).MustBuild()).
		Bios(sdk.NewBiosBuilder().Type(sdk.BIOSTYPE_Q35_OVMF).MustBuild())))(t)
	settle(e)
	v := vmNamed(t, s, "built")
	if v.MustMemory() != 3<<30 || v.MustCpu().MustTopology().MustSockets() != 2 || v.MustComment() != "cairn-x" || v.MustBios().MustType() != sdk.BIOSTYPE_Q35_OVMF {
		t.Errorf("%d bytes, %s", v.MustMemory(), v.MustComment())
	}
	built := service(t, s, "built")
	profile := ok(s.VnicProfilesService().List().Send())(t).MustProfiles().Slice()[1]
	mac := ok(service(t, s, "web").NicsService().List().Send())(t).MustNics().Slice()[0].MustMac().MustAddress()
	nic := func() *sdk.NicBuilder {
		return sdk.NewNicBuilder().Name("nic1").Interface(sdk.NICINTERFACE_VIRTIO).VnicProfile(sdk.NewVnicProfileBuilder().Id(profile.MustId()).MustBuild())
	}
	_, err = built.NicsService().Add().Nic(nic().Mac(sdk.NewMacBuilder().Address(strings.ToUpper(mac)).MustBuild()).MustBuild()).Send()
	conflicts(t, err, "in use")
	got := ok(built.NicsService().Add().Nic(nic().MustBuild()).Send())(t).MustNic()
	if got.MustMac().MustAddress() == mac || got.MustVnicProfile().MustId() != profile.MustId() {
		t.Errorf("MAC %s", got.MustMac().MustAddress())
	}
	ok(built.TagsService().Add().Tag(sdk.NewTagBuilder().Name("prod").MustBuild()).Send())(t)
	_, err = built.TagsService().Add().Tag(sdk.NewTagBuilder().Name("no such").MustBuild()).Send()
	absent(t, err)
	label := ok(s.AffinityLabelsService().List().Send())(t).MustLabels().Slice()[0].MustId()
	ok(s.AffinityLabelsService().LabelService(label).VmsService().Add().Vm(sdk.NewVmBuilder().Id(v.MustId()).MustBuild()).Send())(t)
	if n := len(ok(built.AffinityLabelsService().List().Send())(t).MustLabel().Slice()); n != 1 {
		t.Errorf("%d labels", n)
	}
	ok(built.Start().Send())(t)
	if st := vmNamed(t, s, "built").MustStatus(); st != sdk.VMSTATUS_WAIT_FOR_LAUNCH {
		t.Errorf("at first it is %s", st)
	}
	settle(e)
	if st := vmNamed(t, s, "built").MustStatus(); st != sdk.VMSTATUS_UP {
		t.Errorf("then it is %s", st)
	}
	_, err = built.Remove().Send()
	conflicts(t, err, "running")
	ok(built.Stop().Send())(t)
	settle(e)
	ok(built.Remove().Send())(t)
	settle(e)
	_, err = built.Get().Send()
	absent(t, err)
}

func TestUploadOfAQcow2File(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	dir := t.TempDir()
	want := make([]byte, 4<<20)
	copy(want[1<<20:], bytes.Repeat([]byte("content "), 1<<17))
	if err := os.WriteFile(filepath.Join(dir, "raw"), want, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-f", "raw", "-O", "qcow2", filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	file, err := os.ReadFile(filepath.Join(dir, "qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	send := func(size int64, content []byte) (string, sdk.ImageTransferPhase) {
		id := makeDisk(t, e, s, newDisk("image", size, sdk.DISKFORMAT_COW, "data1"))
		b := sdk.NewImageTransferBuilder().Disk(sdk.NewDiskBuilder().Id(id).MustBuild()).Format(sdk.DISKFORMAT_COW).MustBuild()
		x := s.ImageTransfersService().ImageTransferService(ok(s.ImageTransfersService().Add().ImageTransfer(b).Send())(t).MustImageTransfer().MustId())
		settle(e)
		upload(t, e, ok(x.Get().Send())(t).MustImageTransfer().MustTransferUrl(), content)
		ok(x.Finalize().Send())(t)
		settle(e)
		return id, ok(x.Get().Send())(t).MustImageTransfer().MustPhase()
	}
	id, phase := send(4<<20, file)
	if phase != sdk.IMAGETRANSFERPHASE_FINISHED_SUCCESS || !bytes.Equal(contentNow(t, e, id), want) {
		t.Errorf("%s, and the content is the same: %v", phase, bytes.Equal(contentNow(t, e, id), want))
	}
	for name, c := range map[string]struct {
		size    int64
		content []byte
	}{"another size": {8 << 20, file}, "no qcow2": {4 << 20, want[1<<20 : 2<<20]}} {
		id, phase := send(c.size, c.content)
		if phase != sdk.IMAGETRANSFERPHASE_FINISHED_FAILURE {
			t.Errorf("%s: %s", name, phase)
		}
		_, err := s.DisksService().DiskService(id).Get().Send()
		absent(t, err)
	}
}

// upload writes an image over imageio.
func upload(t *testing.T, e *ovirtsim.Engine, url string, content []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", url, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := httpClient(e.InternalCA()).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
}

func TestARestoredVMGoesOn(t *testing.T) {
	lab(t)
	e := start(t, ovirtsim.Config{Site: ovirtsim.SmallSite()})
	s := admin(t, e)
	web := service(t, s, "web")
	if err := e.Write(t.Context(), vmNamed(t, s, "web").MustId(), 5); err != nil {
		t.Fatal(err)
	}
	made := snapshot(t, web, "one")
	settle(e)
	var restored []string
	for _, d := range ok(web.SnapshotsService().SnapshotService(made.MustId()).DisksService().List().Send())(t).MustDisks().Slice() {
		x, url := download(t, e, s, sdk.NewImageTransferBuilder().Snapshot(sdk.NewDiskSnapshotBuilder().Id(d.MustImageId()).MustBuild()))
		content := fetch(t, e, url)
		ok(x.Finalize().Send())(t)
		settle(e)
		id := makeDisk(t, e, s, newDisk("restored", d.MustProvisionedSize(), sdk.DISKFORMAT_COW, "data1"))
		up := ok(s.ImageTransfersService().Add().ImageTransfer(sdk.NewImageTransferBuilder().Disk(sdk.NewDiskBuilder().Id(id).MustBuild()).Format(sdk.DISKFORMAT_RAW).MustBuild()).Send())(t).MustImageTransfer()
		if up.MustDirection() != sdk.IMAGETRANSFERDIRECTION_UPLOAD {
			t.Errorf("the direction is %s by default", up.MustDirection())
		}
		settle(e)
		ux := s.ImageTransfersService().ImageTransferService(up.MustId())
		_, err := s.ImageTransfersService().Add().ImageTransfer(sdk.NewImageTransferBuilder().Disk(sdk.NewDiskBuilder().Id(id).MustBuild()).Format(sdk.DISKFORMAT_RAW).MustBuild()).Send()
		conflicts(t, err, "locked")
		upload(t, e, ok(ux.Get().Send())(t).MustImageTransfer().MustTransferUrl(), content)
		ok(ux.Finalize().Send())(t)
		settle(e)
		restored = append(restored, id)
	}
	ok(importVM(s, "restored", document(t, web), true))(t)
	settle(e)
	v := service(t, s, "restored")
	for _, id := range restored {
		ok(v.DiskAttachmentsService().Add().Attachment(attachment(id, "", true)).Send())(t)
	}
	id := vmNamed(t, s, "restored").MustId()
	report, err := e.Check(t.Context(), id)
	if err != nil || report.Round != 9 || report.Disks != 2 {
		t.Errorf("%v, %v; want round 9 of two disks", report, err)
	}
	ok(v.Start().Send())(t)
	settle(e)
	if !audited(t, s, "The guest of VM restored has checked its disks") {
		t.Error("its guest has not checked its disks")
	}
	if err := e.Write(t.Context(), id, 2); err != nil {
		t.Fatal(err)
	}
	ok(v.Stop().Send())(t)
	settle(e)
	if report, err := e.Check(t.Context(), id); err != nil || report.Round != 11 {
		t.Errorf("after it has gone on: %v, %v", report, err)
	}
	// A guest does not accept what no crash could have left.
	volume := ok(s.DisksService().DiskService(restored[1]).Get().Send())(t).MustDisk().MustImageId()
	plain, err := e.ReadVolume(t.Context(), volume)
	if err != nil {
		t.Fatal(err)
	}
	up := ok(s.ImageTransfersService().Add().ImageTransfer(sdk.NewImageTransferBuilder().Disk(sdk.NewDiskBuilder().Id(restored[1]).MustBuild()).Format(sdk.DISKFORMAT_RAW).MustBuild()).Send())(t).MustImageTransfer()
	settle(e)
	ux := s.ImageTransfersService().ImageTransferService(up.MustId())
	clear(plain[64<<10:]) // all but the superblock
	upload(t, e, ok(ux.Get().Send())(t).MustImageTransfer().MustTransferUrl(), plain)
	ok(ux.Finalize().Send())(t)
	settle(e)
	ok(v.Start().Send())(t)
	settle(e)
	if !audited(t, s, "The guest of VM restored found damage on its disks") {
		t.Error("its guest has found no damage")
	}
	ok(v.Stop().Send())(t)
	settle(e)
	ok(v.Remove().Send())(t)
	settle(e)
	_, err = s.DisksService().DiskService(restored[0]).Get().Send()
	absent(t, err)
}
