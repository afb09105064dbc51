package hypervisortest

import (
	"context"
	"time"
)

// watchTime bounds a driver that tells nothing.
const watchTime = time.Minute

// testWatch starts and stops a VM, and wants to be told of both, and of nothing once it does not listen any more.
func testWatch(e *env) {
	e.need(e.caps.Watch && e.caps.Power && e.Stopped != "", "change stream and power switch, or no stopped VM")
	ctx, stop := context.WithCancel(e.Context())
	defer stop()
	told := make(chan string, 1000)
	ended := make(chan error, 1)
	go func() { ended <- e.Driver.Watch(ctx, func(vm string) { told <- vm }) }()
	await := func(what string, want func(vm string) bool) {
		e.Helper()
		for end := time.After(watchTime); ; {
			select {
			case vm := <-told:
				if want(vm) {
					return
				}
			case err := <-ended:
				e.Fatalf("%s: Watch has ended with %v", what, err)
			case <-end:
				e.Fatalf("%s is not told", what)
			}
		}
	}
	first := true
	await("that it listens", func(vm string) bool {
		if first && vm != "" {
			e.Errorf("the first that is told is %q, want that it may be any", vm)
		}
		first = false
		return vm == ""
	})
	ours := func(vm string) bool { return vm == e.Stopped || vm == "" }
	e.ok(e.Driver.Start(e.Context(), e.Stopped), "start")
	await("the start of a VM", ours)
	for len(told) > 0 {
		<-told
	}
	e.ok(e.Driver.Stop(e.Context(), e.Stopped, true), "stop")
	await("the stop of a VM", ours)
	stop()
	select {
	case err := <-ended:
		if err != nil {
			e.Errorf("the end of its context is no error, got %v", err)
		}
	case <-time.After(watchTime):
		e.Error("Watch does not end with its context")
	}
}
