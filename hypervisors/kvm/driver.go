package kvm

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
	"libvirt.org/go/libvirt"
)

// marker begins the name of everything this product makes on a host.
const marker = "cairn-"

// Config says how to reach a host.
type Config struct {
	// URI is libvirt's: qemu:///system, qemu+ssh://[user@]host[:port]/system or qemu+tls://host[:port]/system.
	URI      string
	User     string // ssh: when the URI names none; tls: SASL
	Password string // tls: SASL; ssh takes keys only
	SSHKey   string // ssh: the private key itself, PEM
	Options  map[string]string
	Confirm  hypervisors.ConfirmHost // nil takes any host
	Log      *slog.Logger
}

// The keys of Config.Options.
const (
	// OptScratchDir is the directory on the host for scratch files of running backups; by default they lie beside
	// the disk image.
	OptScratchDir = "scratch_dir"
	// OptSocketDir is a directory on the host that QEMU can make sockets in.
	OptSocketDir = "socket_dir"
	// OptNVRAMDir is the directory on the host for UEFI variables.
	OptNVRAMDir = "nvram_dir"
	// OptSSHKeyFile is the path of a private key on the appliance.
	OptSSHKeyFile = "ssh_key_file"
	// OptPKIPath is the directory with cacert.pem, clientcert.pem and clientkey.pem for qemu+tls and NBD.
	OptPKIPath = "pki_path"
	// OptNBDHost is the address at which movers reach the host's NBD ports; by default the URI's host.
	OptNBDHost = "nbd_host"
	// OptNBDPorts is the range of TCP ports for NBD over TLS, "10809-10872" by default.
	OptNBDPorts = "nbd_ports"
	// OptTLSCertDir is where the host keeps QEMU's server certificate, /etc/pki/qemu by default.
	OptTLSCertDir = "tls_cert_dir"
)

var options = []string{OptScratchDir, OptSocketDir, OptNVRAMDir, OptSSHKeyFile, OptPKIPath, OptNBDHost, OptNBDPorts, OptTLSCertDir}

// access is the way to a host.
type access string

const (
	accessLocal access = "local"
	accessSSH   access = "ssh"
	accessTLS   access = "tls"
)

// Driver is one libvirt host. It implements hypervisors.Driver.
type Driver struct {
	hypervisors.Unsupported
	conn   *conn
	cfg    Config
	access access
	host   string // as in the URI; empty for local
	ssh    sshConfig
	// pkiPath is the directory of our certificate for TLS; empty for libvirt's own places.
	pkiPath string
	log     *slog.Logger
	tmp     string // private directory on the appliance, made when needed

	plugging  sync.Mutex // held while a disk is plugged into a mover
	addresses scsiAddresses

	mu       sync.Mutex
	creating map[string]*sync.WaitGroup // by tag: calls under way that make something
	underWay map[string]int             // by tag: how many
}

var _ hypervisors.Driver = (*Driver)(nil)

// Open checks the configuration; it does not connect. The driver dials when it is first used.
func Open(_ context.Context, cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for k := range cfg.Options {
		if !slices.Contains(options, k) {
			return nil, fault.New(fault.Invalid, "configure connection", hypervisors.ShownAddress(cfg.URI), "unknown option %q", k).
				Explain("This option does not exist for KVM hosts.", "Known options: "+strings.Join(options, ", ")+".")
		}
	}
	u, err := url.Parse(cfg.URI)
	if err != nil {
		return nil, badURI(cfg.URI, "it cannot be read")
	}
	if _, has := u.User.Password(); has {
		return nil, badURI(cfg.URI, "it has a password in it, which would be shown wherever the address is; give it for itself")
	}
	d := &Driver{
		Unsupported: hypervisors.Unsupported{Platform: hypervisors.KVM},
		cfg:         cfg, log: cfg.Log, creating: map[string]*sync.WaitGroup{}, underWay: map[string]int{},
	}
	switch {
	case u.Scheme == "qemu" && u.Host == "":
		d.access = accessLocal
	case u.Scheme == "qemu+unix" && u.Host == "":
		d.access = accessLocal
	case u.Scheme == "qemu+ssh" && u.Host != "":
		d.access = accessSSH
	case (u.Scheme == "qemu+tls" || u.Scheme == "qemu") && u.Host != "":
		d.access = accessTLS
	default:
		return nil, badURI(cfg.URI, "not one of qemu:///system, qemu+ssh://host/system, qemu+tls://host/system")
	}
	if u.Path != "/system" {
		return nil, badURI(cfg.URI, "its path is not /system")
	}
	for parameter := range u.Query() {
		if !slices.Contains(parameters[d.access], parameter) {
			return nil, badURI(cfg.URI, fmt.Sprintf("the parameter %q is not allowed", parameter))
		}
	}
	d.host = u.Hostname()
	if err := d.setUpAccess(u); err != nil {
		return nil, err
	}
	d.conn = &conn{uri: u.String(), name: cfg.URI, user: cfg.User, password: cfg.Password, confirm: cfg.Confirm, log: cfg.Log}
	return d, nil
}

