package load

import (
	"context"
	"fmt"
	"io"

	"github.com/cairn-backup/cairn/appliance/server"
	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/lab/memplatform"
)

// liveVMs are on the platform, and are backed up while the appliance is asked.
const liveVMs = 40

// Serve is a cairnd over a platform in memory, until ctx is done.
func Serve(ctx context.Context, data string, stdout, stderr io.Writer) (err error) {
	p, err := memplatform.New(memplatform.Options{})
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := p.Close(); err == nil {
			err = closeErr
		}
	}()
	for i := range liveVMs {
		p.AddVM(memplatform.VMSpec{Name: fmt.Sprintf("live-%03d", i), Disks: []int64{1 << 20}})
	}
	args := []string{"--data", data, "--listen", "127.0.0.1:0", "--movers", "none", "--log-level", "warn"}
	return server.Run(ctx, args, func(string) string { return "" }, stdout, stderr, map[hypervisors.Platform]server.OpenDriver{
		memplatform.PlatformName: func(context.Context, server.Target) (hypervisors.Driver, error) { return p.Driver(), nil },
	})
}
