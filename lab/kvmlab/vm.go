package kvmlab

import (
	"context"
	"encoding/xml"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
)

// VM is a virtual machine of a lab.
type VM struct {
	Name string
	UUID string
	lab  *Lab
	// Serial is the file with what the guest printed; it is kept over restarts.
	Serial string
}

// Define makes a VM and its disks; it is off.
func (l *Lab) Define(ctx context.Context, s Spec) (*VM, error) {
	s = s.withDefaults()
	initrd, err := l.initrd(ctx, s.Agent)
	if err != nil {
		return nil, err
	}
	vm := &VM{Name: "lab-" + s.Name + "-" + l.tag, lab: l, Serial: l.path("serial-" + s.Name + ".log")}
	d := domain{Spec: s, FullName: vm.Name, Kernel: l.path("vmlinuz"), Initrd: initrd, Serial: vm.Serial, KVM: kvmWorks()}
	var group [16]byte
	copy(group[:], randomHex(8))
	d.Cmdline = s.cmdline(group)
	if d.Sources, err = l.makeDisks(ctx, s); err != nil {
		return nil, err
	}
	text, err := d.xml()
	if err != nil {
		return nil, err
	}
	file := l.path(s.Name + ".xml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	if _, err := l.Virsh(ctx, "define", "--validate", file); err != nil {
		return nil, err
	}
	if vm.UUID, err = l.Virsh(ctx, "domuuid", vm.Name); err != nil {
		return nil, err
	}
	_, err = l.Virsh(ctx, "pool-refresh", l.name)
	return vm, err
}

func (s Spec) withDefaults() Spec {
	if len(s.Disks) == 0 && !s.Mover {
		s.Disks = []Disk{{MiB: 64}}
	}
	if s.Name == "" {
		s.Name = "vm"
	}
	if s.Rate == 0 {
		s.Rate = 2
	}
	if s.AreaBytes == 0 {
		s.AreaBytes = 16 << 20
	}
	if s.MemoryMiB == 0 {
		s.MemoryMiB = 256
	}
	return s
}

// Run makes a VM, starts it, and returns when its guest is up and has checked its disks.
func (l *Lab) Run(ctx context.Context, s Spec) (*VM, error) {
	vm, err := l.Define(ctx, s)
	if err != nil {
		return nil, err
	}
	if err := vm.Start(ctx); err != nil {
		return nil, err
	}
	_, err = vm.Status(ctx)
	return vm, err
}

// Find returns a VM that is there already, such as one that was restored, by name or UUID.
func (l *Lab) Find(ctx context.Context, name string) (*VM, error) {
	text, err := l.Virsh(ctx, "dumpxml", "--inactive", name)
	if err != nil {
		return nil, err
	}
	var d domainXML
	if err := xml.Unmarshal([]byte(text), &d); err != nil {
		return nil, err
	}
	return &VM{Name: d.Name, UUID: d.UUID, lab: l, Serial: d.Serial.Source.Path}, nil
}

// Start starts the VM.
func (v *VM) Start(ctx context.Context) error {
	_, err := v.lab.Virsh(ctx, "start", v.Name)
	return err
}

// Stop switches the VM off as if by its power switch; its checkpoints stay good.
func (v *VM) Stop(ctx context.Context) error {
	_, err := v.lab.Virsh(ctx, "destroy", v.Name, "--graceful")
	return err
}

// Kill ends the VM's QEMU by SIGKILL, as a crash of the host would.
func (v *VM) Kill(ctx context.Context) error {
	pid, err := v.PID()
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return err
	}
	return v.WaitState(ctx, "shut off")
}

// PID returns the process id of the VM's QEMU.
func (v *VM) PID() (int, error) {
	file := v.lab.daemon.host("/run/libvirt/qemu/" + v.Name + ".pid")
	if pid := livePID(file, "qemu-system-x86"); pid != 0 {
		return pid, nil
	}
	return 0, fmt.Errorf("VM %s does not run", v.Name)
}

// State returns virsh's word: "running", "paused", "shut off", ….
func (v *VM) State(ctx context.Context) (string, error) {
	return v.lab.Virsh(ctx, "domstate", v.Name)
}

// Paused calls f while the VM's processor stands still and all it wrote is in its images.
func (v *VM) Paused(ctx context.Context, f func() error) error {
	if _, err := v.lab.Virsh(ctx, "suspend", v.Name); err != nil {
		return err
	}
	err := f()
	if _, e := v.lab.Virsh(context.WithoutCancel(ctx), "resume", v.Name); err == nil {
		err = e
	}
	return err
}

// Remove switches the VM off and removes it with its disks.
func (v *VM) Remove(ctx context.Context) error {
	disks, err := v.Disks(ctx)
	if err != nil {
		return err
	}
	if err := v.lab.remove(ctx, v.Name); err != nil {
		return err
	}
	for _, path := range disks {
		if strings.HasPrefix(path, v.lab.dir+"/") {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// XML returns libvirt's description of the VM.
func (v *VM) XML(ctx context.Context) (string, error) { return v.lab.Virsh(ctx, "dumpxml", v.Name) }

// domainXML is the little that the lab reads of a description.
type domainXML struct {
	Name   string `xml:"name"`
	UUID   string `xml:"uuid"`
	Serial struct {
		Source struct {
			Path string `xml:"path,attr"`
		} `xml:"source"`
	} `xml:"devices>serial"`
	Disks []struct {
		Source struct {
			File string `xml:"file,attr"`
		} `xml:"source"`
		Target struct {
			Dev string `xml:"dev,attr"`
		} `xml:"target"`
	} `xml:"devices>disk"`
	Channels []struct {
		Source struct {
			Path string `xml:"path,attr"`
		} `xml:"source"`
		Target struct {
			Name string `xml:"name,attr"`
		} `xml:"target"`
	} `xml:"devices>channel"`
}

func (v *VM) describe(ctx context.Context) (domainXML, error) {
	var d domainXML
	text, err := v.XML(ctx)
	if err == nil {
		err = xml.Unmarshal([]byte(text), &d)
	}
	return d, err
}

// Disks returns the VM's image files by target ("vda").
func (v *VM) Disks(ctx context.Context) (map[string]string, error) {
	d, err := v.describe(ctx)
	out := map[string]string{}
	for _, disk := range d.Disks {
		if disk.Source.File != "" {
			out[disk.Target.Dev] = disk.Source.File
		}
	}
	return out, err
}

// WaitState waits until the VM is in a state.
func (v *VM) WaitState(ctx context.Context, want string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return poll(ctx, 50*time.Millisecond, v.Name+" to be "+want, func() (bool, error) {
		state, err := v.State(ctx)
		return state == want, err
	})
}

// WaitAgent waits until the guest agent answers.
func (v *VM) WaitAgent(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, guestTimeout)
	defer cancel()
	return poll(ctx, 200*time.Millisecond, "the guest agent", func() (bool, error) {
		_, err := v.lab.Virsh(ctx, "qemu-agent-command", v.Name, `{"execute":"guest-ping"}`)
		return err == nil, err
	})
}