// setUpAccess completes the URI and the options of the ssh client with the configured credentials.
func (d *Driver) setUpAccess(u *url.URL) error {
	q := u.Query()
	switch d.access {
	case accessSSH:
		if u.User == nil && d.cfg.User != "" {
			u.User = url.User(d.cfg.User)
		}
		d.ssh = sshConfig{user: u.User.Username(), host: u.Hostname(), port: u.Port(), keyFile: q.Get("keyfile")}
		if f := d.cfg.Options[OptSSHKeyFile]; f != "" {
			d.ssh.keyFile = f
		}
		if d.cfg.SSHKey != "" {
			f, err := d.privateFile("ssh-key", []byte(strings.TrimRight(d.cfg.SSHKey, "\n")+"\n"))
			if err != nil {
				return err
			}
			d.ssh.keyFile = f
		}
		d.ssh.noVerify = q.Get("no_verify") == "1"
		if d.ssh.keyFile != "" {
			q.Set("keyfile", d.ssh.keyFile)
		}
		q.Set("no_tty", "1")
	case accessTLS:
		if d.pkiPath = d.option(OptPKIPath, q.Get("pkipath")); d.pkiPath != "" {
			q.Set("pkipath", d.pkiPath)
		}
	}
	u.RawQuery = q.Encode()
	return nil
}

// parameters are those of libvirt's URIs that may be given. Others could make libvirt run any program on the
// appliance (command, netcat) or trust any server.
var parameters = map[access][]string{
	accessLocal: {"socket"},
	accessSSH:   {"keyfile", "no_verify"},
	accessTLS:   {"pkipath"},
}

func badURI(uri, why string) error {
	return fault.New(fault.Invalid, "configure connection", hypervisors.ShownAddress(uri), "%s", why).
		Explain("This is not an address of a KVM host.", "Use qemu:///system, qemu+ssh://user@host/system or qemu+tls://host/system.")
}

// privateFile writes data to a file only this user can read, in a directory that Close removes.
func (d *Driver) privateFile(name string, data []byte) (string, error) {
	dir, err := d.tempDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", fault.Context("write", path, err)
	}
	return path, nil
}

func (d *Driver) tempDir() (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tmp == "" {
		dir, err := os.MkdirTemp("", marker+"kvm-")
		if err != nil {
			return "", fault.Context("make directory", os.TempDir(), err)
		}
		d.tmp = dir
	}
	return d.tmp, nil
}

// Close ends the connection.
func (d *Driver) Close() error {
	err := d.conn.close()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.tmp != "" {
		_ = os.RemoveAll(d.tmp)
		d.tmp = ""
	}
	return err
}

// Capabilities says what the driver can do.
func (d *Driver) Capabilities() hypervisors.Capabilities {
	transports := []hypervisors.Transport{hypervisors.TransportNBD}
	if d.access != accessTLS {
		transports = append(transports, hypervisors.TransportHotadd)
	}
	return hypervisors.Capabilities{
		Platform: hypervisors.KVM, Backup: true, ChangeTracking: true, Quiesce: true, StoppedBackup: true,
		Restore: true, RestoreInPlace: true, RestoreInto: true, Power: true, DeployMover: true, Watch: true,
		Transports: transports,
		Formats:    []hypervisors.DiskFormat{hypervisors.Raw, hypervisors.QCOW2},
	}
}

