//go:build linux

package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/cairn-backup/cairn/internal/fault"
)

// errPowerOff and errReboot are why a machine's work ends.
var (
	errPowerOff = errors.New("somebody asked the machine to switch off")
	errReboot   = errors.New("somebody asked the machine to start again")
)

// watchPower ends the machine's work when its power button is pressed, or when the kernel asks for it: Ctrl-Alt-Del
// comes to process 1 as SIGINT.
func watchPower(ctx context.Context, end context.CancelCauseFunc, log *slog.Logger) {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_CAD_OFF); err != nil {
		log.Warn("ask for Ctrl-Alt-Del as a signal", "err", err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGPWR)
	go func() {
		select {
		case <-ctx.Done():
		case s := <-signals:
			if s == unix.SIGINT {
				end(errReboot)
				return
			}
			end(errPowerOff)
		}
	}()
	go watchButtons(ctx, end)
}

// AskPowerOff asks process 1 of the small image to end its work and switch the machine off. Elsewhere it does nothing but
// say so.
func AskPowerOff() error {
	if _, err := os.Stat(imageFile); err != nil {
		return fault.New(fault.Unsupported, "switch off", "", "this is no machine of the mover's own")
	}
	return unix.Kill(1, unix.SIGTERM)
}

// watchButtons reads every input device that there is or comes.
func watchButtons(ctx context.Context, end context.CancelCauseFunc) {
	var open sync.Map
	for ; ctx.Err() == nil; pause(ctx, time.Second) {
		files, _ := filepath.Glob("/dev/input/event*") // the pattern is good
		for _, name := range files {
			if _, known := open.LoadOrStore(name, true); known {
				continue
			}
			go func() {
				defer open.Delete(name)
				f, err := os.Open(name)
				if err != nil {
					return
				}
				defer f.Close()
				if awaitPowerKey(f) {
					end(errPowerOff)
				}
			}()
		}
	}
}

// awaitPowerKey reads input events until the power key goes down; false when they end.
func awaitPowerKey(r io.Reader) bool {
	const size, typeKey, keyPower, down = 24, 1, 116, 1 // struct input_event on 64 bit
	ev := make([]byte, size)
	for {
		if _, err := io.ReadFull(r, ev); err != nil {
			return false
		}
		if binary.NativeEndian.Uint16(ev[16:]) == typeKey && binary.NativeEndian.Uint16(ev[18:]) == keyPower &&
			binary.NativeEndian.Uint32(ev[20:]) == down {
			return true
		}
	}
}

// leave unmounts the state, flushes and switches the machine off or starts it again. It does not return.
func leave(why error, log *slog.Logger) {
	log.Info("machine stops", "why", why)
	if err := unix.Unmount(StateDir, 0); err != nil && mounted(StateDir) {
		log.Warn("unmount the state; it is flushed all the same", "err", err)
	}
	unix.Sync()
	cmd := unix.LINUX_REBOOT_CMD_POWER_OFF
	if errors.Is(why, errReboot) {
		cmd = unix.LINUX_REBOOT_CMD_RESTART
	}
	for {
		err := unix.Reboot(cmd)
		log.Error("the machine does not stop", "err", err)
		time.Sleep(time.Minute)
	}
}

func mounted(dir string) bool {
	p, err := os.ReadFile("/proc/self/mounts")
	return err == nil && bytes.Contains(p, []byte(" "+dir+" "))
}
