package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/cairn-backup/cairn/lab/kvmlab"
)

var update = flag.Bool("update", false, "write the golden files anew")

// built makes images and returns their directory; CAIRN_IMAGES names one where they are already.
func built(t *testing.T, only string) string {
	t.Helper()
	if !kvmlab.Wanted() {
		t.Skip("needs Debian's packages, mtools and QEMU; set CAIRN_LAB=1")
	}
	t.Chdir("../..") // where `make images` runs
	if dir := os.Getenv("CAIRN_IMAGES"); dir != "" {
		return dir // made before
	}
	return build(t, only, allFormats)
}

const allFormats = "qcow2,vmdk,vhdx"

// build makes images as they were made for built: by what git says, or of a fixed version and time.
func build(t *testing.T, only, formats string) string {
	t.Helper()
	out := t.TempDir()
	args, getenv := []string{"-out", out, "-only", only, "-formats", formats}, os.Getenv
	if os.Getenv("CAIRN_IMAGES") == "" {
		args, getenv = append(args, "-version", "test"), func(string) string { return "1700000000" }
	}
	if err := run(t.Context(), args, getenv, io.Discard); err != nil {
		t.Fatal(err)
	}
	return out
}

// checkAgain makes an image a second time, in some formats, and wants every file of it to be the same.
func checkAgain(t *testing.T, out, only, formats string) {
	if os.Getenv("CAIRN_SOAK") != "1" {
		t.Skip("builds a second time; set CAIRN_SOAK=1")
	}
	first := readText(t, filepath.Join(out, "SHA256SUMS"))
	n := 0
	for line := range strings.Lines(readText(t, filepath.Join(build(t, only, formats), "SHA256SUMS"))) {
		n++
		if !strings.Contains(first, line) {
			t.Errorf("a second build of the same inputs has another %s", strings.Fields(line)[1])
		}
	}
	if n < 3 {
		t.Errorf("only %d files were compared", n)
	}
}

// TestSmallImage builds the small mover image and looks at everything that is handed out, then starts machines from it.
func TestSmallImage(t *testing.T) {
	out := built(t, "mover")
	file := func(suffix string) string { return filepath.Join(out, "cairn-mover"+suffix) }
	t.Run("files", func(t *testing.T) { checkFiles(t, file(".files"), file(".initrd")) })
	t.Run("formats", func(t *testing.T) { checkFormats(t, file) })
	t.Run("partitions", func(t *testing.T) { checkTable(t, file) })
	t.Run("ova", func(t *testing.T) { checkOVA(t, file(".ova"), file(".vmdk")) })
	t.Run("bom", func(t *testing.T) {
		checkBOM(t, file(".cdx.json"), "pkg:deb/debian/linux-image-", "pkg:deb/debian/shim-signed@", "pkg:golang/gopkg.in/yaml.v3@", "pkg:golang/std@1.26")
	})
	t.Run("sums", func(t *testing.T) { checkSums(t, out) })
	t.Run("boot", func(t *testing.T) { bootSmall(t, file("")) })
	t.Run("again", func(t *testing.T) { checkAgain(t, out, "mover", allFormats) })
}

func readText(t *testing.T, name string) string {
	t.Helper()
	p, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(p)
}

// checkFiles compares the list of files with the pinned one, and what the real cpio finds in the image with the list.
func checkFiles(t *testing.T, list, initrd string) {
	const golden = "images/build/testdata/mover.files"
	got := readText(t, list)
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(got, readText(t, golden)); diff != "" {
		t.Errorf("the image's files are not the pinned ones (-update writes them anew): %s", diff)
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `zstd -dc "$1" | cpio -tv --quiet`, "list", initrd)
	text, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var files, programs []string
	for line := range strings.Lines(string(text)) {
		w := strings.Fields(line)
		if name := w[len(w)-1]; !strings.HasPrefix(w[0], "d") {
			files = append(files, name)
			if strings.Contains(w[0], "x") || strings.HasPrefix(w[0], "l") {
				programs = append(programs, name)
			}
		}
	}
	if diff := cmp.Diff(files, strings.Fields(got)); diff != "" {
		t.Errorf("what is in the image is not what its list says: %s", diff)
	}
	if diff := cmp.Diff(programs, []string{"init"}); diff != "" {
		t.Errorf("the mover is to be the only program: %s", diff)
	}
}

