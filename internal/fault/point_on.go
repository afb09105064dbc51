//go:build faultpoints

package fault

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// reached holds the points that a process has stopped at: it stops at each one once.
var reached sync.Map

// passed counts how often the point of a "<name>#<n>" was reached.
var passed atomic.Int64

// Point acts when CAIRN_FAULT_POINT is "<name>=kill" (SIGKILL to ourselves at once) or "<name>=pause" (the file
// CAIRN_FAULT_FILE is created and the caller waits until somebody removes it). "<name>#<n>=..." acts when the point is reached for the nth time.
func Point(name string) {
	if !slices.Contains(slices.Concat(Points, StorePoints, CarrierPoints), name) {
		panic("fault point " + name + " is not in fault.Points")
	}
	want, action, _ := strings.Cut(os.Getenv("CAIRN_FAULT_POINT"), "=")
	want, nth, counted := strings.Cut(want, "#")
	if want != name {
		return
	}
	if counted && strconv.FormatInt(passed.Add(1), 10) != nth {
		return
	}
	if _, before := reached.LoadOrStore(name, true); before {
		return
	}
	file := os.Getenv("CAIRN_FAULT_FILE")
	if file != "" {
		_ = os.WriteFile(file, []byte(name), 0o600)
	}
	fmt.Fprintf(os.Stderr, "fault point %s: %s\n", name, action)
	switch action {
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "pause":
		for {
			if _, err := os.Stat(file); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}
