package ovirt

import (
	"testing"

	sdk "github.com/ovirt/go-ovirt"

	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/apixml"
	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

// reader reads one kind of document of the engine, and looks at what it holds as the driver does.
type reader struct {
	tag, sample string
	read        func(doc []byte) error
}

// each makes a reader of a collection.
func each[E any, S any, P interface {
	*S
	Slice() []E
}](tag, sample string, read apixml.CollectionReader[S], look func(E)) reader {
	return reader{tag, sample, func(doc []byte) error {
		s, err := apixml.Decode(doc, tag, read)
		if err == nil {
			for _, x := range P(s).Slice() {
				look(x)
			}
		}
		return err
	}}
}

// single makes a reader of an entity.
func single[T any](tag, sample string, read apixml.EntityReader[T], look func(*T)) reader {
	return reader{tag, sample, func(doc []byte) error {
		x, err := apixml.DecodeOne(doc, tag, read)
		if err == nil {
			look(x)
		}
		return err
	}}
}

const anID = "11111111-0000-4000-8000-000000000001"

// readers are all documents that the driver reads beside VMs, which FuzzDescribe has.
func readers() []reader {
	disk := func(d *sdk.Disk) {
		_, _, _, _ = val(d.ImageId()), sized(d.ProvisionedSize()), val(d.Status()), idOf(d.Snapshot())
		for _, s := range items(d.StorageDomains()) {
			_ = val(s.Id())
		}
	}
	diskText := `<disk id="` + anID + `"><alias>cairn-x-1</alias><image_id>` + anID + `</image_id><provisioned_size>9223372036854775807</provisioned_size><status>ok</status><storage_domains><storage_domain id="` + anID + `"/></storage_domains></disk>`
	domain := func(s *sdk.StorageDomain) {
		if st, ok := s.Storage(); ok {
			if g, ok := st.VolumeGroup(); ok {
				_ = groupUUID(val(g.Id()))
				for _, u := range items(g.LogicalUnits()) {
					_ = val(u.Id())
				}
			}
		}
		_, _ = sized(s.Available()), sized(s.Used())
	}
	domainText := `<storage_domain id="` + anID + `"><available>1</available><used>2</used><storage><type>iscsi</type><volume_group id="x"><logical_units><logical_unit id="36001"><size>3</size></logical_unit></logical_units></volume_group></storage></storage_domain>`
	return []reader{
		each("disks", "<disks>"+diskText+"</disks>", sdk.XMLDiskReadMany, disk),
		single("disk", diskText, sdk.XMLDiskReadOne, disk),
		each("storage_domains", "<storage_domains>"+domainText+"</storage_domains>", sdk.XMLStorageDomainReadMany, domain),
		single("storage_domain", domainText, sdk.XMLStorageDomainReadOne, domain),
		each("disk_snapshots", `<disk_snapshots><disk_snapshot id="`+anID+`"><disk id="1"/><parent id="2"/><format>cow</format></disk_snapshot></disk_snapshots>`, sdk.XMLDiskSnapshotReadMany,
			func(v *sdk.DiskSnapshot) { _, _, _ = idOf(v.Disk()), formatOf(val(v.Format())), idOf(v.Parent()) }),
		each("snapshots", `<snapshots><snapshot id="1"><description>cairn-a</description><snapshot_status>ok</snapshot_status><snapshot_type>regular</snapshot_type></snapshot></snapshots>`,
			sdk.XMLSnapshotReadMany, func(s *sdk.Snapshot) { judgeSnapshot(s, "cairn-a"); judgeRemoval(s, true, 1) }),
		each("backups", `<backups><backup id="1"><phase>ready</phase><description>cairn-a</description><to_checkpoint_id>2</to_checkpoint_id></backup></backups>`, sdk.XMLBackupReadMany,
			func(b *sdk.Backup) { _, _, _ = val(b.Phase()), val(b.Description()), val(b.ToCheckpointId()) }),
		each("checkpoints", `<checkpoints><checkpoint id="1"><parent_id>2</parent_id><creation_date>2026-03-04T05:06:07.008Z</creation_date><state>created</state></checkpoint></checkpoints>`,
			sdk.XMLCheckpointReadMany, func(c *sdk.Checkpoint) { _, _ = val(c.CreationDate()), val(c.State()) }),
		each("image_transfers", `<image_transfers><image_transfer id="1"><phase>transferring</phase><transfer_url>https://h:54322/images/x</transfer_url><inactivity_timeout>300</inactivity_timeout><disk id="2"/></image_transfer></image_transfers>`,
			sdk.XMLImageTransferReadMany, func(t *sdk.ImageTransfer) {
				_, _, _ = diskOf(t), over(val(t.Phase())), ending(val(t.Phase()))
				if u, err := ticketURL(val(t.TransferUrl())); err == nil && (u.Scheme != "https" || u.Hostname() == "") {
					panic("a transfer is read from " + u.Redacted())
				}
			}),
		each("events", `<events><event id="1"><code>10779</code><description>Failed to freeze</description></event></events>`, sdk.XMLEventReadMany, func(e *sdk.Event) { failedToFreeze(e) }),
		each("clusters", `<clusters><cluster id="1"><name>a</name><version><major>4</major><minor>7</minor></version></cluster></clusters>`, sdk.XMLClusterReadMany, func(*sdk.Cluster) {}),
		each("hosts", `<hosts><host id="1"><name>a</name><address>h</address></host></hosts>`, sdk.XMLHostReadMany, func(*sdk.Host) {}),
		each("affinity_labels", `<affinity_labels><affinity_label id="1"><vms><vm id="2"/></vms></affinity_label></affinity_labels>`, sdk.XMLAffinityLabelReadMany, func(*sdk.AffinityLabel) {}),
		each("data_centers", `<data_centers><data_center id="1"><name>a</name></data_center></data_centers>`, sdk.XMLDataCenterReadMany, func(*sdk.DataCenter) {}),
		each("networks", `<networks><network id="1"><mtu>1500</mtu><vlan id="5"/></network></networks>`, sdk.XMLNetworkReadMany, func(*sdk.Network) {}),
		each("vnic_profiles", `<vnic_profiles><vnic_profile id="1"><network id="2"/></vnic_profile></vnic_profiles>`, sdk.XMLVnicProfileReadMany, func(*sdk.VnicProfile) {}),
		each("permissions", `<permissions><permission id="1"><role id="2"/></permission></permissions>`, sdk.XMLPermissionReadMany, func(*sdk.Permission) {}),
		each("permits", `<permits><permit id="1"><name>create_vm</name><administrative>false</administrative></permit></permits>`, sdk.XMLPermitReadMany, func(*sdk.Permit) {}),
		single("mac_pool", `<mac_pool id="1"><allow_duplicates>true</allow_duplicates></mac_pool>`, sdk.XMLMacPoolReadOne, func(*sdk.MacPool) {}),
		single("disk_attachment", `<disk_attachment id="1"><active>true</active></disk_attachment>`, sdk.XMLDiskAttachmentReadOne, func(a *sdk.DiskAttachment) { _ = val(a.Active()) }),
		single("api", `<api><product_info><version><major>4</major><minor>5</minor></version></product_info></api>`, sdk.XMLApiReadOne, func(*sdk.Api) {}),
	}
}

// FuzzReplies reads all that an engine sends by the reader that is for it; another reader must refuse it.
func FuzzReplies(f *testing.F) {
	all := readers()
	for i, r := range all {
		if err := r.read([]byte(r.sample)); err != nil {
			f.Fatalf("the sample of <%s>: %v", r.tag, err)
		}
		f.Add([]byte(r.sample), uint8(i))
		for seed := range boundary.Text([]byte(r.sample)) {
			f.Add(seed, uint8(i))
		}
	}
	f.Fuzz(func(t *testing.T, doc []byte, which uint8) {
		r := all[int(which)%len(all)]
		if err := r.read(doc); err != nil && fault.KindOf(err) != fault.Transient {
			t.Errorf("<%s>: %v is of the kind %v", r.tag, err, fault.KindOf(err))
		}
	})
}

// FuzzQcowSize reads the header of an image that is to be uploaded.
func FuzzQcowSize(f *testing.F) {
	head := make([]byte, qcowHeader)
	copy(head, "QFI\xfb\x00\x00\x00\x03")
	head[28] = 1
	boundary.Add(f, head, boundary.Binary(head[:72]))
	f.Fuzz(func(t *testing.T, p []byte) {
		p = append(p, make([]byte, max(0, qcowHeader-len(p)))...)
		if n, err := qcowSize(p); err == nil && (n <= 0 || n > 1<<40 || n%512 != 0) {
			t.Errorf("a disk of %d bytes", n)
		}
	})
}