// checkFormats compares the formats' content with qemu-img and lets it check those that it can.
func checkFormats(t *testing.T, file func(string) string) {
	for _, args := range [][]string{
		{"compare", "-f", "qcow2", "-F", "vhdx", file(".qcow2"), file(".vhdx")},
		{"compare", "-f", "qcow2", "-F", "vmdk", file(".qcow2"), file(".vmdk")},
		{"check", "-f", "qcow2", file(".qcow2")},
		{"check", "-f", "vhdx", file(".vhdx")},
		{"check", "-f", "vmdk", file(".vmdk")},
	} {
		if text, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
			t.Errorf("qemu-img %s: %v: %s", strings.Join(args, " "), err, text)
		}
	}
	if text := readText(t, file(".vmdk")); !strings.Contains(text[:8192], `createType="streamOptimized"`) {
		t.Error("the VMDK is not streamOptimized")
	}
}

// checkTable looks at the partitions of the small mover's disk.
func checkTable(t *testing.T, file func(string) string) {
	raw := filepath.Join(t.TempDir(), "raw")
	if text, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-O", "raw", file(".qcow2"), raw).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img convert: %v: %s", err, text)
	}
	text, err := exec.CommandContext(t.Context(), "sfdisk", "--json", raw).Output()
	if err != nil {
		t.Fatal(err)
	}
	var table struct {
		PartitionTable struct {
			Label      string
			Partitions []struct{ Type, UUID, Name, Attrs string }
		}
	}
	if err := json.Unmarshal(text, &table); err != nil {
		t.Fatal(err)
	}
	p := table.PartitionTable
	if p.Label != "gpt" || len(p.Partitions) != 2 {
		t.Fatalf("the partition table is %s", text)
	}
	if p.Partitions[0].Attrs != "LegacyBIOSBootable" || p.Partitions[1].Name != "state" || p.Partitions[1].UUID != "63616972-6E2D-6D6F-7665-722D73746174" {
		t.Errorf("the partitions are %+v", p.Partitions)
	}
	if text, err := exec.CommandContext(t.Context(), "sfdisk", "--verify", raw).CombinedOutput(); err != nil || !bytes.Contains(text, []byte("No errors detected")) {
		t.Errorf("sfdisk --verify: %v: %s", err, text)
	}
}

// checkOVA reads the archive as an importer does: description, manifest, disk, in this order, with right hashes.
func checkOVA(t *testing.T, ova, vmdk string) {
	f, err := os.Open(ova)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	content := map[string][]byte{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		if content[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(names, []string{"cairn-mover.ovf", "cairn-mover.mf", "cairn-mover-disk1.vmdk"}); diff != "" {
		t.Fatal(diff)
	}
	want := ""
	for _, n := range []string{names[0], names[2]} {
		want += fmt.Sprintf("SHA256(%s)= %x\n", n, sha256.Sum256(content[n]))
	}
	if diff := cmp.Diff(string(content[names[1]]), want); diff != "" {
		t.Errorf("the manifest's hashes: %s", diff)
	}
	if readText(t, vmdk) != string(content[names[2]]) {
		t.Error("the disk in the archive is not the one beside it")
	}
	var e struct {
		References struct {
			File struct {
				Href string `xml:"href,attr"`
				Size int    `xml:"size,attr"`
			}
		}
		DiskSection struct {
			Disk struct {
				Capacity int64 `xml:"capacity,attr"`
			}
		}
	}
	if err := xml.Unmarshal(content[names[0]], &e); err != nil {
		t.Fatal(err)
	}
	if f := e.References.File; f.Href != names[2] || f.Size != len(content[names[2]]) || e.DiskSection.Disk.Capacity != (1+bootMiB+stateMiB+1)<<20 {
		t.Errorf("the description says %+v", e)
	}
}

// checkBOM wants a component for each prefix of a package URL, and no component without a version.
func checkBOM(t *testing.T, name string, prefixes ...string) {
	var doc struct {
		BomFormat  string
		Components []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal([]byte(readText(t, name)), &doc); err != nil {
		t.Fatal(err)
	}
	for _, p := range prefixes {
		if !slices.ContainsFunc(doc.Components, func(c struct{ Name, Version, PURL string }) bool { return strings.HasPrefix(c.PURL, p) }) {
			t.Errorf("nothing in it begins with %s", p)
		}
	}
	for _, c := range doc.Components {
		if c.Version == "" {
			t.Errorf("%s has no version", c.Name)
		}
	}
}

func checkSums(t *testing.T, out string) {
	cmd := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = out
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, text)
	}
	entries, err := os.ReadDir(out)
	if err != nil || len(regexp.MustCompile(`(?m): OK$`).FindAll(text, -1)) != len(entries)-1 {
		t.Errorf("%d files (%v), and sha256sum says %s", len(entries), err, text)
	}
}
