// Package ovf packs a disk into an OVA, the archive that VMware's tools import as one file.
//
// It is no OVF library: it knows the one machine that a Cairn image is for. Its invariant: the manifest's hashes are
// those of the files beside it.
package ovf

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/template"
	"time"
)

// Machine is what the OVF describes.
type Machine struct {
	Name       string // "cairn-mover"
	Product    string // "Cairn DataMover"
	Version    string
	Annotation string
	CPUs       int
	MemoryMiB  int
	Capacity   int64 // of the disk, bytes
	DataGiB    int   // of a second, empty disk that the importer makes; 0 for none
}

// WriteOVA writes an archive with the machine's description, the manifest and the disk, in the order that importers
// that stream need.
func WriteOVA(name string, m Machine, vmdk string, epoch time.Time) (err error) {
	disk, err := os.Open(vmdk)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	h := sha256.New()
	size, err := io.Copy(h, disk)
	if err != nil {
		return err
	}
	diskName, ovfName := m.Name+"-disk1.vmdk", m.Name+".ovf"
	var envelope bytes.Buffer
	err = descriptor.Execute(&envelope, struct {
		Machine
		File string
		Size int64
	}{m, diskName, size})
	if err != nil {
		return err
	}
	manifest := fmt.Appendf(nil, "SHA256(%s)= %x\nSHA256(%s)= %x\n", ovfName, sha256.Sum256(envelope.Bytes()), diskName, h.Sum(nil))
	out, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if _, err := disk.Seek(0, io.SeekStart); err != nil {
		return err
	}
	w := tar.NewWriter(out)
	for _, f := range []struct {
		name string
		size int64
		from io.Reader
	}{
		{ovfName, int64(envelope.Len()), &envelope},
		{m.Name + ".mf", int64(len(manifest)), bytes.NewReader(manifest)},
		{diskName, size, disk},
	} {
		head := &tar.Header{Name: filepath.Base(f.name), Mode: 0o644, Size: f.size, ModTime: epoch, Format: tar.FormatUSTAR}
		if err := w.WriteHeader(head); err != nil {
			return err
		}
		if _, err := io.Copy(w, f.from); err != nil {
			return err
		}
	}
	return w.Close()
}

var descriptor = template.Must(template.New("ovf").Parse(`<?xml version="1.0" encoding="UTF-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:vmw="http://www.vmware.com/schema/ovf">
  <References>
    <File ovf:id="file1" ovf:href="{{.File}}" ovf:size="{{.Size}}"/>
  </References>
  <DiskSection>
    <Info>The disks</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{{.Capacity}}" ovf:capacityAllocationUnits="byte" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>{{if .DataGiB}}
    <Disk ovf:diskId="disk2" ovf:capacity="{{.DataGiB}}" ovf:capacityAllocationUnits="byte * 2^30" ovf:populatedSize="0" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>{{end}}
  </DiskSection>
  <NetworkSection>
    <Info>The network by which the machine reaches the manager</Info>
    <Network ovf:name="Network">
      <Description>The network by which the machine reaches the manager</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="{{.Name}}">
    <Info>{{.Product}}</Info>
    <Name>{{.Name}}</Name>
    <AnnotationSection>
      <Info>What it is</Info>
      <Annotation>{{.Annotation}}</Annotation>
    </AnnotationSection>
    <ProductSection>
      <Info>The product</Info>
      <Product>{{.Product}}</Product>
      <Vendor>Cairn</Vendor>
      <Version>{{.Version}}</Version>
    </ProductSection>
    <OperatingSystemSection ovf:id="101" vmw:osType="other3xLinux64Guest">
      <Info>Linux, 64 bit</Info>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>The hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{{.Name}}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:AllocationUnits>hertz * 10^6</rasd:AllocationUnits>
        <rasd:ElementName>{{.CPUs}} CPUs</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>{{.CPUs}}</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>byte * 2^20</rasd:AllocationUnits>
        <rasd:ElementName>{{.MemoryMiB}} MiB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>{{.MemoryMiB}}</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:ElementName>SCSI controller 0</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>VirtualSCSI</rasd:ResourceSubType>
        <rasd:ResourceType>6</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:ElementName>Disk 1</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/disk1</rasd:HostResource>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>7</rasd:AddressOnParent>
        <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Connection>Network</rasd:Connection>
        <rasd:ElementName>Network adapter 1</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>VmxNet3</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType>
      </Item>
      {{- if .DataGiB}}
      <Item>
        <rasd:AddressOnParent>1</rasd:AddressOnParent>
        <rasd:ElementName>Disk 2, data</rasd:ElementName>
        <rasd:HostResource>ovf:/disk/disk2</rasd:HostResource>
        <rasd:InstanceID>6</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      {{- end}}
      <vmw:Config ovf:required="false" vmw:key="firmware" vmw:value="efi"/>
      <vmw:ExtraConfig ovf:required="false" vmw:key="disk.EnableUUID" vmw:value="TRUE"/>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
`))
