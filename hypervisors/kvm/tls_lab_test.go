package kvm_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	nbdtransport "github.com/cairn-backup/cairn/datamover/transport/nbd"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/kvm"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/loopback"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// tlsBench is a bench whose driver reaches the host by qemu+tls.
type tlsBench struct {
	*bench
	port    int
	pki     string // the client's certificates, by libvirt's names
	qemuPKI string // the same by QEMU's and libnbd's
	first   int    // of three ports for NBD, of which only the last is free
}

func newTLSBench(t *testing.T, qemuConf ...string) *tlsBench {
	t.Helper()
	b := &tlsBench{bench: newBench(t), qemuPKI: nbdtest.Certificates(t)}
	var err error
	b.port, err = b.lab.Daemon().ListenTLS(t.Context(), b.qemuPKI, qemuConf...)
	b.ok(err)
	b.pki = b.libvirtPKI(b.qemuPKI)
	b.first = b.occupyPorts()
	b.d = b.openTLS(b.pki)
	return b
}

// libvirtPKI gives a client's certificates the names that libvirt wants.
func (b *bench) libvirtPKI(from string) string {
	b.Helper()
	dir := b.TempDir()
	for to, name := range map[string]string{"cacert.pem": "ca-cert.pem", "clientcert.pem": "client-cert.pem", "clientkey.pem": "client-key.pem"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		b.ok(err)
		b.ok(os.WriteFile(filepath.Join(dir, to), data, 0o600))
	}
	return dir
}

// occupyPorts finds three ports in a row and listens on the first two.
func (b *bench) occupyPorts() int {
	b.Helper()
	for range 100 {
		first, err := loopback.Listen()
		b.ok(err)
		port := first.Addr().(*net.TCPAddr).Port
		second, err2 := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1))
		third, err3 := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+2))
		if err3 == nil {
			b.ok(third.Close())
		}
		if err2 == nil && err3 == nil {
			b.Cleanup(func() { _, _ = first.Close(), second.Close() })
			return port
		}
		_ = first.Close()
		if err2 == nil {
			_ = second.Close()
		}
	}
	b.Fatal("no three free ports in a row")
	return 0
}

func (b *tlsBench) uri(pki string) string {
	return fmt.Sprintf("qemu+tls://localhost:%d/system?pkipath=%s", b.port, url.QueryEscape(pki))
}

func (b *tlsBench) openTLS(pki string) *kvm.Driver {
	b.Helper()
	return b.open(b.uri(pki), map[string]string{
		kvm.OptNBDPorts: fmt.Sprintf("%d-%d", b.first, b.first+2), kvm.OptTLSCertDir: b.lab.Daemon().TLSDir(),
	})
}

// paused makes a VM with a blank disk that is on and runs nothing.
func (b *tlsBench) paused(name string) *kvmlab.VM {
	b.Helper()
	vm, err := b.lab.Define(b.Context(), kvmlab.Spec{Name: name, Rate: -1, Disks: []kvmlab.Disk{{MiB: 16}}})
	b.ok(err)
	_, err = b.lab.Virsh(b.Context(), "start", "--paused", vm.Name)
	b.ok(err)
	return vm
}

// put writes to vda as the guest would, and to image.
func (b *tlsBench) put(vm *kvmlab.VM, image []byte, offset, length int, fill byte) {
	b.Helper()
	copy(image[offset:], bytes.Repeat([]byte{fill}, length))
	_, err := b.lab.Virsh(b.Context(), "qemu-monitor-command", "--hmp", vm.Name,
		fmt.Sprintf(`qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "write -P %d %d %d"`, fill, offset, length))
	b.ok(err)
}

