//go:build faultpoints

package fault

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// reached holds the points that a process has stopped at: it stops at each one once.
var reached sync.Map

// Point acts when CAIRN_FAULT_POINT is "<name>=kill" (SIGKILL to ourselves at once) or "<name>=pause" (the file
// CAIRN_FAULT_FILE is created and the caller waits until somebody removes it).
func Point(name string) {
	if !slices.Contains(Points, name) {
		panic("fault point " + name + " is not in fault.Points")
	}
	want, action, _ := strings.Cut(os.Getenv("CAIRN_FAULT_POINT"), "=")
	if want != name {
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
