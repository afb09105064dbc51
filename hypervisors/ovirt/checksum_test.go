package ovirt

import (
	"testing"

	"github.com/cairn-backup/cairn/hypervisors"
)

// TestChecksums reads a disk with the option and without it, and looks whether the mover is to compare checksums, and does.
func TestChecksums(t *testing.T) {
	for value, want := range map[string]bool{checksumsOn: true, checksumsOff: false, "": false} {
		s := newSim(t, true)
		s.d = openDriver(t, s.e, func(c *Config) { c.Options[OptChecksums] = value })
		f := s.freeze(s.request("sums"))
		for _, disk := range f.Info().Disks {
			if disk.Export.Imageio.Checksum != want {
				t.Errorf("%q: checksum %v", value, disk.Export.Imageio.Checksum)
			}
			d, err := openSource(t.Context(), disk.Export)
			if err != nil {
				t.Fatal(err)
			}
			for x, err := range d.Extents(t.Context()) {
				if err == nil && x.State == hypervisors.Data {
					_, err = d.ReadAt(make([]byte, x.Length), x.Offset)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Confirm(t.Context()); err != nil {
				t.Errorf("%q: %v", value, err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
		}
		s.release(f)
		s.clean("afterwards")
	}
}
