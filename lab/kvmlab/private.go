package kvmlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// overlays are the places where libvirtd keeps what is its own; a private one sees other directories there. It shares
// /var/lib/libvirt, where everything carries the names of VMs: programs look there for sockets by path.
var overlays = []string{"/run/libvirt", "/etc/libvirt", "/var/cache/libvirt"}

// privateDir is where in a lab's directory its own libvirtd lives; short, for the sake of socket paths.
const privateDir = "d"

func privateDaemon(dir string) *Daemon {
	return &Daemon{URI: "qemu+unix:///system?socket=" + dir + "/run/libvirt/libvirt-sock", dir: dir}
}

// StartPrivate starts a libvirtd of its own in dir, in a mount namespace in which its sockets, state and
// configuration lie below dir. Everything else is shared with the machine, so that images, sockets and scratch files
// in other places are the same for both. Its URI can be used from outside.
func StartPrivate(ctx context.Context, dir string) (*Daemon, error) {
	d := privateDaemon(dir)
	for _, o := range overlays {
		if err := os.MkdirAll(d.host(o), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, err
	}
	for _, name := range []string{"libvirtd.conf", "qemu.conf", "virtlogd.conf"} {
		b, err := os.ReadFile(filepath.Join("/etc/libvirt", name))
		if err != nil {
			continue // Debian's defaults are built in
		}
		if err := os.WriteFile(filepath.Join(d.host("/etc/libvirt"), name), b, 0o600); err != nil {
			return nil, err
		}
	}
	// What QEMU can do takes libvirt seconds to find out; the machine's own knows it already.
	_, _ = run(ctx, "cp", "-a", "/var/cache/libvirt/.", d.host("/var/cache/libvirt"))
	if err := d.identify(randomUUID()); err != nil {
		return nil, err
	}
	if err := d.start(ctx); err != nil {
		return nil, fmt.Errorf("start private libvirtd: %w", err)
	}
	return d, nil
}

// identify has a private libvirtd say that its host is the one of a UUID. Where the firmware says none, libvirt would make another
// one up at each start.
func (d *Daemon) identify(uuid string) error {
	file := filepath.Join(d.host("/etc/libvirt"), "libvirtd.conf")
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var conf strings.Builder
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "host_uuid") {
			conf.WriteString(line)
		}
	}
	fmt.Fprintf(&conf, "\nhost_uuid = %q\n", uuid)
	return os.WriteFile(file, []byte(conf.String()), 0o600)
}

// Reidentify restarts a private libvirtd as that of another host, of which it returns the UUID. VMs go on running.
func (d *Daemon) Reidentify(ctx context.Context) (uuid string, err error) {
	if d.dir == "" {
		return "", errors.New("only a private libvirtd can be reconfigured")
	}
	uuid = randomUUID()
	if err := d.identify(uuid); err != nil {
		return "", err
	}
	return uuid, d.Restart(ctx)
}

func randomUUID() string {
	h := randomHex(16)
	return strings.Join([]string{h[:8], h[8:12], "4" + h[13:16], "8" + h[17:20], h[20:]}, "-")
}

// enter returns the command that runs another one in the daemon's view of the machine.
func (d *Daemon) enter() []string {
	var script strings.Builder
	for _, o := range overlays {
		fmt.Fprintf(&script, "mkdir -p %s && mount --bind %s %s && ", o, d.host(o), o)
	}
	script.WriteString(`exec "$@"`)
	return []string{"/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", script.String(), "enter"}
}

// host translates a path that libvirt names into one of the machine's.
func (d *Daemon) host(path string) string {
	if d.dir == "" {
		return path
	}
	for _, o := range overlays {
		if path == o || strings.HasPrefix(path, o+"/") {
			return d.dir + path
		}
	}
	return path
}

// Close stops a private daemon and removes its directory. The machine's own it leaves alone.
func (d *Daemon) Close() error {
	if d.dir == "" {
		return nil
	}
	for _, name := range []string{"libvirtd", "virtlogd"} {
		if err := d.signal(context.Background(), name, syscall.SIGTERM); err != nil {
			return err
		}
	}
	return os.RemoveAll(d.dir)
}
