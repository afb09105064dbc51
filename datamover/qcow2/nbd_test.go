package qcow2_test

import (
	"testing"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/nbd/nbdtest"
	"github.com/cairn-backup/cairn/datamover/qcow2"
)

// dirtyByQEMU asks a real qemu-nbd for the ranges that bitmap "b" of an image marks.
func dirtyByQEMU(t *testing.T, name string) (out []qcow2.Range) {
	t.Helper()
	const dirty = "qemu:dirty-bitmap:b"
	p := nbdtest.QemuNBD(t, "-x", "d", "-f", "qcow2", "-r", "-B", "b", name)
	defer p.Kill()
	c, err := nbd.Dial(t.Context(), nbd.Config{Network: p.Network, Address: p.Address, Export: "d", Contexts: []string{dirty}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	size := c.Info().Size
	for off := int64(0); off < size; {
		status, err := c.BlockStatus(t.Context(), off, size-off)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range status[dirty] {
			n := len(out)
			switch {
			case e.Flags&nbd.StateDirty == 0:
			case n > 0 && out[n-1].Offset+out[n-1].Length == off:
				out[n-1].Length += e.Length
			default:
				out = append(out, qcow2.Range{Offset: off, Length: e.Length})
			}
			off += e.Length
		}
	}
	return out
}
