// Package nocloud makes NoCloud seeds: the small CD-ROM images from which cloud-init, and Cairn's own mover image, learn
// what they are to be at their first start.
//
// It is no writer of ISO 9660 for other ends: there is one directory with two files. Its invariant: the same content
// gives the same bytes.
package nocloud

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// sector is the unit of everything in ISO 9660 (ECMA-119, which numbers all fields from 1).
const sector = 2048

// The sectors of the image, in order; the files follow.
const (
	atPrimary = 16 + iota // 16 sectors before are the system's
	atEnd
	atPathsLittle
	atPathsBig
	atRoot
	atFiles
)

// Seed returns an ISO 9660 image labelled "cidata" with user-data as given, and meta-data that names an instance.
// Neither name nor id may contain line ends.
func Seed(id, name string, userData []byte) []byte {
	meta := fmt.Appendf(nil, "instance-id: %s\nlocal-hostname: %s\n", id, name)
	// Linux shows these names in lower case and without the dot and version.
	files := []struct {
		name string
		data []byte
	}{{"META-DATA.;1", meta}, {"USER-DATA.;1", userData}}

	root := append(record("\x00", atRoot, sector, true), record("\x01", atRoot, sector, true)...)
	var content []byte
	for _, f := range files {
		root = append(root, record(f.name, atFiles+len(content)/sector, len(f.data), false)...)
		content = append(content, pad(f.data)...)
	}
	image := make([]byte, atPrimary*sector, atFiles*sector+len(content))
	image = append(image, primary(atFiles+len(content)/sector)...)
	image = append(image, pad([]byte("\xffCD001\x01"))...)
	image = append(image, pad(paths(binary.LittleEndian))...)
	image = append(image, pad(paths(binary.BigEndian))...)
	return append(append(image, pad(root)...), content...)
}

// primary is the volume's description.
func primary(sectors int) []byte {
	p := make([]byte, sector)
	copy(p, "\x01CD001\x01")
	text := func(from, to int, s string) { copy(p[from:to], s+strings.Repeat(" ", to-from-len(s))) }
	text(8, 40, "LINUX")
	text(40, 72, "cidata")
	copy(p[80:], both32(sectors))
	copy(p[120:], both16(1)) // volumes in the set
	copy(p[124:], both16(1)) // which one this is
	copy(p[128:], both16(sector))
	copy(p[132:], both32(len(paths(binary.LittleEndian))))
	binary.LittleEndian.PutUint32(p[140:], atPathsLittle)
	binary.BigEndian.PutUint32(p[148:], atPathsBig)
	copy(p[156:], record("\x00", atRoot, sector, true))
	text(190, 813, "") // who made it
	for _, at := range []int{813, 830, 847, 864} {
		copy(p[at:], "0000000000000000\x00") // no date
	}
	p[881] = 1 // version of the files' structure
	return p
}

// paths is the table of directories, which has the root only.
func paths(order binary.AppendByteOrder) []byte {
	p := order.AppendUint32([]byte{1, 0}, atRoot)
	p = order.AppendUint16(p, 1) // its parent is itself
	return append(p, 0, 0)
}

// record is an entry of a directory.
func record(name string, at, size int, directory bool) []byte {
	p := append([]byte{0, 0}, both32(at)...)
	p = append(p, both32(size)...)
	p = append(p, 126, 1, 1, 0, 0, 0, 0) // always the same date: 2026-01-01
	flags := byte(0)
	if directory {
		flags = 2
	}
	p = append(p, flags, 0, 0)
	p = append(p, both16(1)...)
	p = append(append(p, byte(len(name))), name...)
	if len(p)%2 != 0 {
		p = append(p, 0)
	}
	p[0] = byte(len(p))
	return p
}

func both32(n int) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, uint32(n)), uint32(n))
}

func both16(n int) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, uint16(n)), uint16(n))
}

// pad fills up to whole sectors, at least one.
func pad(p []byte) []byte {
	n := max(1, (len(p)+sector-1)/sector)
	return append(p[:len(p):len(p)], make([]byte, n*sector-len(p))...)
}
