package system

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// sessionsOf runs the script of the Debian mover with programs that write down what they are told, and returns what it says, what
// the programs were told, and the directory that stands for the machine's root.
func sessionsOf(t *testing.T, table, programs string) (said, told, root string, err error) {
	t.Helper()
	root = t.TempDir()
	put := func(name, text string) {
		t.Helper()
		name = filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put("run/cairn-mover/sessions", table)
	put("proc/sys/kernel/hostname", "m1\n")
	put("etc/iscsi/.none", "")
	put("etc/nvme/.none", "")
	for _, name := range []string{"modprobe", "nvme", "udevadm", "systemctl", "iscsiadm"} {
		put("bin/"+name, "#!/bin/sh\nROOT="+root+"\nNAME="+name+"\necho "+name+" \"$*\" >>$ROOT/told\n"+programs)
	}
	p, err := files.ReadFile("files/mover/usr/lib/cairn/sessions")
	if err != nil {
		t.Fatal(err)
	}
	replace := []string{}
	for _, dir := range []string{"/run/cairn-mover", "/etc/iscsi", "/etc/nvme", "/proc/sys", "/sys/class"} {
		replace = append(replace, dir, root+dir)
	}
	put("script", strings.NewReplacer(replace...).Replace(string(p)))
	cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(root, "script"))
	cmd.Env = []string{"PATH=" + filepath.Join(root, "bin") + ":/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	words, _ := os.ReadFile(filepath.Join(root, "told")) // none is no file
	return string(out), string(words), root, err
}

// records is what iscsiadm does with records of targets.
const records = `case "$NAME $*" in
"iscsiadm -m node -o new "*) mkdir -p "$ROOT/etc/iscsi/nodes/$6" && printf '# BEGIN\nnode.startup = manual\nnode.session.auth.authmethod = None\n# END\n' >"$ROOT/etc/iscsi/nodes/$6/$8" ;;
"nvme gen-hostnqn") echo nqn.2014-08.org.nvmexpress:uuid:1 ;;
"iscsiadm "*" --login") exit $LOGIN ;;
esac
`

func TestSessions(t *testing.T) {
	const table = "iscsi 192.0.2.5 3260 iqn.2020-01.org.example:a - -\niscsi [2001:db8::5] 3261 iqn.2020-01.org.example:b mover S3cr%t/\\1\nnvme+tcp 192.0.2.6 4420 nqn.2020-01.org.example:c - -\n"
	said, told, root, err := sessionsOf(t, table, "LOGIN=15\n"+records)
	if err != nil {
		t.Fatalf("%v: %s", err, said)
	}
	for _, want := range []string{
		"this machine is iqn.2005-03.org.open-iscsi:m1 and nqn.2014-08.org.nvmexpress:uuid:1", "there is one with iqn.2020-01.org.example:a at 192.0.2.5:3260",
		"there is one with iqn.2020-01.org.example:b at [2001:db8::5]:3261", "there is one with nqn.2020-01.org.example:c at 192.0.2.6:4420",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	for _, want := range []string{
		"systemctl start iscsid.service", "iscsiadm -m node -T iqn.2020-01.org.example:b -p [2001:db8::5]:3261 --login",
		"nvme connect --transport=tcp --traddr=192.0.2.6 --trsvcid=4420 --nqn=nqn.2020-01.org.example:c --hostnqn=nqn.2014-08.org.nvmexpress:uuid:1", "modprobe -q nvme_tcp",
	} {
		if !strings.Contains(told, want) {
			t.Errorf("no program is told %q:\n%s", want, told)
		}
	}
	if strings.Contains(said+told, "S3cr") {
		t.Errorf("the secret is shown:\n%s%s", said, told)
	}
	record := filepath.Join(root, "etc/iscsi/nodes/iqn.2020-01.org.example:b/[2001:db8::5]:3261")
	p, err := os.ReadFile(record)
	want := "# BEGIN\nnode.startup = manual\n# END\nnode.session.auth.authmethod = CHAP\nnode.session.auth.username = mover\nnode.session.auth.password = S3cr%t/\\1\n"
	if err != nil || string(p) != want {
		t.Errorf("record %q, %v, want %q", p, err, want)
	}
	if st, err := os.Stat(record); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the record with the secret: %v, %v", st, err)
	}
	plain, err := os.ReadFile(filepath.Join(root, "etc/iscsi/nodes/iqn.2020-01.org.example:a/192.0.2.5:3260"))
	if err != nil || !strings.Contains(string(plain), "authmethod = None") {
		t.Errorf("record without CHAP %q, %v", plain, err)
	}
}

// TestSessionsThatFail: one that cannot be begun makes the service start again, after the others.
func TestSessionsThatFail(t *testing.T) {
	said, told, _, err := sessionsOf(t, "iscsi h 3260 iqn.a - -\nnvme+tcp h 4420 nqn.b - -\n", "[ $NAME = iscsiadm ] && echo no route >&2\nLOGIN=8\n"+records)
	if err == nil || !strings.Contains(said, "there is none with iqn.a at h:3260, and it is tried again") || !strings.Contains(said, "no route") ||
		!strings.Contains(said, "there is one with nqn.b at h:4420") || !strings.Contains(told, "nvme connect") {
		t.Errorf("%v:\n%s\n%s", err, said, told)
	}
	if said, told, _, err := sessionsOf(t, "", "exit 1\n"); err != nil || said+told != "" {
		t.Errorf("no sessions at all: %v, %q, %q", err, said, told)
	}
}
