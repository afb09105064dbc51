package disk

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// TestContentID sets the content id of descriptors as QEMU writes them, whose own has one to eight digits.
func TestContentID(t *testing.T) {
	var want []byte
	for _, drawn := range []string{"1a2b3c4d", "a2b3c4d", "7"} {
		p := make([]byte, 21*512)
		copy(p, "KDMV")
		copy(p[512:], "# Disk DescriptorFile\nversion=1\nCID="+drawn+"\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n")
		name := filepath.Join(t.TempDir(), "disk.vmdk")
		if err := os.WriteFile(name, p, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := fixVMDK(name, GUID{0x0f, 1, 2, 3}); err != nil {
			t.Fatalf("%s: %v", drawn, err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(got, []byte("\nCID=0f010203\nparentCID=ffffffff\ncreateType=\"streamOptimized\"\n\x00")) {
			t.Errorf("%s: the descriptor is\n%s", drawn, bytes.TrimRight(got[512:], "\x00"))
		}
		if want == nil {
			want = got
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: the image is not the same", drawn)
		}
	}
}