// move brings image up to date with an export by the product's own client, and returns how much it read.
func (b *bench) move(x hypervisors.Export, image []byte) (read int64) {
	b.Helper()
	src, err := nbdtransport.OpenSource(b.Context(), x)
	b.ok(err)
	defer src.Close()
	for e, err := range src.Extents(b.Context()) {
		b.ok(err)
		part := image[e.Offset : e.Offset+e.Length]
		switch e.State {
		case hypervisors.Zero:
			clear(part)
		case hypervisors.Data:
			_, err := src.ReadAt(part, e.Offset)
			if err != io.EOF {
				b.ok(err)
			}
			read += e.Length
		}
	}
	return read
}

// nbds is the export's address for libnbd.
func (b *tlsBench) nbds(x hypervisors.Export) string {
	return fmt.Sprintf("nbds://%s/%s?tls-certificates=%s", x.Address, x.Name, b.qemuPKI)
}

// guarded fails when the export can be opened without the right certificate.
func (b *tlsBench) guarded(x hypervisors.Export) {
	b.Helper()
	stranger := b.libvirtPKI(nbdtest.Certificates(b.T))
	for name, change := range map[string]func(*hypervisors.Export){
		"in plain":              func(x *hypervisors.Export) { x.TLS = nil },
		"without a certificate": func(x *hypervisors.Export) { x.TLS.CertFile, x.TLS.KeyFile = "", "" },
		"with a certificate of another CA": func(x *hypervisors.Export) {
			x.TLS.CertFile, x.TLS.KeyFile = filepath.Join(stranger, "clientcert.pem"), filepath.Join(stranger, "clientkey.pem")
		},
	} {
		bad := x
		creds := *x.TLS
		bad.TLS = &creds
		change(&bad)
		src, err := nbdtransport.OpenSource(b.Context(), bad)
		if err == nil {
			_ = src.Close()
		}
		// QEMU hangs up on a certificate that it does not like, without a word.
		if kind := fault.KindOf(err); err == nil || kind != fault.Denied && (bad.TLS == nil || kind != fault.Transient) {
			b.Errorf("export %s: %v, want that it is refused", name, err)
		}
	}
	if out, err := b.try("nbdinfo", "nbd://"+x.Address+"/"+x.Name); err == nil || !strings.Contains(string(out), "TLS") {
		b.Errorf("nbdinfo in plain: %v: %s", err, out)
	}
}

// TestOverTLS backs up and restores as over a network where only TLS is open.
func TestOverTLS(t *testing.T) {
	b := newTLSBench(t)
	ctx := t.Context()
	vm := b.paused("tls")
	image := make([]byte, 16<<20)
	b.put(vm, image, 1<<20, 512<<10, 0xa1)
	b.put(vm, image, 9<<20, 64<<10, 0xa2)

	health, err := b.d.Check(ctx)
	b.ok(err)
	vms, err := b.d.VMs(ctx)
	b.ok(err)
	if health.VMs != 1 || len(vms) != 1 || vms[0].ID != vm.UUID || vms[0].Disks[0].SizeBytes != int64(len(image)) {
		t.Fatalf("inventory over TLS: %+v, %+v", health, vms)
	}

	f := b.freeze(vm.UUID, "")
	x := info(f, "vda").Export
	if want := fmt.Sprintf("localhost:%d", b.first+2); x.Network != "tcp" || x.TLS == nil || x.Address != want {
		t.Fatalf("export %+v, want TLS at %s, the only free port", x, want)
	}
	b.put(vm, bytes.Clone(image), 9<<20, 64<<10, 0xee) // after the freeze, not in it
	got := make([]byte, len(image))
	b.move(x, got)
	b.same(got, image, "vda")
	b.same(b.readNBDS(x), image, "vda by nbdcopy")
	b.guarded(x)
	b.ok(f.Release(ctx))
	b.closed(x)
	b.clean("checkpoint")

	b.put(vm, image, 9<<20, 64<<10, 0xa3)
	b.put(vm, image, 12<<20, 128<<10, 0xa4)
	g := b.freeze(vm.UUID, f.Info().Checkpoint)
	x = info(g, "vda").Export
	if n := b.move(x, got); n == 0 || n > 1<<20 {
		t.Errorf("the incremental read %d bytes, want a little", n)
	}
	b.same(got, image, "vda by its changes")
	b.same(b.readNBDS(x), image, "vda by nbdcopy, incremental")
	b.ok(g.Release(ctx))
	b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))
	b.clean()

	b.ok(vm.Stop(ctx))
	off := b.freeze(vm.UUID, "")
	x = info(off, "vda").Export
	clear(got)
	b.move(x, got)
	b.same(got, image, "vda of the stopped VM")
	b.guarded(x)
	b.ok(off.Release(ctx))
	b.closed(x)
	b.restoreOverTLS(restorable{vm: vm, info: off.Info(), image: image})
	b.clean()
	if files, _ := filepath.Glob(b.sockets + "/*"); len(files) > 0 {
		t.Errorf("sockets were made: %v", files)
	}
}

