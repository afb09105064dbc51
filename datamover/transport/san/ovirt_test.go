//go:build linux

package santransport_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/blockdomain"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/lab/sanlab"
)

// The ids of a domain with one disk: a base, a snapshot on it, and the active volume. The disk was made from a template.
const (
	domainID   = "5e2b3c7a-0c4f-4b6e-9a38-0f4f1f4c8d01"
	diskID     = "0d1c2b3a-4f5e-4d6c-8b7a-9f8e7d6c5b4a"
	templateID = "7c6b5a49-3827-4160-9f8e-7d6c5b4a3928"
	baseID     = "11111111-aaaa-4bbb-8ccc-000000000001"
	frozenID   = "22222222-aaaa-4bbb-8ccc-000000000002"
	activeID   = "33333333-aaaa-4bbb-8ccc-000000000003"
	noParent   = "00000000-0000-0000-0000-000000000000"
)

// ovirtDomain lays out a block domain as vdsm does: the group's name, the size of its extents and metadata, its special volumes, names
// and tags of the volumes, by real lvm2. The devices' files are sparse.
func ovirtDomain(t *testing.T) (p *pool, domain blockdomain.Domain, content []byte) {
	t.Helper()
	const gib = 1 << 30
	p = &pool{LVM: sanlab.NewLVM(t, 3*gib, 2*gib), t: t}
	for i, ignore := range []string{"n", "y"} {
		p.Run("pvcreate", "-q", "--metadatasize", "128m", "--metadatacopies", "2", "--metadataignore", ignore, p.Devices[i])
	}
	p.Run("vgcreate", "-q", "-s", "128m", "--addtag", "RHAT_storage_domain", "--addtag", "MDT_VERSION=5", domainID, p.Devices[0], p.Devices[1])
	create := func(name, size, device string, tags ...string) {
		args := []string{"lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", name, "-L", size}
		for _, tag := range tags {
			args = append(args, "--addtag", tag)
		}
		p.Run(append(args, domainID, device)...)
	}
	for _, special := range []string{"metadata", "ids", "leases", "inbox", "outbox", "xleases", "master"} {
		create(special, "128m", p.Devices[0])
	}
	create(baseID, "128m", p.Devices[1], "IU_"+templateID, "PU_"+noParent, "MD_4")
	create(frozenID, "128m", p.Devices[0], "IU_"+diskID, "PU_"+baseID, "MD_5")
	create(activeID, "128m", p.Devices[1], "IU_"+diskID, "PU_"+frozenID, "MD_6")
	p.Run("lvextend", "-q", "-L", "+128m", domainID+"/"+frozenID, p.Devices[1]) // the SPM has made it larger
	p.options.Devices.System = sanlab.Disguise(t, sanlab.Seen{Device: p.Devices[0], WWN: wwn0}, sanlab.Seen{Device: p.Devices[1], WWN: wwn1})

	dir := t.TempDir()
	base, frozen, whole := filepath.Join(dir, baseID), filepath.Join(dir, frozenID), filepath.Join(dir, "whole")
	source := filepath.Join(dir, "source")
	if err := os.WriteFile(source, bytes.Repeat([]byte("oVirt"), mib), 0o600); err != nil {
		t.Fatal(err)
	}
	p.do("qemu-img", "create", "-q", "-f", "raw", base, "24M")
	p.do("qemu-io", "-f", "raw", "-c", "write -s "+source+" 3M 4M", base)
	p.do("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", baseID, frozen)
	p.do("qemu-io", "-f", "qcow2", "-c", "write -P 7 5M 1M", "-c", "write -z 3M 1M", "-c", "write -P 9 20M 64k", frozen)
	p.do("qemu-img", "convert", "-f", "qcow2", "-O", "raw", frozen, whole)
	p.put(baseID, p.read(base))
	p.put(frozenID, p.read(frozen))
	uuid := strings.TrimSpace(p.Run("vgs", "--noheadings", "-o", "vg_uuid", domainID))
	// The engine names LUNs as multipath does.
	luns := []hypervisors.LUN{{WWN: "3" + strings.TrimPrefix(wwn0, "naa.")}, {WWN: "3" + strings.TrimPrefix(wwn1, "naa.")}}
	return p, blockdomain.Domain{ID: domainID, GroupUUID: uuid, LUNs: luns}, p.read(whole)
}

func TestOVirtBlockDomain(t *testing.T) {
	p, domain, content := ovirtDomain(t)
	chain := []blockdomain.Volume{{ID: frozenID, Disk: diskID, Format: hypervisors.QCOW2}, {ID: baseID, Disk: templateID, Format: hypervisors.Raw}}
	export := func() hypervisors.Export {
		san, err := blockdomain.SAN(domain, chain, activeID)
		if err != nil {
			t.Fatal(err)
		}
		return hypervisors.Export{Transport: hypervisors.TransportSAN, Name: diskID, SizeBytes: 24 * mib, SAN: san}
	}
	d := p.open(export())
	got := &sink{p: bytes.Repeat([]byte{0x55}, len(content))}
	if _, err := transfer.Backup(t.Context(), d, got, transfer.Options{}); err != nil || !bytes.Equal(got.p, content) {
		t.Fatalf("%v; equal: %v", err, bytes.Equal(got.p, content))
	}

	refused := map[string]func(e *hypervisors.Export){
		"of another disk":        func(e *hypervisors.Export) { e.SAN.Layers[0].Tags[0] = "IU_" + templateID },
		"on another volume":      func(e *hypervisors.Export) { e.SAN.Layers[0].Tags[1] = "PU_" + noParent },
		"with nothing on top":    func(e *hypervisors.Export) { e.SAN.Layers[0].FrozenBy = "PU_" + activeID },
		"not there":              func(e *hypervisors.Export) { e.SAN.Layers[0].VolumeName = noParent },
		"of another group":       func(e *hypervisors.Export) { e.SAN.Group = templateID },
		"another backing volume": func(e *hypervisors.Export) { e.SAN.Layers[1].Name = activeID },
	}
	for name, change := range refused {
		e := export()
		change(&e)
		_, err := p.options.OpenSource(t.Context(), e)
		if k := fault.KindOf(err); k != fault.Conflict && k != fault.NotFound {
			t.Errorf("a volume %s: %v", name, err)
		}
	}
	// What the platform does while the disk is read is noticed at the end.
	for name, change := range map[string][]string{
		"the active volume was merged into the one that is read": {"lvchange", "-q", "--deltag", "PU_" + frozenID, domainID + "/" + activeID},
		"the volume is being made anew":                          {"lvchange", "-q", "--addtag", "OVIRT_VOL_INITIALIZING", domainID + "/" + baseID},
		"the volume is to be deleted":                            {"lvrename", "-q", domainID, frozenID, "_remove_me_" + frozenID},
	} {
		p.Run(change...)
		if err := d.Confirm(t.Context()); fault.KindOf(err) != fault.Transient {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := p.options.OpenSource(t.Context(), export()); err == nil {
			t.Errorf("%s: opened", name)
		}
		switch change[0] {
		case "lvrename":
			p.Run("lvrename", "-q", domainID, "_remove_me_"+frozenID, frozenID)
		default:
			back := map[string]string{"--deltag": "--addtag", "--addtag": "--deltag"}[change[2]]
			p.Run(change[0], "-q", back, change[3], change[4])
		}
		if err := d.Confirm(t.Context()); err != nil {
			t.Fatalf("%s, and back: %v", name, err)
		}
	}
}
