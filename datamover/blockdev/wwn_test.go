//go:build linux

package blockdev

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNVMeNames: a namespace is found by each of its names, whichever of them the kernel calls its wwid. The attributes are
// spelled as Linux 6.1 has them.
func TestNVMeNames(t *testing.T) {
	const (
		uuid  = "8f3c1e52-77f1-4b57-9d3a-0c6a55b0e101"
		nguid = "6e2d9a40-1c77-4f0e-8a55-3b90aa51c201"
	)
	for _, tt := range []struct {
		name  string
		attrs map[string]string
		want  []string
	}{
		{"all names", map[string]string{"wwid": "uuid." + uuid, "uuid": uuid, "nguid": nguid, "eui": "00 25 38 5b 71 b0 0f 3c"},
			[]string{"uuid." + uuid, "6e2d9a401c774f0e8a553b90aa51c201", "0025385b71b00f3c"}},
		{"no UUID", map[string]string{"wwid": "eui.6e2d9a401c774f0e8a553b90aa51c201", "uuid": nguid, "nguid": nguid}, []string{"6e2d9a401c774f0e8a553b90aa51c201"}},
		{"EUI-64 only", map[string]string{"wwid": "eui.0025385b71b00f3c", "eui": "00 25 38 5b 71 b0 0f 3c"}, []string{"0025385b71b00f3c"}},
		{"none", map[string]string{"wwid": "nvme.1d0f-766f6c-416d-00000001"}, []string{"nvme.1d0f-766f6c-416d-00000001"}},
	} {
		dir := filepath.Join(t.TempDir(), "nvme0n1")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range tt.attrs {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if diff := cmp.Diff(wwns(dir), tt.want); diff != "" {
			t.Errorf("%s (-got +want):\n%s", tt.name, diff)
		}
	}
	for _, form := range []string{"eui.6E2D9A401C774F0E8A553B90AA51C201", "dm-uuid-mpath-eui.6e2d9a401c774f0e8a553b90aa51c201", "26e2d9a401c774f0e8a553b90aa51c201"} {
		if got := CanonicalWWN(form); got != "6e2d9a401c774f0e8a553b90aa51c201" {
			t.Errorf("%s is %q", form, got)
		}
	}
}
