package sanlab

import (
	"fmt"
	"strings"
)

// Namespace is a disk of a guest, as its kernel serves it over NVMe.
type Namespace struct {
	Device string // "/dev/vda"
	UUID   string
	NGUID  string // "12345678-90ab-cdef-1234-567890abcdef"
}

// NVMePort is where a guest's first port of NVMe/TCP listens.
const NVMePort = 4420

// ServeNVMe lets the guest's kernel be a target of NVMe/TCP, an array to which every host may connect on each of the given number
// of ports, from NVMePort on. Whether the namespaces are written is for who reads their files to find out: the kernel's target serves
// no device that it may not write to.
func (g *Guest) ServeNVMe(nqn string, ports int, namespaces ...Namespace) {
	g.t.Helper()
	var s strings.Builder
	fmt.Fprintf(&s, `mount -t configfs configfs /sys/kernel/config
cd /sys/kernel/config/nvmet
S=subsystems/%s
mkdir $S
echo 1 >$S/attr_allow_any_host
echo 0123456789abcdef >$S/attr_serial
`, nqn)
	for i, n := range namespaces {
		fmt.Fprintf(&s, `mkdir $S/namespaces/%[1]d
echo -n %[2]s >$S/namespaces/%[1]d/device_path
echo %[3]s >$S/namespaces/%[1]d/device_uuid
echo %[4]s >$S/namespaces/%[1]d/device_nguid
echo 1 >$S/namespaces/%[1]d/enable
`, i+1, n.Device, n.UUID, n.NGUID)
	}
	for i := range ports {
		fmt.Fprintf(&s, `mkdir ports/%[1]d
echo tcp >ports/%[1]d/addr_trtype
echo ipv4 >ports/%[1]d/addr_adrfam
echo 0.0.0.0 >ports/%[1]d/addr_traddr
echo %[2]d >ports/%[1]d/addr_trsvcid
ln -s /sys/kernel/config/nvmet/$S ports/%[1]d/subsystems/
`, i+1, NVMePort+i)
	}
	g.Shell(s.String())
}

// ConnectNVMe connects the kernel's initiator with a target's port, and returns the controller's name, "nvme0".
func (g *Guest) ConnectNVMe(address string, port int, nqn string) string {
	g.t.Helper()
	const host = "20e5a1d5-6c06-4f2b-9a59-1b1c0d2c5a01"
	out := g.Shell(fmt.Sprintf(`exec 3<>/dev/nvme-fabrics
echo "transport=tcp,traddr=%s,trsvcid=%d,nqn=%s,hostnqn=nqn.2014-08.org.nvmexpress:uuid:%s,hostid=%s" >&3
head -n 1 <&3`, address, port, nqn, host, host))
	var instance, controller int
	if n, err := fmt.Sscanf(out, "instance=%d,cntlid=%d", &instance, &controller); n != 2 {
		g.t.Fatalf("the kernel answered %q: %v", out, err)
	}
	return fmt.Sprintf("nvme%d", instance)
}
