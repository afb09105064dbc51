package measure

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRestoredFindsWrongRestores plants wrong restores of each kind.
func TestRestoredFindsWrongRestores(t *testing.T) {
	const size = 64 << 20
	image := func(t *testing.T, size int64, data map[int64]string) string {
		path := filepath.Join(t.TempDir(), "image")
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for off, s := range data {
			if _, err := f.WriteAt([]byte(s), off); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	right := map[int64]string{0: "begin", 20 << 20: "middle", size - 3: "end"}
	want := image(t, size, right)
	tests := []struct {
		name string
		size int64
		data map[int64]string
		err  string
	}{
		{"equal", size, right, ""},
		{"first byte", size, map[int64]string{0: "Begin", 20 << 20: "middle", size - 3: "end"}, "first at 0"},
		{"a byte in the middle", size, map[int64]string{0: "begin", 20 << 20: "miDdle", size - 3: "end"}, "first at 20971520"},
		{"last byte", size, map[int64]string{0: "begin", 20 << 20: "middle", size - 3: "enD"}, "differs"},
		{"a byte in a hole", size, map[int64]string{0: "begin", 20 << 20: "middle", 40 << 20: "x", size - 3: "end"}, "first at 41943040"},
		{"data left out", size, map[int64]string{0: "begin", size - 3: "end"}, "first at 20971520"},
		{"too short", size - 1, map[int64]string{0: "begin", 20 << 20: "middle", size - 3: "en"}, "bytes"},
		{"too long", size + 1, right, "bytes"},
		{"not sparse", size, map[int64]string{0: "begin", 1 << 20: strings.Repeat("\x00", 19<<20), 20 << 20: "middle", size - 3: "end"}, "not sparse"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			err := Restored(want, image(t, tt.size, tt.data))
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q in it", err, tt.err)
			}
		})
	}
}

func TestMediansAndTargets(t *testing.T) {
	var rows []Row
	bare := []float64{9, 2, 1}
	for round, cpu := range []float64{9, 2, 3} {
		rows = append(rows,
			Row{Step: Full, Engine: "cairn", Round: round + 1, CPU: cpu, RSS: 100 << 20, Bytes: 90},
			Row{Step: Full, Engine: "restic", Round: round + 1, CPU: 10 * cpu, Bytes: 100},
			Row{Step: BareZstd, Engine: "bare", Round: round + 1, CPU: bare[round]},
			Row{Step: ReRead, Engine: "cairn", Round: round + 1, CPU: 1},
			Row{Step: BareRead, Engine: "bare", Round: round + 1, CPU: 0.7})
	}
	got := map[string]bool{}
	for _, target := range Targets(rows) {
		got[target.What] = target.Met()
	}
	want := map[string]bool{
		"full backup: at most 1.25 times the bare pipeline's CPU":      true, // 1, 1 and 3; of the medians it is 3 / 2
		"full backup: repository not larger than the smallest peer's":  true,
		"re-read of known data: at least 80 % of bare read and BLAKE3": false,
		"memory: at most 512 MiB in any step":                          true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("targets met (-want +got):\n%s", diff)
	}
}
