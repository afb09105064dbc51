//go:build linux

package blockdev

import (
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// CanonicalWWN brings the forms in which a LUN's world-wide name is written to one: "naa.6001…", "0x6001…",
// "wwn-0x6001…", "36001…" (udev's and multipath's, in which a 3 stands for NAA and a 2 for EUI-64), "eui.…",
// "t10.IET 0001". It returns "" for what cannot be one.
func CanonicalWWN(s string) string {
	s = strings.ToLower(strings.TrimSpace(s))
	for _, prefix := range []string{"dm-uuid-", "mpath-", "scsi-", "wwn-", "0x", "naa.", "eui."} {
		s = strings.TrimPrefix(s, prefix)
	}
	s = strings.Join(strings.Fields(s), "_")
	if n := len(s); (n == 17 || n == 33) && (s[0] == '3' || s[0] == '2') && isHex(s) {
		s = s[1:]
	}
	if len(s) < 8 {
		return ""
	}
	return s
}

func isHex(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'f') })
}

// wwns returns all names by which a device's LUN is known, in their canonical form.
func wwns(dir string) (out []string) {
	add := func(s string) {
		if c := CanonicalWWN(s); c != "" && !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	add(Attr(dir, "wwid"))
	add(Attr(dir, "device/wwid"))
	// The wwid of an NVMe namespace is the first that it has of UUID, NGUID and EUI-64; a platform may know it by another one.
	for _, name := range []string{"nguid", "eui"} {
		add("eui." + strings.NewReplacer("-", "", " ", "").Replace(Attr(dir, name)))
	}
	page, _ := os.ReadFile(filepath.Join(dir, "device", "vpd_pg83"))
	for _, d := range designators(page) {
		add(d)
	}
	return out
}

// designators reads the page of a SCSI device that identifies it (SPC-4, 7.8.6): those of the logical unit, in the
// forms that the kernel uses.
func designators(p []byte) (out []string) {
	if len(p) < 4 || p[1] != 0x83 {
		return nil
	}
	p = p[4:min(len(p), 4+int(binary.BigEndian.Uint16(p[2:])))]
	for ; len(p) >= 4 && len(p) >= 4+int(p[3]); p = p[4+int(p[3]):] {
		id := p[4 : 4+int(p[3])]
		const binarySet, logicalUnit = 1, 0
		if p[1]>>4&3 != logicalUnit || len(id) == 0 {
			continue
		}
		switch kind := p[1] & 0xf; {
		case (kind == 3 || kind == 2) && p[0]&0xf == binarySet:
			out = append(out, hex.EncodeToString(id))
		case kind == 1 && p[0]&0xf != binarySet:
			out = append(out, "t10."+strings.Trim(string(id), " \x00"))
		}
	}
	return out
}

// Attr returns an attribute of sysfs without the white space around it; "" when there is none.
func Attr(dir, name string) string {
	b, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(strings.TrimRight(string(b), "\x00"))
}
