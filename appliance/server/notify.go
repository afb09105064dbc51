package server

import (
	"context"
	"log/slog"
	"net"
	"strings"
)

// notify tells systemd something about this service, if it has asked for that (sd_notify(3)).
func notify(ctx context.Context, socket, state string, log *slog.Logger) {
	if socket == "" {
		return
	}
	if strings.HasPrefix(socket, "@") { // an abstract one
		socket = "\x00" + socket[1:]
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unixgram", socket)
	if err == nil {
		_, err = c.Write([]byte(state))
		_ = c.Close()
	}
	if err != nil {
		log.WarnContext(ctx, "systemd was not told", "state", state, "err", err)
	}
}
