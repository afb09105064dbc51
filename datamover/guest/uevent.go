//go:build linux

package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sys/unix"
)

// uevent is what the kernel says of a device that came or went: "ACTION", "SUBSYSTEM", "DEVNAME", "MODALIAS", ….
type uevent map[string]string

// parseUevent reads one message: "add@/devices/…" and then KEY=value, each with a zero byte behind it.
func parseUevent(p []byte) uevent {
	u := uevent{}
	for _, field := range bytes.Split(p, []byte{0}) {
		if key, value, ok := bytes.Cut(field, []byte{'='}); ok {
			u[string(key)] = string(value)
		}
	}
	return u
}

// uevents is a socket with the kernel's messages.
type uevents struct{ fd int }

func listenUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("open uevent socket: %w", err)
	}
	u := &uevents{fd: fd}
	const kernelGroup = 1
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind uevent socket: %w", err), u.close())
	}
	// A storm of devices must not be lost; beyond this the caller looks at all devices again.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20)
	return u, nil
}

func (u *uevents) close() error { return unix.Close(u.fd) }

// errLost says that messages were dropped.
var errLost = errors.New("uevents were lost")

// next waits at most a while for a message; none is nil, nil. Only the kernel's own messages count.
func (u *uevents) next(wait time.Duration) (uevent, error) {
	fds := []unix.PollFd{{Fd: int32(u.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, int(wait.Milliseconds())); err != nil || n == 0 {
		if errors.Is(err, unix.EINTR) {
			err = nil
		}
		return nil, err
	}
	p := make([]byte, 16<<10)
	n, from, err := unix.Recvfrom(u.fd, p, unix.MSG_DONTWAIT)
	switch {
	case errors.Is(err, unix.ENOBUFS):
		return nil, errLost
	case errors.Is(err, unix.EAGAIN):
		return nil, nil
	case err != nil:
		return nil, err
	}
	if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
		return nil, nil
	}
	return parseUevent(p[:n]), nil
}

// follow loads drivers for devices that come until ctx ends, and tells changed of block devices.
func (u *uevents) follow(ctx context.Context, m *modules, log *slog.Logger, changed chan<- struct{}) {
	for ctx.Err() == nil {
		ev, err := u.next(200 * time.Millisecond)
		switch {
		case errors.Is(err, errLost):
			err = m.loadPresent("/sys/devices")
		case err == nil && ev["ACTION"] == "add" && ev["MODALIAS"] != "":
			err = m.loadFor(ev["MODALIAS"])
		}
		if err != nil {
			log.Warn("driver for a new device", "err", err)
		}
		if ev["SUBSYSTEM"] == "block" {
			select {
			case changed <- struct{}{}:
			default: // it has one to look at already
			}
		}
	}
}
