//go:build linux

package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The clock comes from the machine's own, which the kernel reads at boot; a time server, where one is named, corrects
// it, since certificates are judged by it. An unset clock is moved to the image's birth at least.

// imageFile says of what the image was made; its time is when its inputs were.
const imageFile = "/etc/cairn-image.json"

// floorClock moves a clock that is before the image's birth.
func floorClock(log *slog.Logger) {
	info, err := os.Stat(imageFile)
	if err != nil || !time.Now().Before(info.ModTime()) {
		return
	}
	log.Warn("the machine's clock is before this image was made; it begins there", "clock", time.Now(), "image", info.ModTime())
	if err := setClock(info.ModTime()); err != nil {
		log.Warn("set the clock", "err", err)
	}
}

func setClock(t time.Time) error {
	ts := unix.NsecToTimespec(t.UnixNano())
	return unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
}

// keepClock asks the time servers that come over the channel, at once and then every hour.
func keepClock(ctx context.Context, servers <-chan []string, log *slog.Logger) {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	var current []string
	for {
		select {
		case <-ctx.Done():
			return
		case current = <-servers:
		case <-tick.C:
		}
		if len(current) == 0 {
			continue
		}
		if err := stepClock(ctx, current, log); err != nil {
			log.Warn("no time server answers; the machine's own clock counts", "servers", current, "err", err)
		}
	}
}

// stepClock sets the clock by the first server that answers, if it is off by more than a tenth of a second.
func stepClock(ctx context.Context, servers []string, log *slog.Logger) error {
	var errs []error
	for _, s := range servers {
		off, err := askTime(ctx, net.JoinHostPort(s, "123"))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if off.Abs() > 100*time.Millisecond {
			log.Info("clock is set", "server", s, "by", off)
			return setClock(time.Now().Add(off))
		}
		return nil
	}
	return errors.Join(errs...)
}

// askTime returns how far the clock is behind a server's, by one exchange of SNTP (RFC 4330).
func askTime(ctx context.Context, address string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp", address)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	if end, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(end); err != nil {
			return 0, err
		}
	}
	q := make([]byte, 48)
	q[0] = 4<<3 | 3 // version 4, client
	sent := time.Now()
	binary.BigEndian.PutUint64(q[40:], ntpTime(sent))
	if _, err := conn.Write(q); err != nil {
		return 0, err
	}
	p := make([]byte, 512)
	n, err := conn.Read(p)
	if err != nil {
		return 0, err
	}
	return clockOffset(p[:n], sent, time.Now())
}

// clockOffset reads a server's answer to a question sent at one time and answered at another, by our own clock.
func clockOffset(p []byte, sent, got time.Time) (time.Duration, error) {
	switch {
	case len(p) < 48 || p[0]&7 != 4:
		return 0, errors.New("it is no answer of a time server")
	case p[0]>>6 == 3 || p[1] == 0 || p[1] > 15:
		return 0, fmt.Errorf("the server's own clock is not set (stratum %d)", p[1])
	case binary.BigEndian.Uint64(p[24:]) != ntpTime(sent):
		return 0, errors.New("it answers another question")
	}
	received, answered := fromNTP(binary.BigEndian.Uint64(p[32:])), fromNTP(binary.BigEndian.Uint64(p[40:]))
	return (received.Sub(sent) + answered.Sub(got)) / 2, nil
}

// ntpEpoch is 1900-01-01 in Unix seconds. Times of the era that begins in 2036 have the top bit clear.
const ntpEpoch = -2208988800

func ntpTime(t time.Time) uint64 {
	return uint64(t.Unix()-ntpEpoch)<<32 | uint64(t.Nanosecond())<<32/1e9
}

func fromNTP(v uint64) time.Time {
	sec := int64(v >> 32)
	if sec < 1<<31 {
		sec += 1 << 32
	}
	return time.Unix(sec+ntpEpoch, int64((v&0xffffffff)*1e9>>32))
}
