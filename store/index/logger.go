package index

import (
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
)

// logger passes what Pebble says on to slog, and keeps a failing disk under the index from ending the program.
type logger struct {
	log       *slog.Logger
	fatal     atomic.Pointer[error]
	unwritten chan error            // the newest failed write, for who waits for one; has room for one
	failing   atomic.Pointer[error] // the newest failed write, unless one has succeeded since
}

// Infof implements pebble.Logger.
func (l *logger) Infof(format string, args ...any) {
	l.log.Debug("index says", "text", fmt.Sprintf(format, args...))
}

// Errorf implements pebble.Logger.
func (l *logger) Errorf(format string, args ...any) {
	l.log.Warn("index has trouble", "text", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger. With an error among its arguments it is the disk's fault: the index answers that
// error from now on, and the next open starts it afresh. Without one it is a broken invariant, and nothing may go on.
func (l *logger) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, arg := range args {
		if err, ok := arg.(error); ok {
			l.fail(fmt.Errorf("index is broken: %s: %w", text, err))
			return
		}
	}
	panic("index: " + text)
}

func (l *logger) fail(err error) {
	if l.fatal.CompareAndSwap(nil, &err) {
		l.log.Error("index is broken", "err", err)
	}
}

// broken returns the error that ended the index's life, if one did.
func (l *logger) broken() error {
	if err := l.fatal.Load(); err != nil {
		return *err
	}
	return nil
}

func (l *logger) listener() *pebble.EventListener {
	return &pebble.EventListener{
		// Pebble tries a failed flush again at once; a full disk takes longer than that. Meanwhile all is in memory.
		BackgroundError: func(err error) {
			if l.failing.Swap(&err) == nil {
				l.log.Warn("index cannot be written", "err", err)
			}
			select {
			case l.unwritten <- err:
			default:
			}
			time.Sleep(100 * time.Millisecond)
		},
		FlushEnd: func(info pebble.FlushInfo) {
			if info.Err == nil {
				l.failing.Store(nil)
			}
		},
		DataCorruption: func(info pebble.DataCorruptionInfo) {
			l.fail(fmt.Errorf("index is damaged: %w", info.Details))
		},
	}
}
