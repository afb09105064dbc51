package kvmlab

import (
	"bytes"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"os"
	"strings"
	"text/template"
)

// Spec says what VM to make.
type Spec struct {
	// Name is part of the VM's name: "lab-<Name>-<random>".
	Name  string
	Disks []Disk // none: one qcow2 disk of 64 MiB
	UEFI  bool
	NIC   bool // a NIC on QEMU's user network
	// Agent runs the real QEMU guest agent in the guest.
	Agent bool
	// Rate is how many rounds the guest writes a second, pattern.RoundBytes to each disk. 0 is 2; below 0 it writes
	// only when told to.
	Rate float64
	// AreaBytes of each disk are written, spread over the disk. 0 is 16 MiB.
	AreaBytes int64
	MemoryMiB int // 0 is 256
	Title     string
	// Mover makes a VM that plays a mover (see Lab.Mover), with a virtio-scsi controller unless NoSCSI.
	Mover, NoSCSI bool
}

// DiskKind says what a disk is for.
type DiskKind string

// The kinds of disk.
const (
	Written    DiskKind = ""           // the guest writes the pattern to it
	FileSystem DiskKind = "filesystem" // carries ext4; the guest writes files to it
	Unused     DiskKind = "unused"     // the guest leaves it alone
	CDROM      DiskKind = "cdrom"      // read-only
)

// Disk is one disk of a Spec. Disks are vda, vdb, …; CD-ROMs are sda, sdb, ….
type Disk struct {
	MiB       int64
	Raw       bool // qcow2 otherwise
	Kind      DiskKind
	Shareable bool
	// Fill puts this many bytes of random content, spread over the disk, where the guest never writes.
	Fill int64
}

func (d Disk) format() string {
	if d.Raw || d.Kind == CDROM {
		return "raw"
	}
	return "qcow2"
}

// kvmWorks says whether QEMU can use the processor's virtualization: the device alone is no proof.
func kvmWorks() bool {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	_ = f.Close()
	info, err := os.Stat("/dev/kvm")
	if err != nil || !groupCanUse(info) {
		return false // QEMU does not run as root
	}
	b, err := os.ReadFile("/proc/cpuinfo")
	return err == nil && (bytes.Contains(b, []byte(" vmx")) || bytes.Contains(b, []byte(" svm")))
}

// domain is what the template needs.
type domain struct {
	Spec
	FullName, Kernel, Initrd, Cmdline, Serial string
	KVM                                       bool
	Sources                                   []source
}

// source is one disk as libvirt sees it.
type source struct {
	Disk
	Format, Path, Target, Bus, Device, SerialNo string
}

func (d domain) xml() (string, error) {
	var b strings.Builder
	err := domainTemplate.Execute(&b, d)
	return b.String(), err
}

// cmdline is the kernel's command line, where the guest finds what to do.
func (s Spec) cmdline(group [16]byte) string {
	written := 0
	for _, d := range s.Disks {
		if d.Kind != CDROM {
			written++
		}
	}
	if s.Mover {
		return "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check cairn.mover=1 cairn.rate=0"
	}
	return fmt.Sprintf("console=ttyS0 panic=-1 quiet mitigations=off no_timer_check cairn.rate=%g cairn.area=%d cairn.disks=%d cairn.group=%s",
		max(s.Rate, 0), s.AreaBytes, written, hex.EncodeToString(group[:]))
}

var domainTemplate = template.Must(template.New("domain").Funcs(template.FuncMap{"x": escape}).Parse(`
<domain type='{{if .KVM}}kvm{{else}}qemu{{end}}'>
  <name>{{x .FullName}}</name>
  {{if .Title}}<title>{{x .Title}}</title>{{end}}
  {{if .Mover}}<metadata><cairn:mover xmlns:cairn='https://cairn-backup.dev/xmlns/domain/1' tag='lab' ready='true'/></metadata>{{end}}
  <memory unit='MiB'>{{.MemoryMiB}}</memory>
  <vcpu>1</vcpu>
  <os{{if .UEFI}} firmware='efi'{{end}}>
    <type arch='x86_64' machine='q35'>hvm</type>
    {{if .UEFI}}<firmware><feature enabled='no' name='secure-boot'/></firmware>{{end}}
    <kernel>{{x .Kernel}}</kernel>
    <initrd>{{x .Initrd}}</initrd>
    <cmdline>{{x .Cmdline}}</cmdline>
  </os>
  <features><acpi/></features>
  {{if .KVM}}<cpu mode='host-passthrough'/>{{else}}<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>{{end}}
  <clock offset='utc'/>
  <on_poweroff>destroy</on_poweroff><on_reboot>destroy</on_reboot><on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    {{range .Sources}}
    <disk type='file' device='{{.Device}}'>
      <driver name='qemu' type='{{.Format}}'{{if ne .Device "cdrom"}} discard='unmap'{{end}}/>
      <source file='{{x .Path}}'/>
      <target dev='{{.Target}}' bus='{{.Bus}}'/>
      {{if eq .Device "cdrom"}}<readonly/>{{end}}
      {{if .Shareable}}<shareable/>{{end}}
      <serial>{{x .SerialNo}}</serial>
    </disk>
    {{end}}
    <controller type='pci' model='pcie-root'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='pci' model='pcie-root-port'/>
    <controller type='usb' model='none'/>
    {{if .NIC}}<interface type='user'><model type='virtio'/></interface>{{end}}
    <serial type='file'><source path='{{x .Serial}}' append='on'/><target port='0'/></serial>
    <channel type='unix'><target type='virtio' name='{{x "cairn.lab.0"}}'/></channel>
    {{if .Mover}}<channel type='unix'><target type='virtio' name='cairn.mover.0'/></channel>{{end}}
    {{if and .Mover (not .NoSCSI)}}<controller type='scsi' model='virtio-scsi'/>{{end}}
    {{if .Agent}}<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>{{end}}
    <memballoon model='none'/>
  </devices>
</domain>`))

func escape(s string) (string, error) {
	var b bytes.Buffer
	err := xml.EscapeText(&b, []byte(s))
	return b.String(), err
}
