//go:build linux

package hotadd

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// TestAwait: a disk's node that nobody may open yet is waited for, for a while.
func TestAwait(t *testing.T) {
	denied := fault.Context("open disk", "x", unix.EACCES)
	for _, tt := range []struct {
		name string
		err  func(since time.Duration) error // of an attempt that late; nil: it is open
		want error
		took time.Duration
	}{
		{"root's alone at first", func(since time.Duration) error {
			if since < 40*time.Second {
				return denied
			}
			return nil
		}, nil, 40 * time.Second},
		{"never ours", func(time.Duration) error { return denied }, unix.EACCES, time.Minute},
		{"not allowed for good", func(time.Duration) error { return unix.EPERM }, unix.EPERM, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				begin := time.Now()
				d, err := await(ctx, hypervisors.Export{Serial: "x"}, nil, func() (*device, error) {
					if err := tt.err(time.Since(begin)); err != nil {
						return nil, err
					}
					return &device{}, nil
				})
				if !errors.Is(err, tt.want) || (d == nil) == (tt.want == nil) {
					t.Errorf("got device %v and error %v, want error %v", d != nil, err, tt.want)
				}
				if took := time.Since(begin); took != tt.took {
					t.Errorf("it took %v, want %v", took, tt.took)
				}
			})
		})
	}
}
