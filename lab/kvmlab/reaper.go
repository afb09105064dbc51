package kvmlab

import (
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// reaper runs a daemon and then waits for it and for all that it leaves behind. libvirt daemonizes its QEMUs and
// takes them for alive until somebody has fetched their exit status; in a container process 1 may do so late or
// never, and every start and end of a VM would run into libvirt's timeouts of half a minute. As a process between
// process 1 and the daemon, one for each that is started, it goes on fetching the VMs' when the daemon was killed,
// and ends with the last of them. It is Perl because Debian always has that, where Go would need a program on disk.
const reaper = `
my ($prctl, $note, @daemon) = @ARGV;
syscall(0 + $prctl, 36, 1, 0, 0, 0) == 0 or die "PR_SET_CHILD_SUBREAPER: $!\n";
my $pid = fork // die "fork: $!\n";
if (!$pid) {
	open my $f, '>', $note or die "$note: $!\n";
	print $f $$;
	close $f or die "$note: $!\n";
	exec { $daemon[0] } @daemon or die "$daemon[0]: $!\n";
}
$0 = "cairn-lab-reaper $note";
1 while wait != -1;
`

// reaped returns the command that runs another one below a reaper, which writes the pid of that one to a file.
func reaped(note string, argv []string) []string {
	return append([]string{"/usr/bin/perl", "-e", reaper, strconv.Itoa(syscall.SYS_PRCTL), note}, argv...)
}

// shareKVM gives /dev/kvm to the group kvm, as Debian's udev rule does, if nobody but root can use it. Where no udev
// runs it may have been left that way; libvirt, which then finds KVM as root and misses it as QEMU's user, probes
// QEMU anew at every start of a VM.
func shareKVM() error {
	info, err := os.Stat("/dev/kvm")
	if err != nil || info.Mode()&os.ModeCharDevice == 0 || groupCanUse(info) {
		return nil
	}
	group, err := user.LookupGroup("kvm")
	if err != nil {
		return nil // QEMU is installed in another way than Debian's
	}
	gid, err := strconv.Atoi(group.Gid)
	if err != nil {
		return err
	}
	if err := os.Chown("/dev/kvm", -1, gid); err != nil {
		return err
	}
	return os.Chmod("/dev/kvm", 0o660)
}

// groupCanUse says whether others than root may use a device.
func groupCanUse(info os.FileInfo) bool {
	perm := info.Mode().Perm()
	return perm&0o060 == 0o060 || perm&0o006 == 0o006
}