// Check looks whether the connection can do its work.
func (d *Driver) Check(ctx context.Context) (hypervisors.Health, error) {
	return call(ctx, d.conn, "check connection", d.cfg.URI, func(lv *libvirt.Connect) (hypervisors.Health, error) {
		var h hypervisors.Health
		lib, err := lv.GetLibVersion()
		if err != nil {
			return h, err
		}
		hv, err := lv.GetVersion()
		if err != nil {
			return h, err
		}
		h.Product = fmt.Sprintf("libvirt %s, QEMU %s", version(lib), version(hv))
		if h.Host, err = lv.GetHostname(); err != nil {
			return h, err
		}
		if h.HostID, err = hostID(lv); err != nil {
			return h, err
		}
		doms, err := lv.ListAllDomains(0)
		if err != nil {
			return h, err
		}
		for i := range doms {
			switch name, err := doms[i].GetName(); {
			case err != nil:
			case !strings.HasPrefix(name, marker):
				h.VMs++
			default:
				if x, err := domainXML(&doms[i], 0); err == nil && isMover(x) {
					h.Movers++
				}
			}
			_ = doms[i].Free()
		}
		h.Problems = d.problems(lv, lib, hv)
		return h, nil
	})
}

func (d *Driver) problems(lv *libvirt.Connect, lib, hv uint32) []string {
	var p []string
	if lib < 7_006_000 {
		p = append(p, fmt.Sprintf("libvirt %s is too old: backups of running VMs need 7.6 or newer.", version(lib)))
	}
	if hv < 5_002_000 {
		p = append(p, fmt.Sprintf("QEMU %s is too old: backups of running VMs need 5.2 or newer.", version(hv)))
	}
	pools, err := lv.ListAllStoragePools(libvirt.CONNECT_LIST_STORAGE_POOLS_ACTIVE)
	switch {
	case err != nil:
		p = append(p, "The storage pools cannot be listed: "+err.Error()+".")
	case len(pools) == 0:
		p = append(p, "No storage pool is active: VMs can be backed up, but not restored here.")
	}
	for i := range pools {
		_ = pools[i].Free()
	}
	if d.access == accessLocal {
		if dir := d.socketDir(); !isDir(dir) {
			p = append(p, fmt.Sprintf("The directory %s, in which QEMU makes its sockets, does not exist here. Set the option %s.", dir, OptSocketDir))
		}
		if os.Geteuid() != 0 {
			p = append(p, "The appliance does not run as root: it may be unable to open QEMU's sockets.")
		}
	}
	return p
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

func version(v uint32) string { return fmt.Sprintf("%d.%d.%d", v/1_000_000, v/1000%1000, v%1000) }

// socketDir is by default one that libvirt makes and gives to the user QEMU runs as, on every distribution.
func (d *Driver) socketDir() string { return d.option(OptSocketDir, "/var/lib/libvirt/qemu") }

// nvramDir is where libvirt itself puts UEFI variables.
func (d *Driver) nvramDir() string { return d.option(OptNVRAMDir, "/var/lib/libvirt/qemu/nvram") }

func (d *Driver) socketPath(tag string) string {
	return filepath.Join(d.socketDir(), marker+tag+".sock")
}

var goodTag = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

func checkTag(tag string) error {
	if !goodTag.MatchString(tag) {
		return fault.New(fault.Invalid, "check tag", tag, "it is not 1 to 64 letters, digits, '-' and '_'")
	}
	return nil
}

// making runs a call that makes something for a tag. When ctx ends first, the call runs on, and clean-ups for that
// tag wait for it.
func making[T any](ctx context.Context, d *Driver, tag, op, subject string, fn func(*libvirt.Connect) (T, error)) (T, error) {
	d.mu.Lock()
	wg := d.creating[tag]
	if wg == nil {
		wg = &sync.WaitGroup{}
		d.creating[tag] = wg
	}
	wg.Add(1)
	d.underWay[tag]++
	d.mu.Unlock()
	return callThen(ctx, d.conn, op, subject, fn, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.underWay[tag]--; d.underWay[tag] == 0 {
			delete(d.underWay, tag)
			delete(d.creating, tag)
		}
		wg.Done()
	})
}

// waitMade waits until no call is under way that makes something of this name, or for the tag in it.
func (d *Driver) waitMade(ctx context.Context, name string) error {
	var wgs []*sync.WaitGroup
	d.mu.Lock()
	for tag, wg := range d.creating {
		if strings.HasPrefix(name, marker+tag) {
			wgs = append(wgs, wg)
		}
	}
	d.mu.Unlock()
	done := make(chan none)
	go func() {
		for _, wg := range wgs {
			wg.Wait()
		}
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fault.Wrap(fault.KindOf(ctx.Err()), "wait for calls that make", name, ctx.Err())
	}
}

// poll calls done until it says true or an error, at most for limit.
func poll(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for wait := 20 * time.Millisecond; ; wait = min(wait*3/2, 500*time.Millisecond) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fault.New(fault.Transient, "wait until", what, "it did not happen within %s", limit)
		}
	}
}
