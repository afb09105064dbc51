// Package bom writes bills of materials: what an image was made of, as CycloneDX 1.5 in JSON.
//
// It judges nothing. Its invariant: a component stands in it because it was read from the thing itself: a package that
// was unpacked, or what the linker wrote into a program.
package bom

import (
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// Component is one part.
type Component struct {
	Type    string `json:"type"` // "operating-system", "library", "application"
	Name    string `json:"name"`
	Version string `json:"version"`
	PURL    string `json:"purl,omitempty"`
	Hashes  []Hash `json:"hashes,omitempty"`
}

// Hash is a checksum of a part.
type Hash struct {
	Alg     string `json:"alg"`
	Content string `json:"content"`
}

// Debian is a package of Debian; sha256 is of its .deb, or empty.
func Debian(name, version, arch, sha256 string) Component {
	c := Component{Type: "library", Name: name, Version: version,
		PURL: fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", url.PathEscape(name), url.PathEscape(version), arch)}
	if sha256 != "" {
		c.Hashes = []Hash{{"SHA-256", sha256}}
	}
	return c
}

// GoProgram returns the Go version and the modules that a program was linked from, with Go's own module hashes.
func GoProgram(file string) ([]Component, error) {
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return nil, err
	}
	out := []Component{{Type: "library", Name: "std", Version: strings.TrimPrefix(info.GoVersion, "go"),
		PURL: "pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go")}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		out = append(out, Component{Type: "library", Name: m.Path, Version: m.Version, PURL: "pkg:golang/" + m.Path + "@" + m.Version})
	}
	return out, nil
}

// DebianTree returns the packages that dpkg's database in a tree says are installed.
func DebianTree(status string) ([]Component, error) {
	p, err := os.ReadFile(status)
	return DebianStatus(p), err
}

// DebianStatus returns the packages that dpkg's database says are installed.
func DebianStatus(status []byte) (out []Component) {
	for paragraph := range strings.SplitSeq(string(status), "\n\n") {
		f := map[string]string{}
		for line := range strings.Lines(paragraph) {
			if key, value, ok := strings.Cut(line, ": "); ok && key[0] != ' ' {
				f[key] = strings.TrimSpace(value)
			}
		}
		if strings.HasSuffix(f["Status"], " installed") {
			out = append(out, Debian(f["Package"], f["Version"], f["Architecture"], ""))
		}
	}
	return out
}

// Write writes a bill of materials for one image.
func Write(name, subject, version string, epoch time.Time, seed [16]byte, parts []Component) error {
	parts = slices.Clone(parts)
	slices.SortFunc(parts, func(a, b Component) int { return strings.Compare(a.PURL+a.Name, b.PURL+b.Name) })
	parts = slices.CompactFunc(parts, func(a, b Component) bool { return a.PURL == b.PURL && a.Name == b.Name })
	seed[6], seed[8] = seed[6]&0x0f|0x80, seed[8]&0x3f|0x80 // a UUID that somebody made up (version 8)
	h := hex.EncodeToString(seed[:])
	doc := map[string]any{
		"bomFormat":    "CycloneDX",
		"specVersion":  "1.5",
		"version":      1,
		"serialNumber": fmt.Sprintf("urn:uuid:%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:]),
		"metadata": map[string]any{
			"timestamp": epoch.UTC().Format(time.RFC3339),
			"component": Component{Type: "operating-system", Name: subject, Version: version},
		},
		"components": parts,
	}
	p, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(p, '\n'), 0o644)
}
