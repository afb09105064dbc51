package kvm_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/kvm"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/internal/loopback"
	"github.com/cairn-backup/cairn/lab/kvmlab"
)

// startSSHD runs an sshd of the test's own on a loopback port and returns the port and the client's key.
func (b *bench) startSSHD() (port int, key string) {
	b.Helper()
	dir := b.TempDir()
	b.ok(os.MkdirAll("/run/sshd", 0o755))
	for _, name := range []string{"host", "client"} {
		b.tool("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
	}
	port, err := loopback.Port()
	b.ok(err)
	conf := fmt.Sprintf("Port %d\nListenAddress 127.0.0.1\nHostKey %s/host\nAuthorizedKeysFile %s/client.pub\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\n", port, dir, dir)
	b.ok(os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600))
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(dir, "conf"))
	b.ok(cmd.Start())
	b.Cleanup(func() {
		_, _ = b.try("ssh-keygen", "-R", fmt.Sprintf("[127.0.0.1]:%d", port)) // libvirt's ssh knows it now
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	for range 1200 { // a minute
		if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = c.Close()
			return port, filepath.Join(dir, "client")
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.Fatal("sshd does not listen")
	return 0, ""
}

// TestOverSSH backs up and restores as over the network: by ssh to this machine.
func TestOverSSH(t *testing.T) {
	// The machine's own libvirtd: to reach another socket, libvirt needs netcat. Others use it, too, so that this test
	// looks at its own things only.
	b := benchIn(t, kvmlab.New(t, kvmlab.Options{}))
	ctx := t.Context()
	vm := b.run("ssh", kvmlab.Disk{MiB: 16})
	port, key := b.startSSHD()
	remote := fmt.Sprintf("qemu+ssh://root@127.0.0.1:%d/system?no_verify=1", port)
	pem, err := os.ReadFile(key)
	b.ok(err)
	config := kvm.Config{URI: remote, SSHKey: string(pem), Options: map[string]string{kvm.OptSocketDir: b.sockets, kvm.OptNVRAMDir: b.lab.Dir()}}
	d, err := kvm.Open(ctx, config)
	b.ok(err)
	defer d.Close()
	b.d = d

	f := b.freeze(vm.UUID, "")
	x := info(f, "vda").Export
	if x.Network != "unix" || strings.HasPrefix(x.Address, b.sockets) {
		t.Errorf("export %+v, want a forwarded socket", x)
	}
	image := b.read(x)
	b.same(image, b.content(vm, "vda"), "vda over ssh")
	b.ok(f.Release(ctx))
	if out, err := b.try("nbdinfo", uri(x)); err == nil {
		t.Errorf("the forward is open after the release: %s", out)
	}
	if left, _ := filepath.Glob(b.sockets + "/*"); len(left) > 0 {
		t.Errorf("left on the host: %v", left)
	}
	b.write(vm)
	g := b.freeze(vm.UUID, f.Info().Checkpoint)
	b.apply(image, info(g, "vda").Export)
	b.same(image, b.content(vm, "vda"), "vda by its changes over ssh")
	b.takeUpOverSSH(config, g, image)

	s := restorable{vm: vm, info: g.Info(), image: image}
	got := b.restore(b.restoreRequest(s, "restored-over-ssh"), image)
	found, err := b.lab.Find(ctx, got.ID)
	b.ok(err)
	b.same(b.content(found, "vda"), image, "the restored vda")
	b.ok(found.Remove(ctx))
	b.ok(b.d.KeepCheckpoint(ctx, vm.UUID, ""))
	left, err := b.d.Leftovers(ctx)
	b.ok(err)
	for _, o := range left {
		if o.VM == vm.UUID {
			t.Errorf("left: %+v", o)
		}
	}

	wrong, err := kvm.Open(ctx, kvm.Config{URI: remote, Options: map[string]string{kvm.OptSSHKeyFile: filepath.Join(t.TempDir(), "none")}})
	b.ok(err)
	defer wrong.Close()
	if _, err := wrong.Check(ctx); fault.KindOf(err) != fault.Denied {
		t.Errorf("without a key: %v (%v), want denied", err, fault.KindOf(err))
	}
}

// takeUpOverSSH goes on with a freeze as a manager does that was started again: the first one's connection and its forward
// are gone. It ends the freeze.
func (b *bench) takeUpOverSSH(config kvm.Config, g hypervisors.Frozen, want []byte) {
	b.Helper()
	second, err := kvm.Open(b.Context(), config)
	b.ok(err)
	defer second.Close()
	b.book.mu.Lock()
	standing := hypervisors.Standing{Tag: fmt.Sprintf("t%d", b.book.n), Info: g.Info(), Owed: slices.Clone(b.book.owed)}
	b.book.mu.Unlock()
	h, err := second.Refreeze(b.Context(), standing)
	b.ok(err)
	x := info(h, "vda").Export
	if before := info(g, "vda").Export; x.Address == before.Address {
		b.Errorf("the freeze that was taken up has the first one's forward, %s", x.Address)
	}
	b.same(b.read(x), want, "vda of a freeze taken up over ssh")
	b.ok(h.Release(b.Context()))
}
