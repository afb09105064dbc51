package control

import (
	"bufio"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	pb "github.com/cairn-backup/cairn/api/mover"
	"github.com/cairn-backup/cairn/internal/version"
)

// FactsOf reads what there is to say of this machine; what cannot be read is left out.
func FactsOf(transports []string, mounts []*pb.Mount) *pb.Facts {
	f := &pb.Facts{
		Version: version.Version, Cpus: int32(runtime.NumCPU()), MemoryBytes: memory(), Transports: transports, Mounts: mounts,
		MachineUuid: machineUUID(), BootId: line("/proc/sys/kernel/random/boot_id"),
	}
	f.Hostname, _ = os.Hostname() //nolint:errcheck // "" says that it is not known
	return f
}

// machineUUID is what the platform calls this machine. Only root can read the kernel's file; a service without root gets
// it as the systemd credential "product_uuid".
func machineUUID() string {
	uuid := line("/sys/class/dmi/id/product_uuid")
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); uuid == "" && dir != "" {
		uuid = line(filepath.Join(dir, "product_uuid"))
	}
	return strings.ToLower(uuid)
}

func line(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func memory() int64 {
	file, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer func() { _ = file.Close() }()
	for s := bufio.NewScanner(file); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), "MemTotal:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest + " 0")[0], 10, 64)
			return n << 10
		}
	}
	return 0
}
