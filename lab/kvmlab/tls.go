package kvmlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cairn-backup/cairn/internal/loopback"
)

// TLSDir is where a daemon that listens for TLS keeps its own certificate, for itself and for QEMU.
func (d *Daemon) TLSDir() string { return filepath.Join(d.dir, "tls") }

// ListenTLS restarts a private daemon so that it takes qemu+tls connections on a loopback port, which it returns, and
// so that backups can be read over TLS. certs holds ca-cert.pem, server-cert.pem and server-key.pem. Clients without a
// certificate of that CA are refused, unless qemuConf, lines that are added to qemu.conf, says otherwise for backups.
func (d *Daemon) ListenTLS(ctx context.Context, certs string, qemuConf ...string) (port int, err error) {
	if d.dir == "" {
		return 0, errors.New("only a private libvirtd can be reconfigured")
	}
	if err := d.copyCertificates(certs); err != nil {
		return 0, err
	}
	if port, err = loopback.Port(); err != nil {
		return 0, err
	}
	dir := d.TLSDir()
	err = appendLines(filepath.Join(d.host("/etc/libvirt"), "libvirtd.conf"),
		"listen_tls = 1", `listen_addr = "127.0.0.1"`, fmt.Sprintf(`tls_port = "%d"`, port),
		fmt.Sprintf(`ca_file = "%s/ca-cert.pem"`, dir), fmt.Sprintf(`cert_file = "%s/server-cert.pem"`, dir),
		fmt.Sprintf(`key_file = "%s/server-key.pem"`, dir))
	if err != nil {
		return 0, err
	}
	qemuConf = append([]string{fmt.Sprintf(`backup_tls_x509_cert_dir = "%s"`, dir)}, qemuConf...)
	if err := appendLines(filepath.Join(d.host("/etc/libvirt"), "qemu.conf"), qemuConf...); err != nil {
		return 0, err
	}
	return port, d.Restart(ctx)
}

// listening returns what makes libvirtd listen on the network, once ListenTLS has configured it.
func (d *Daemon) listening(name string) []string {
	if _, err := os.Stat(d.TLSDir()); d.dir == "" || name != "libvirtd" || err != nil {
		return nil
	}
	return []string{"--listen"}
}

// copyCertificates gives QEMU's user a copy of the certificates.
func (d *Daemon) copyCertificates(from string) error {
	qemu, err := user.Lookup("libvirt-qemu")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(qemu.Uid)
	if err != nil {
		return err
	}
	if err := os.Mkdir(d.TLSDir(), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, name := range []string{"ca-cert.pem", "server-cert.pem", "server-key.pem"} {
		to := filepath.Join(d.TLSDir(), name)
		if err := copyFile(to, filepath.Join(from, name), 0o600); err != nil {
			return err
		}
		if err := os.Chown(to, uid, -1); err != nil {
			return err
		}
	}
	return nil
}

// appendLines adds lines to a configuration file, made when it is not there.
func appendLines(file string, lines ...string) error {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n" + strings.Join(lines, "\n") + "\n")
	return errors.Join(err, f.Close())
}
