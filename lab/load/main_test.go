package load

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func serveUntilSignal(data string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return Serve(ctx, data, os.Stdout, os.Stderr)
}
