package kvm

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"
)

// kindMover is a mover VM that is not complete yet.
const kindMover hypervisors.OwedKind = "mover-domain"

// maxSeed bounds a seed; a mover's is a few hundred KiB at most.
const maxSeed = 16 << 20

// qcow2Header is as much of an image as has to be looked at; see checkImage.
const qcow2Header = 80

var goodMover = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,47}[a-zA-Z0-9])?$`)

func moverName(name string) string { return marker + name }

// CheckMover says whether a mover VM could be made now.
func (d *Driver) CheckMover(ctx context.Context, req hypervisors.MoverRequest) error {
	_, err := d.planMover(ctx, req)
	return err
}

// moverPlan is a request that was found possible.
type moverPlan struct {
	hypervisors.MoverRequest
	uuid       string
	pool       pool
	virtual    string // libvirt's type of domain: "kvm" or "qemu"
	disk, seed string // volumes, and then their paths
}

func (d *Driver) planMover(ctx context.Context, req hypervisors.MoverRequest) (*moverPlan, error) {
	if err := checkTag(req.Tag); err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "deploy mover", req.Name, format, args...)
	}
	switch {
	case !goodMover.MatchString(req.Name):
		return nil, fault.New(fault.Invalid, "deploy mover", req.Name, "its name is not 1 to 49 letters, digits and '-'").
			Explain("The name becomes the mover's host name.", "Choose another name.")
	case req.CPUs < 0 || req.CPUs > 256 || req.MemoryBytes < 0 || req.MemoryBytes > 0 && req.MemoryBytes < 128<<20:
		return nil, bad("%d CPUs and %d bytes of memory", req.CPUs, req.MemoryBytes)
	case len(req.Seed) == 0 || len(req.Seed) > maxSeed:
		return nil, bad("a seed of %d bytes", len(req.Seed))
	case req.ImageBytes <= qcow2Header:
		return nil, bad("an image of %d bytes", req.ImageBytes)
	}
	req.CPUs, req.MemoryBytes = cmp.Or(req.CPUs, 2), cmp.Or(req.MemoryBytes, 1<<30)
	p := &moverPlan{MoverRequest: req, uuid: newUUID(), disk: marker + req.Tag + "-system.qcow2", seed: marker + req.Tag + "-seed.iso"}
	_, err := call(ctx, d.conn, "check deployment of mover", req.Name, func(lv *libvirt.Connect) (none, error) {
		return none{}, d.checkMover(lv, p)
	})
	return p, err
}

func (d *Driver) checkMover(lv *libvirt.Connect, p *moverPlan) error {
	dom, err := lv.LookupDomainByName(moverName(p.Name))
	if err == nil {
		_ = dom.Free()
		return fault.New(fault.Exists, "", "", "the host has a VM %s already", moverName(p.Name)).
			Explain("A mover of this name was deployed before.", "Choose another name, or remove that one first.")
	}
	if number(err) != libvirt.ERR_NO_DOMAIN {
		return err
	}
	pools, err := freshPools(lv)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(pools, func(o pool) bool { return o.Name == p.Datastore })
	if i < 0 {
		return fault.New(fault.NotFound, "", "", "there is no storage pool %q", p.Datastore).
			Explain("The chosen datastore does not exist on this host.", "List the datastores of the connection and choose one of them.")
	}
	p.pool = pools[i]
	if !p.pool.Active || !fileBased(p.pool.Kind) {
		return fault.New(fault.Conflict, "", "", "the storage pool %q is not active, or keeps no files", p.Datastore).
			Explain("A mover's disk is a qcow2 file.", "Choose a datastore that is a started directory or file system.")
	}
	if need := p.ImageBytes + int64(len(p.Seed)); need > p.pool.FreeBytes {
		return fault.New(fault.Conflict, "", "", "the storage pool %q has %d bytes free, and %d are needed", p.Datastore, p.pool.FreeBytes, need).
			Explain("The chosen datastore has too little room.", "Free space there, or choose another datastore.")
	}
	if _, err := parseNetwork(p.Network); err != nil {
		return err
	}
	if err := d.checkNetwork(lv, p.Network); err != nil {
		return err
	}
	p.virtual = "kvm"
	if _, err := lv.GetDomainCapabilities("", "x86_64", "q35", p.virtual, 0); err != nil {
		p.virtual = "qemu"
		_, err = lv.GetDomainCapabilities("", "x86_64", "q35", p.virtual, 0)
		return err
	}
	return nil
}

// DeployMover makes and starts a mover VM.
func (d *Driver) DeployMover(ctx context.Context, req hypervisors.MoverRequest) (_ hypervisors.VM, err error) {
	p, err := d.planMover(ctx, req)
	if err != nil {
		return hypervisors.VM{}, err
	}
	lent := &lentReader{r: req.Image} // a call that outlives ctx must not read on when we have returned
	defer lent.giveBack()
	image := bufio.NewReader(lent)
	head, err := image.Peek(qcow2Header)
	if err != nil {
		return hypervisors.VM{}, fault.Context("read image of mover", req.Name, err)
	}
	capacity, err := checkImage(head)
	if err != nil {
		return hypervisors.VM{}, fault.Context("deploy mover", req.Name, err)
	}
	var owed []hypervisors.Owed
	owe := func(o hypervisors.Owed) error {
		if err := req.Owe(ctx, o); err != nil {
			return fault.Context("record owed clean-up", o.Name, err)
		}
		owed = append(owed, o)
		return nil
	}
	defer func() {
		if err == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limitAfter(ctx))
		defer cancel()
		for _, o := range slices.Backward(owed) {
			if e := d.CleanUp(ctx, o); e != nil {
				d.log.Warn("clean-up after a failed deployment is left owed", "mover", req.Name, "err", e)
			}
		}
	}()
	for _, v := range []struct {
		name     *string
		format   string
		capacity uint64
		size     int64
		content  io.Reader
	}{
		{&p.disk, "qcow2", capacity, req.ImageBytes, image},
		{&p.seed, "raw", uint64(len(req.Seed)), int64(len(req.Seed)), bytes.NewReader(req.Seed)},
	} {
		if err := owe(hypervisors.Owed{Kind: kindVolume, VM: p.uuid, Name: *v.name, Args: map[string]string{"pool": p.pool.Name}}); err != nil {
			return hypervisors.VM{}, err
		}
		name := *v.name
		*v.name, err = making(ctx, d, req.Tag, "upload volume", name, func(lv *libvirt.Connect) (string, error) {
			return uploadVolume(ctx, lv, p.pool.Name, name, v.format, v.capacity, v.size, v.content)
		})
		if err != nil {
			return hypervisors.VM{}, err
		}
	}
	if err := owe(hypervisors.Owed{Kind: kindMover, VM: p.uuid, Name: marker + req.Tag}); err != nil {
		return hypervisors.VM{}, err
	}
	return d.startMover(ctx, p)
}

// checkImage reads the header of a qcow2 image (docs/interop/qcow2.txt of QEMU) and returns its virtual size. An image that
// names another file would make the host's QEMU open that.
func checkImage(head []byte) (capacity uint64, err error) {
	const maxCapacity, externalData = 1 << 40, 1 << 2
	version, backing := binary.BigEndian.Uint32(head[4:]), binary.BigEndian.Uint64(head[8:])
	capacity = binary.BigEndian.Uint64(head[24:])
	switch {
	case !bytes.HasPrefix(head, []byte("QFI\xfb")), version != 2 && version != 3, capacity == 0, capacity > maxCapacity:
		return 0, fault.New(fault.Invalid, "", "", "the image is not qcow2").
			Explain("This file is no mover image for KVM.", "Take the file that ends in .qcow2.")
	case backing != 0, version == 3 && binary.BigEndian.Uint64(head[72:])&externalData != 0:
		return 0, fault.New(fault.Invalid, "", "", "the image keeps its data, or a part of it, in another file").
			Explain("A mover image is one file; this one would make the host open another one.", "Take the image as `make images` makes it.")
	}
	return capacity, nil
}

// lentReader is a reader that can be taken back: no Read of the original begins after giveBack, and none is under way.
type lentReader struct {
	mu sync.Mutex
	r  io.Reader
}

func (l *lentReader) Read(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.r == nil {
		return 0, fs.ErrClosed
	}
	return l.r.Read(p)
}

func (l *lentReader) giveBack() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.r = nil
}

// uploadVolume makes a volume and fills it from a reader, which must give exactly size bytes. It returns its path.
func uploadVolume(ctx context.Context, lv *libvirt.Connect, poolName, name, format string, capacity uint64, size int64, content io.Reader) (string, error) {
	p, err := lv.LookupStoragePoolByName(poolName)
	if err != nil {
		return "", err
	}
	defer p.Free()
	x := libvirtxml.StorageVolume{
		Name:       name,
		Capacity:   &libvirtxml.StorageVolumeSize{Value: capacity, Unit: "bytes"},
		Allocation: &libvirtxml.StorageVolumeSize{Value: 0, Unit: "bytes"},
		Target:     &libvirtxml.StorageVolumeTarget{Format: &libvirtxml.StorageVolumeTargetFormat{Type: format}},
	}
	doc, err := x.Marshal()
	if err != nil {
		return "", err
	}
	v, err := p.StorageVolCreateXML(doc, 0)
	if err != nil {
		return "", err
	}
	defer v.Free()
	st, err := lv.NewStream(0)
	if err != nil {
		return "", err
	}
	defer st.Free()
	if err := v.Upload(st, 0, uint64(size), 0); err != nil {
		return "", err
	}
	if err := sendAll(ctx, st, content, size); err != nil {
		_ = st.Abort()
		return "", err
	}
	if err := st.Finish(); err != nil {
		return "", err
	}
	_ = p.Refresh(0) // a pool with a job under way cannot; it learns the image's size later
	return v.GetPath()
}

// sendAll sends size bytes and stops when ctx ends.
func sendAll(ctx context.Context, st *libvirt.Stream, content io.Reader, size int64) error {
	buf := make([]byte, 256<<10)
	for size > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(content, buf[:min(size, int64(len(buf)))])
		if err != nil {
			return fault.New(fault.Invalid, "read image", "", "it ends %d bytes early: %w", size-int64(n), err)
		}
		size -= int64(n)
		for p := buf[:n]; len(p) > 0; {
			sent, err := st.Send(p)
			if err != nil {
				return err
			}
			p = p[sent:]
		}
	}
	return nil
}

// startMover defines the VM, starts it, and marks it as complete.
func (d *Driver) startMover(ctx context.Context, p *moverPlan) (hypervisors.VM, error) {
	return making(ctx, d, p.Tag, "start mover", p.Name, func(lv *libvirt.Connect) (hypervisors.VM, error) {
		dom, note, err := p.start(lv)
		if err != nil {
			return hypervisors.VM{}, err
		}
		defer dom.Free()
		if err := dom.SetAutostart(true); err != nil {
			return hypervisors.VM{}, err
		}
		err = dom.SetMetadata(libvirt.DOMAIN_METADATA_ELEMENT, moverElement(p.Tag, true), "cairn", metadataNS,
			libvirt.DOMAIN_AFFECT_LIVE|libvirt.DOMAIN_AFFECT_CONFIG)
		if err != nil {
			return hypervisors.VM{}, err
		}
		vm, err := describeMover(lv, dom)
		if note != "" {
			vm.Notes = append(vm.Notes, note)
		}
		return vm, err
	})
}

// start defines and starts the domain. Hosts exist that offer hardware virtualisation and fail when it is used, such as
// some that are virtual themselves; there the mover runs without.
func (p *moverPlan) start(lv *libvirt.Connect) (dom *libvirt.Domain, note string, err error) {
	for {
		doc, err := p.xml()
		if err != nil {
			return nil, "", fault.Wrap(fault.Internal, "describe mover", p.Name, err)
		}
		if dom, err = lv.DomainDefineXML(doc); err != nil {
			return nil, "", err
		}
		if err = dom.Create(); err == nil {
			return dom, note, nil
		}
		_ = dom.Free()
		if p.virtual != "kvm" || !strings.Contains(err.Error(), "kvm") {
			return nil, "", err
		}
		note = "The host's hardware virtualisation cannot be used, so that the mover is slow: " + err.Error() + "."
		p.virtual = "qemu"
	}
}

func describeMover(lv *libvirt.Connect, dom *libvirt.Domain) (hypervisors.VM, error) {
	x, err := domainXML(dom, 0)
	if err != nil {
		return hypervisors.VM{}, err
	}
	state, _, err := dom.GetState()
	if err != nil {
		return hypervisors.VM{}, err
	}
	vm := describeXML(x)
	vm.Power = powerOf(state)
	vm.Host, err = lv.GetHostname()
	return vm, err
}

// moverElement marks a domain as a mover of ours; one that is not ready is one whose deployment was not completed.
func moverElement(tag string, ready bool) string {
	return fmt.Sprintf(`<mover tag=%q ready="%v"/>`, tag, ready)
}

// moverMetadata is moverElement as it stands in a whole domain.
func moverMetadata(tag string, ready bool) string {
	return strings.Replace(moverElement(tag, ready), "<mover ", fmt.Sprintf("<cairn:mover xmlns:cairn=%q ", metadataNS), 1)
}

// xml describes the VM: a virtio-scsi controller to plug disks into, and nothing that a mover does not need.
func (p *moverPlan) xml() (string, error) {
	zero := uint(0)
	network, err := parseNetwork(p.Network)
	if err != nil {
		return "", err
	}
	cpu := &libvirtxml.DomainCPU{Mode: "host-model"}
	if p.virtual != "kvm" {
		cpu.Mode = "maximum" // hashes take longer without the newer instructions
	}
	file := func(path string) *libvirtxml.DomainDiskSource {
		return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
	}
	x := libvirtxml.Domain{
		Type: p.virtual, Name: moverName(p.Name), UUID: p.uuid, Title: "Cairn mover " + p.Name,
		Metadata: &libvirtxml.DomainMetadata{XML: moverMetadata(p.Tag, false)},
		Memory:   &libvirtxml.DomainMemory{Value: uint(p.MemoryBytes >> 10), Unit: "KiB"},
		VCPU:     &libvirtxml.DomainVCPU{Value: uint(p.CPUs)},
		OS: &libvirtxml.DomainOS{
			Type: &libvirtxml.DomainOSType{Type: "hvm", Arch: "x86_64", Machine: "q35"}, BootDevices: []libvirtxml.DomainBootDevice{{Dev: "hd"}},
		},
		CPU:      cpu,
		Features: &libvirtxml.DomainFeatureList{ACPI: &libvirtxml.DomainFeature{}},
		Clock:    &libvirtxml.DomainClock{Offset: "utc"},
		OnReboot: "restart", OnPoweroff: "destroy", OnCrash: "restart",
		Devices: &libvirtxml.DomainDeviceList{
			Disks: []libvirtxml.DomainDisk{
				{
					Device: "disk", Source: file(p.disk), Target: &libvirtxml.DomainDiskTarget{Dev: "vda", Bus: "virtio"},
					Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "qcow2", Discard: "unmap"},
				},
				{
					Device: "cdrom", Source: file(p.seed), Target: &libvirtxml.DomainDiskTarget{Dev: "sda", Bus: "sata"},
					Driver: &libvirtxml.DomainDiskDriver{Name: "qemu", Type: "raw"}, ReadOnly: &libvirtxml.DomainDiskReadOnly{},
				},
			},
			Controllers: []libvirtxml.DomainController{
				{Type: "scsi", Index: &zero, Model: "virtio-scsi"}, {Type: "usb", Model: "none"},
			},
			Interfaces: []libvirtxml.DomainInterface{{Source: network, Model: &libvirtxml.DomainInterfaceModel{Type: "virtio"}}},
			Serials:    []libvirtxml.DomainSerial{{Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}}},
			MemBalloon: &libvirtxml.DomainMemBalloon{Model: "none"},
			RNGs: []libvirtxml.DomainRNG{{
				Model: "virtio", Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
			}},
		},
	}
	return x.Marshal()
}

// isMover says whether a domain has our mark of a mover: only such a VM gets disks of others plugged in.
func isMover(x *libvirtxml.Domain) bool {
	return x.Metadata != nil && readMetadata(x.Metadata.XML).Mover != ""
}

// isDeployed says whether we have made a mover, and may remove it.
func isDeployed(x *libvirtxml.Domain) bool { return isMover(x) && strings.HasPrefix(x.Name, marker) }

// isOurs says whether a domain is none of the user's VMs.
func isOurs(x *libvirtxml.Domain) bool { return isHelper(x) || isMover(x) }

// Movers returns the mover VMs of the host.
func (d *Driver) Movers(ctx context.Context) ([]hypervisors.VM, error) {
	return call(ctx, d.conn, "list movers", d.cfg.URI, func(lv *libvirt.Connect) ([]hypervisors.VM, error) {
		doms, err := lv.ListAllDomains(0)
		if err != nil {
			return nil, err
		}
		out := []hypervisors.VM{}
		for i := range doms {
			x, err := domainXML(&doms[i], 0)
			if err == nil && isMover(x) {
				var vm hypervisors.VM
				if vm, err = describeMover(lv, &doms[i]); err == nil {
					out = append(out, vm)
				}
			}
			_ = doms[i].Free()
			if err != nil && number(err) != libvirt.ERR_NO_DOMAIN {
				return nil, err
			}
		}
		slices.SortFunc(out, func(a, b hypervisors.VM) int { return cmp.Compare(a.Name, b.Name) })
		return out, nil
	})
}

// RemoveMover removes a mover VM with its disks.
func (d *Driver) RemoveMover(ctx context.Context, id string) error {
	if err := checkUUID(id); err != nil {
		return err
	}
	return d.removeMover(ctx, id, func(x *libvirtxml.Domain) error {
		if !isDeployed(x) {
			return fault.New(fault.Invalid, "", "", "it was not deployed as a mover").
				Explain("This VM is one of the user's.", "Remove it on the platform, if it is to be removed.")
		}
		return nil
	})
}

// removeMover removes a domain that may be removed, with those of its volumes that carry our mark. One that is gone is
// fine, one to which disks are plugged a Conflict. The domain goes last: as long as a volume is left it says which.
func (d *Driver) removeMover(ctx context.Context, id string, may func(*libvirtxml.Domain) error) error {
	_, err := onDomain(ctx, d.conn, "remove mover", id, func(lv *libvirt.Connect, dom *libvirt.Domain) (none, error) {
		x, err := domainXML(dom, 0)
		if err != nil {
			return none{}, err
		}
		err = may(x)
		if errors.Is(err, errNotOurs) {
			return none{}, nil
		}
		if err == nil {
			err = notAtWork(x)
		}
		if err != nil {
			return none{}, err
		}
		if err := dom.DestroyFlags(libvirt.DOMAIN_DESTROY_DEFAULT); err != nil && number(err) != libvirt.ERR_OPERATION_INVALID {
			return none{}, err
		}
		var errs []error
		for i := range x.Devices.Disks {
			disk := &x.Devices.Disks[i]
			if path := describeDisk(disk).Path; attachedName(disk) == "" && strings.HasPrefix(baseName(path), marker) {
				errs = append(errs, deleteByPath(lv, path))
			}
		}
		if err := errors.Join(errs...); err != nil {
			return none{}, err
		}
		return none{}, dom.UndefineFlags(libvirt.DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.DOMAIN_UNDEFINE_NVRAM |
			libvirt.DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.DOMAIN_UNDEFINE_CHECKPOINTS_METADATA)
	})
	if err != nil && fault.KindOf(err) == fault.NotFound {
		return nil
	}
	return err
}

// notAtWork refuses a mover that has disks of others.
func notAtWork(x *libvirtxml.Domain) error {
	n := 0
	for i := range x.Devices.Disks {
		if attachedName(&x.Devices.Disks[i]) != "" {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fault.New(fault.Conflict, "", "", "%d disks are plugged into it", n).
		Explain("The mover is at work.", "Drain the mover and wait until its transfers have ended.")
}

// errNotOurs keeps a domain that a clean-up is not about.
var errNotOurs = errors.New("it is not the one that was owed")

// cleanMover removes the mover VM of a deployment that came to nothing. Whoever owes it strikes it off as soon as the
// mover has enrolled.
func (d *Driver) cleanMover(ctx context.Context, o hypervisors.Owed) error {
	return d.removeMover(ctx, o.VM, func(x *libvirtxml.Domain) error {
		if !isDeployed(x) || marker+readMetadata(x.Metadata.XML).Mover != o.Name {
			return errNotOurs
		}
		return nil
	})
}

// deleteByPath deletes the volume at a path; one that is not there is fine.
func deleteByPath(lv *libvirt.Connect, path string) error {
	return deleteFound(lv.LookupStorageVolByPath(path))
}