func (b *tlsBench) readNBDS(x hypervisors.Export) []byte {
	b.Helper()
	file := filepath.Join(b.TempDir(), "copy")
	b.tool("nbdcopy", b.nbds(x), file)
	data, err := os.ReadFile(file)
	b.ok(err)
	return data
}

// closed fails when something still listens at the address of an export.
func (b *tlsBench) closed(x hypervisors.Export) {
	b.Helper()
	if c, err := net.Dial("tcp", x.Address); err == nil {
		_ = c.Close()
		b.Errorf("%s is open after the release", x.Address)
	}
}

// restoreOverTLS restores a VM as a new one and compares.
func (b *tlsBench) restoreOverTLS(s restorable) {
	b.Helper()
	ctx := b.Context()
	r, err := b.d.BeginRestore(ctx, b.restoreRequest(s, "restored-over-tls"))
	b.ok(err)
	x := r.Disks()[0].Export
	b.guarded(x)
	dst, err := nbdtransport.OpenTarget(ctx, x)
	b.ok(err)
	for off := 0; off < len(s.image); off += 1 << 20 {
		_, err := dst.WriteAt(s.image[off:off+1<<20], int64(off))
		b.ok(err)
	}
	b.ok(dst.Flush(ctx))
	b.ok(dst.Close())
	b.same(b.readNBDS(x), s.image, "the target by nbdcopy")
	vm, err := r.Finish(ctx)
	b.ok(err)
	b.closed(x)
	file := filepath.Join(b.TempDir(), "restored")
	b.tool("qemu-img", "convert", "-O", "raw", vm.Disks[0].Path, file)
	data, err := os.ReadFile(file)
	b.ok(err)
	b.same(data, s.image, "the restored disk")
	found, err := b.lab.Find(ctx, vm.ID)
	b.ok(err)
	b.ok(found.Remove(ctx))
}

// TestTLSMisconfigured looks that a host which would serve anybody is not used, nor one that cannot serve.
func TestTLSMisconfigured(t *testing.T) {
	b := newTLSBench(t, "backup_tls_x509_verify = 0")
	vm := b.paused("open")
	_, err := b.d.Freeze(t.Context(), b.request(vm.UUID, ""))
	if meaning, advice := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || !strings.Contains(advice, "backup_tls_x509_verify") {
		t.Errorf("freeze: %v (%v) %s %s, want a conflict", err, fault.KindOf(err), meaning, advice)
	}
	b.clean()

	b.ok(vm.Stop(t.Context()))
	d := b.open(b.uri(b.pki), map[string]string{kvm.OptTLSCertDir: t.TempDir()})
	_, err = d.Freeze(t.Context(), b.request(vm.UUID, ""))
	if _, advice := fault.Explanation(err); fault.KindOf(err) != fault.Conflict || !strings.Contains(advice, "server-cert.pem") {
		t.Errorf("freeze without a certificate on the host: %v (%v) %s, want a conflict", err, fault.KindOf(err), advice)
	}
	one := fmt.Sprint(b.first) // it is in use
	d = b.open(b.uri(b.pki), map[string]string{kvm.OptNBDPorts: one, kvm.OptTLSCertDir: b.lab.Daemon().TLSDir()})
	_, err = d.Freeze(t.Context(), b.request(vm.UUID, ""))
	if _, advice := fault.Explanation(err); fault.KindOf(err) != fault.Transient || !strings.Contains(advice, kvm.OptNBDPorts) {
		t.Errorf("freeze without a free port: %v (%v) %s, want that it is transient", err, fault.KindOf(err), advice)
	}
	b.clean()
}

