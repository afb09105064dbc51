package output

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/internal/fault"
)

type disk struct {
	Name  string `json:"name"`
	Bytes int64  `json:"size_bytes"`
	State string `json:"state"`
	Path  string `json:"path,omitempty"`
}

var disks = []disk{
	{"vda", 10 << 30, "succeeded", "/var/lib/a.qcow2"},
	{"vdb", 1536, "", ""},
	{"été\x1b[31m", 1<<62 + 1, "failed", "x"},
}

var columns = []Column[disk]{
	{Header: "DISK", Value: func(d disk) string { return d.Name }},
	{Header: "SIZE", Right: true, Value: func(d disk) string { return Size(d.Bytes) }},
	{Header: "PATH", Wide: true, Value: func(d disk) string { return d.Path }},
	{Header: "STATE", State: true, Value: func(d disk) string { return d.State }},
}

func TestList(t *testing.T) {
	tests := []struct {
		name   string
		format Format
		items  []disk
		colour bool
		want   string
	}{
		{"table", Table, disks, false, `
DISK          SIZE   STATE
vda         10 GiB   succeeded
vdb        1.5 KiB   -
été�[31m     4 EiB   failed
`},
		{"wide", Wide, disks[:1], false, `
DISK     SIZE   PATH               STATE
vda    10 GiB   /var/lib/a.qcow2   succeeded
`},
		{"colour", Table, disks[:1], true, "\n" +
			"\x1b[1mDISK\x1b[0m     \x1b[1mSIZE\x1b[0m   \x1b[1mSTATE\x1b[0m\n" +
			"vda    10 GiB   \x1b[32msucceeded\x1b[0m\n"},
		{"nothing", Table, nil, false, "\nNo disks.\n"},
		{"nothing in json", JSON, nil, false, "\n[]\n"},
		{"name", Name, disks[:2], false, "\nvda\nvdb\n"},
		{"json keeps all digits and no colour", JSON, disks[2:], true, `
[
  {
    "name": "été\u001b[31m",
    "size_bytes": 4611686018427387905,
    "state": "failed",
    "path": "x"
  }
]
`},
		{"yaml keeps the order", YAML, disks[:2], true, `
- name: vda
  size_bytes: 10737418240
  state: succeeded
  path: /var/lib/a.qcow2
- name: vdb
  size_bytes: 1536
  state: ""
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			p := Printer{Out: &b, Format: tt.format, Colour: tt.colour}
			if err := List(p, tt.items, func(d disk) string { return d.Name }, "No disks.", columns); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(b.String(), strings.TrimPrefix(tt.want, "\n")); diff != "" {
				t.Errorf("-got +want:\n%s", diff)
			}
		})
	}
}

func TestYAMLKeepsStringsStrings(t *testing.T) {
	var b bytes.Buffer
	v := map[string]string{"a": "yes", "b": "123", "c": "null", "d": "2026-11-21T00:00:00Z", "e": "two\nlines", "f": "12:30:00"}
	if err := (Printer{Out: &b, Format: YAML}).Value(v, nil); err != nil {
		t.Fatal(err)
	}
	want := "a: \"yes\"\nb: \"123\"\nc: \"null\"\nd: \"2026-11-21T00:00:00Z\"\ne: |-\n  two\n  lines\nf: \"12:30:00\"\n"
	if diff := cmp.Diff(b.String(), want); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
}

func TestFieldsAndSection(t *testing.T) {
	var b bytes.Buffer
	p := Printer{Out: &b, Format: Table}
	err := p.Fields(&b, Field{Name: "Restore point", Value: "rp_1"}, Field{Name: "Notes"}, Field{Name: "Size", Value: SizeExact(2 << 20)},
		Field{Value: "and more"})
	if err != nil {
		t.Fatal(err)
	}
	if err := Section(p, &b, "Disks", disks[:1], columns); err != nil {
		t.Fatal(err)
	}
	if err := Section(p, &b, "Networks", nil, columns); err != nil {
		t.Fatal(err)
	}
	want := `Restore point:  rp_1
Size:           2 MiB (2097152 bytes)
                and more

Disks
  DISK     SIZE   STATE
  vda    10 GiB   succeeded
`
	if diff := cmp.Diff(b.String(), want); diff != "" {
		t.Errorf("-got +want:\n%s", diff)
	}
}

func TestLine(t *testing.T) {
	for format, want := range map[Format]string{
		JSON:  "{\"name\":\"vda\",\"size_bytes\":1,\"state\":\"\"}\n",
		YAML:  "---\nname: vda\nsize_bytes: 1\nstate: \"\"\n",
		Table: "human\n",
	} {
		var b bytes.Buffer
		human := func(w io.Writer) error { _, err := io.WriteString(w, "human\n"); return err }
		if err := (Printer{Out: &b, Format: format}).Line(disk{Name: "vda", Bytes: 1}, human); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%s: got %q, want %q", format, b.String(), want)
		}
	}
}

func TestParseFormat(t *testing.T) {
	for _, s := range Formats() {
		if f, err := ParseFormat(s); err != nil || string(f) != s {
			t.Errorf("ParseFormat(%q) = %q, %v", s, f, err)
		}
	}
	if _, err := ParseFormat("xml"); fault.KindOf(err) != fault.Invalid {
		t.Errorf("xml: got %v, want Invalid", err)
	}
}

func TestUnits(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	tests := []struct{ got, want string }{
		{Size(0), "0 B"},
		{Size(1023), "1023 B"},
		{Size(1024), "1 KiB"},
		{Size(1536), "1.5 KiB"},
		{Size(1<<20 - 1), "1.0 MiB"},
		{Size(150 << 20), "150 MiB"},
		{Size(99<<30 + 1<<29), "99.5 GiB"},
		{Size(1<<63 - 1), "8 EiB"},
		{Size(-2048), "-2 KiB"},
		{SizeExact(12), "12 B"},
		{Rate(3.5 * 1024), "3.5 KiB/s"},
		{Age(time.Time{}, now), "never"},
		{Age(now.Add(time.Minute), now), "0s"},
		{Age(now.Add(-119*time.Second), now), "119s"},
		{Age(now.Add(-2*time.Minute), now), "2m"},
		{Age(now.Add(-3*time.Hour), now), "3h"},
		{Age(now.Add(-49*time.Hour), now), "2d"},
		{Duration(0), "0s"},
		{Duration(900 * time.Millisecond), "<1s"},
		{Duration(1900 * time.Millisecond), "2s"},
		{Duration(200 * time.Second), "3m20s"},
		{Duration(2*time.Hour + 5*time.Minute), "2h05m"},
		{Time(time.Time{}, time.UTC), ""},
		{Time(now, time.UTC), "2026-11-21 12:00:00 UTC"},
	}
	for _, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
}

func TestParseSize(t *testing.T) {
	good := map[string]int64{
		"0": 0, "4096": 4096, "50M": 50 << 20, "50MiB": 50 << 20, "50 mb": 50 << 20, "1.5G": 3 << 29, "2t": 2 << 40, "10B": 10, "3P": 3 << 50, "1k": 1024,
	}
	for text, want := range good {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "M", "-1", "5X", "NaN", "Inf", "1e30", "5 KM", "9999P", "1,5G"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
}
