//go:build faultpoints

package transfer_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/datamover/nbd"
	"github.com/cairn-backup/cairn/datamover/transfer"
)

// TestFaultPoints stops a transfer at each of its points and looks how far it is.
func TestFaultPoints(t *testing.T) {
	for _, tt := range []struct {
		point   string
		atLeast int // chunks in the sink
		run     func(t *testing.T, image *plane) error
	}{
		{"backup.transfer-started", 0, backupInto},
		{"backup.transfer-middle", 16, backupInto},
		{"restore.transfer-middle", 0, func(t *testing.T, image *plane) error {
			image.data[0], image.data[8*mib] = 1, 1
			_, err := transfer.Restore(t.Context(), image, memoryDisk{nbd.NewMemory(32*mib, nil)}, transfer.Options{})
			return err
		}},
	} {
		t.Run(tt.point, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "here")
			t.Setenv("CAIRN_FAULT_POINT", tt.point+"=pause")
			t.Setenv("CAIRN_FAULT_FILE", file)
			image := newPlane(32 * mib)
			done := make(chan error, 1)
			go func() { done <- tt.run(t, image) }()
			for {
				if b, err := os.ReadFile(file); err == nil && string(b) == tt.point {
					break
				}
				select {
				case err := <-done:
					t.Fatalf("the transfer did not stop at the point; %v", err)
				case <-time.After(time.Millisecond):
				}
			}
			image.mu.Lock()
			n := len(image.filled)
			image.mu.Unlock()
			if n < tt.atLeast {
				t.Errorf("%d chunks are written, want at least %d", n, tt.atLeast)
			}
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
		})
	}
}

func backupInto(t *testing.T, image *plane) error {
	_, err := transfer.Backup(t.Context(), full(t, 32*mib), image, transfer.Options{Workers: 2})
	return err
}