// TestRefusedCredentials looks that wrong credentials are denied, at once and in words.
func TestRefusedCredentials(t *testing.T) {
	b := newTLSBench(t)
	port, _ := b.startSSHD()
	b.tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(b.sockets, "other"))
	b.tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", filepath.Join(b.sockets, "locked"))
	other := nbdtest.Certificates(t)
	noCert, mixed, noCA := b.libvirtPKI(b.qemuPKI), b.libvirtPKI(other), b.libvirtPKI(b.qemuPKI)
	b.ok(os.Remove(filepath.Join(noCert, "clientcert.pem")))
	b.ok(os.Remove(filepath.Join(noCert, "clientkey.pem")))
	b.ok(os.Remove(filepath.Join(noCA, "cacert.pem")))
	ca, err := os.ReadFile(filepath.Join(b.pki, "cacert.pem"))
	b.ok(err)
	b.ok(os.WriteFile(filepath.Join(mixed, "cacert.pem"), ca, 0o600))
	both := b.libvirtPKI(other)
	otherCA, err := os.ReadFile(filepath.Join(both, "cacert.pem"))
	b.ok(err)
	b.ok(os.WriteFile(filepath.Join(both, "cacert.pem"), append(bytes.Clone(ca), otherCA...), 0o600))

	ssh := fmt.Sprintf("qemu+ssh://root@127.0.0.1:%d/system?no_verify=1", port)
	tests := []struct {
		name, uri, keyFile string
		advice             string
		kind               fault.Kind
	}{
		// First: with no_verify, ssh learns the host's key.
		{"ssh host that is not known", strings.Replace(ssh, "?no_verify=1", "", 1), filepath.Join(b.sockets, "other"), "known_hosts", fault.Denied},
		{"ssh key that is not authorised", ssh, filepath.Join(b.sockets, "other"), "key", fault.Denied},
		{"ssh key with a passphrase", ssh, filepath.Join(b.sockets, "locked"), "key", fault.Denied},
		{"ssh user that does not exist", strings.Replace(ssh, "root@", "nobody-of-that-name@", 1), filepath.Join(b.sockets, "other"), "user", fault.Denied},
		{"certificate that does not fit its CA", b.uri(mixed), "", "clientcert.pem", fault.Denied},
		{"certificate of another CA", b.uri(both), "", "CA of the host", fault.Denied},
		{"no certificate", b.uri(noCert), "", "clientcert.pem", fault.Denied},
		{"host of another CA", b.uri(b.libvirtPKI(other)), "", "cacert.pem", fault.Denied},
		{"no CA", b.uri(noCA), "", "cacert.pem", fault.Invalid},
		{"right certificate", b.uri(b.pki), "", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := b.in(t)
			o := map[string]string{}
			if tt.keyFile != "" {
				o[kvm.OptSSHKeyFile] = tt.keyFile
			}
			begin := time.Now()
			_, err := b.open(tt.uri, o).Check(t.Context())
			meaning, advice := fault.Explanation(err)
			t.Logf("%s: %v: %s %s", time.Since(begin).Round(time.Millisecond), err, meaning, advice)
			if err == nil && tt.kind == 0 {
				return
			}
			if err == nil || fault.KindOf(err) != tt.kind || meaning == "" || !strings.Contains(advice, tt.advice) {
				t.Errorf("%v (%v) %q %q, want %v with advice on %q", err, fault.KindOf(err), meaning, advice, tt.kind, tt.advice)
			}
		})
	}
}
