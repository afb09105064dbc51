package guest

import (
	"bytes"
	"log/slog"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/cairn-backup/cairn/internal/boundary"
	"github.com/cairn-backup/cairn/internal/fault"
)

var comparePrefix = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})}

const print64 = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

func TestParseCmdline(t *testing.T) {
	for _, tt := range []struct {
		name, line string
		want       Config
		ok         bool
		err        string
	}{
		{name: "nothing of ours", line: "console=ttyS0 quiet"},
		{name: "all", ok: true,
			line: "quiet cairn.manager=[2001:db8::1]:8441 cairn.fingerprint=SHA256:" + strings.ToUpper(print64) +
				" cairn.token=T0k cairn.name=m-1 cairn.mac=52-54-00-12-34-56 cairn.address=192.0.2.9/24 cairn.gateway=192.0.2.1 cairn.dns=192.0.2.2,2001:db8::2 cairn.ntp=ntp.example cairn.mtu=9000\n",
			want: Config{Manager: "[2001:db8::1]:8441", Fingerprint: print64, Token: "T0k", Name: "m-1", Network: Network{
				MAC: "52:54:00:12:34:56", Address: netip.MustParsePrefix("192.0.2.9/24"), Gateway: netip.MustParseAddr("192.0.2.1"),
				DNS: []netip.Addr{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("2001:db8::2")}, NTP: []string{"ntp.example"}, MTU: 9000,
			}}},
		{name: "misspelt", line: "cairn.manger=a:1", ok: true, err: "cairn.manger is not known"},
		{name: "no port", line: "cairn.manager=host", ok: true, err: "manager: "},
		{name: "short fingerprint", line: "cairn.fingerprint=0011", ok: true, err: "64 hexadecimal digits"},
		{name: "name that is none", line: "cairn.name=-x", ok: true, err: "host name"},
		{name: "gateway without address", line: "cairn.gateway=192.0.2.1", ok: true, err: "needs an address"},
		{name: "repositories", line: "cairn.repositories=/srv/a,/srv/b", ok: true, want: Config{Repositories: []string{"/srv/a", "/srv/b"}}},
		{name: "storage", line: "cairn.storage=nfs://nas/export,nfs://[2001:db8::1]:2049/b", ok: true, want: Config{Storage: []string{"nfs://nas/export", "nfs://[2001:db8::1]:2049/b"}}},
		{name: "sessions", line: "cairn.sessions=iscsi://192.0.2.5/iqn.2020-01.org.example:lun1,nvme+tcp://[2001:db8::5]:4421/nqn.2020-01.org.example:s", ok: true,
			want: Config{Sessions: []string{"iscsi://192.0.2.5/iqn.2020-01.org.example:lun1", "nvme+tcp://[2001:db8::5]:4421/nqn.2020-01.org.example:s"}}},
		{name: "session of another kind", line: "cairn.sessions=fc://h/naa.5", ok: true, err: "not of the form"},
		{name: "session without a target", line: "cairn.sessions=iscsi://h", ok: true, err: "no name of a target"},
		{name: "session with a path for a target", line: "cairn.sessions=iscsi://h/iqn.a/../b", ok: true, err: "no name of a target"},
		{name: "session with a port that is none", line: "cairn.sessions=iscsi://h:0/iqn.a", ok: true, err: "no port"},
		{name: "session with a secret where all can read it", line: "cairn.sessions=iscsi://u:s@h/iqn.a", ok: true, err: "every process"},
		{name: "storage of another kind", line: "cairn.storage=smb://nas/export", ok: true, err: "not of the form"},
		{name: "storage with options", line: "cairn.storage=nfs://nas/export?rw", ok: true, err: "not of the form"},
		{name: "storage that leaves its path", line: "cairn.storage=nfs://nas/a/../b", ok: true, err: "shortest form"},
		{name: "storage without a path", line: "cairn.storage=nfs://nas", ok: true, err: "absolute path"},
		{name: "storage whose path mount cannot take", line: "cairn.storage=nfs://nas/a%20b", ok: true, err: "spaces"},
		{name: "repository without a path", line: "cairn.repositories=a", ok: true, err: "no absolute path"},
		{name: "mtu", line: "cairn.mtu=100", ok: true, err: "between 576"},
		{name: "name server", line: "cairn.dns=nobody", ok: true, err: "network: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, ok, err := ParseCmdline(tt.line)
			if ok != tt.ok || err == nil && tt.err != "" {
				t.Errorf("ok is %v, want %v; err is %v", ok, tt.ok, err)
			}
			if err != nil {
				if tt.err == "" || !strings.Contains(err.Error(), tt.err) || fault.KindOf(err) != fault.Invalid {
					t.Errorf("got error %v, want one with %q", err, tt.err)
				}
				return
			}
			if diff := cmp.Diff(got, tt.want, comparePrefix); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestParseDocument(t *testing.T) {
	full := "#cloud-config\nhostname: other\ncairn:\n  manager: 192.0.2.1:8441\n  token: T0k\n  repositories: [/srv/a/, /srv/b]\n  storage: [nfs://nas/x]\n  network:\n    address: 192.0.2.9/24\n    dns: [192.0.2.2]\n    mtu: 1400\n"
	want := Config{Manager: "192.0.2.1:8441", Token: "T0k", Repositories: []string{"/srv/a", "/srv/b"}, Storage: []string{"nfs://nas/x"}, Network: Network{
		Address: netip.MustParsePrefix("192.0.2.9/24"), DNS: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, MTU: 1400}}
	got, err := ParseDocument([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, want, comparePrefix); diff != "" {
		t.Error(diff)
	}
	again, err := got.Document()
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParseDocument(again); err != nil || cmp.Diff(back, want, comparePrefix) != "" {
		t.Errorf("written and read again: %+v, %v", back, err)
	}
	for _, tt := range []struct{ name, text, err string }{
		{"another machine's script", "#!/bin/sh\necho {", errNotOurs.Error()},
		{"another machine's cloud-config", "#cloud-config\nusers: []\n", errNotOurs.Error()},
		{"unknown key", "cairn:\n  managr: a:1\n", "managr"},
		{"not YAML", "cairn:\n\t- {", "yaml"},
		{"not a map", "cairn: 5\n", "cannot unmarshal"},
		{"too large", "cairn:\n" + strings.Repeat("#\n", maxDocument), "larger"},
	} {
		if _, err := ParseDocument([]byte(tt.text)); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: got error %v, want one with %q", tt.name, err, tt.err)
		}
	}
}

func TestStorage(t *testing.T) {
	c := Config{Repositories: []string{"/srv/a"}, Storage: []string{"nfs://nas/export", "nfs://[2001:db8::1]:1234/b"}}
	const options = "softerr,timeo=300,retrans=3,noatime,nosuid,nodev,noexec"
	want := "/srv/storage/1 nas:/export " + options + "\n/srv/storage/2 [2001:db8::1]:/b " + options + ",port=1234\n"
	if diff := cmp.Diff(c.mountTable(), want); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(c.Directories(), []string{"/srv/a", "/srv/storage/1", "/srv/storage/2"}); diff != "" {
		t.Error(diff)
	}
}

func TestSessions(t *testing.T) {
	c, err := ParseDocument([]byte("cairn:\n  name: m1\n  sessions: [\"iscsi://192.0.2.5/iqn.2020-01.org.example:lun1\", \"iscsi://mover:S3cret%2F12345@[2001:db8::5]:3261/iqn.2020-01.org.example:lun2\", nvme+tcp://san/nqn.2020-01.org.example:s]\n"))
	if err != nil {
		t.Fatal(err)
	}
	want := "iscsi 192.0.2.5 3260 iqn.2020-01.org.example:lun1 - -\niscsi [2001:db8::5] 3261 iqn.2020-01.org.example:lun2 mover S3cret/12345\nnvme+tcp san 4420 nqn.2020-01.org.example:s - -\n"
	if diff := cmp.Diff(c.sessionTable(), want); diff != "" {
		t.Error(diff)
	}
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "config", c)
	if strings.Contains(out.String(), "S3cret") || !strings.Contains(out.String(), "mover:[redacted]@[2001:db8::5]:3261") {
		t.Errorf("the log says %s", out.String())
	}
	for _, bad := range []string{"iscsi://u:S3cret@h/iqn.a b", "iscsi://u:S3cret@h:port/iqn.a", "nvme+tcp://u:S3cret@h/nqn.a", "iscsi://u:@h/iqn.a", "iscsi://u:S3cret%0a@h/iqn.a", "%zz://u:S3cret@h"} {
		_, err := ParseDocument([]byte("cairn: {sessions: [\"" + bad + "\"]}\n"))
		if err == nil || strings.Contains(err.Error(), "S3cret") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func TestLogHidesToken(t *testing.T) {
	var out bytes.Buffer
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "config", Config{Token: "S3cret", Name: "m1"})
	if strings.Contains(out.String(), "S3cret") || !strings.Contains(out.String(), "m1") {
		t.Errorf("the log says %s", out.String())
	}
}

func TestOver(t *testing.T) {
	first := Config{Token: "new", Network: Network{MTU: 1400}, Sources: []string{"a"}}
	second := Config{Manager: "h:1", Token: "old", Network: Network{MAC: "52:54:00:12:34:56"}, Sources: []string{"b"}}
	want := Config{Manager: "h:1", Token: "new", Network: Network{MTU: 1400}, Sources: []string{"a", "b"}}
	if diff := cmp.Diff(first.over(second), want, comparePrefix); diff != "" {
		t.Error(diff)
	}
}

func TestNetworkd(t *testing.T) {
	n := Network{MAC: "52:54:00:12:34:56", Address: netip.MustParsePrefix("192.0.2.9/24"), Gateway: netip.MustParseAddr("192.0.2.1"),
		DNS: []netip.Addr{netip.MustParseAddr("192.0.2.2")}, NTP: []string{"t"}, MTU: 9000}
	want := "[Match]\nMACAddress=52:54:00:12:34:56\n\n[Link]\nMTUBytes=9000\n\n[Network]\nLLMNR=no\nMulticastDNS=no\nAddress=192.0.2.9/24\nGateway=192.0.2.1\nDNS=192.0.2.2\nNTP=t\n"
	if diff := cmp.Diff(n.networkd(), want); diff != "" {
		t.Error(diff)
	}
	if got := (Network{}).networkd(); !strings.Contains(got, "DHCP=yes") {
		t.Errorf("without an address: %s", got)
	}
}

func FuzzParseDocument(f *testing.F) {
	for p := range boundary.Text([]byte("cairn:\n  manager: a:8441\n  name: m1\n  network: {address: 192.0.2.1/24, mtu: 1400, dns: [192.0.2.2]}\n")) {
		f.Add(p)
	}
	for p := range boundary.Text([]byte("cairn:\n  sessions: [\"iscsi://u:s@h:3260/iqn.2020-01.org.example:a\", nvme+tcp://h/nqn.x]\n")) {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		cfg, err := ParseDocument(p)
		if err != nil {
			return
		}
		doc, err := cfg.Document()
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseDocument(doc)
		if err != nil {
			t.Fatalf("what was read from %q cannot be read again: %v", p, err)
		}
		if diff := cmp.Diff(again, cfg, comparePrefix, cmpopts.EquateEmpty()); diff != "" {
			t.Error(diff)
		}
	})
}
