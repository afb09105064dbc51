package identity

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

func wait(t *testing.T, err error) time.Duration {
	t.Helper()
	if err == nil {
		return 0
	}
	throttled, ok := errors.AsType[*Throttled](err)
	if !ok || fault.KindOf(err) != fault.Transient {
		t.Fatalf("error %v", err)
	}
	return throttled.Wait
}

func TestThrottleOfASource(t *testing.T) {
	th, now := newThrottle(), time.Unix(1e9, 0)
	for i := range freePerSource {
		if err := th.try("a", fmt.Sprint("user", i), now); err != nil {
			t.Fatalf("try %d: %v", i, err)
		}
	}
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		got := wait(t, th.try("a", fmt.Sprint("other", i), now))
		if got != want*time.Second {
			t.Errorf("after %d failures: wait %v, want %v", freePerSource+i, got, want*time.Second)
		}
		if err := th.try("b", fmt.Sprint("third", i), now); i < freePerSource && err != nil {
			t.Errorf("another source waits too: %v", err)
		}
		now = now.Add(got)
		if err := th.try("a", fmt.Sprint("other", i), now); err != nil {
			t.Errorf("after waiting: %v", err)
		}
	}
	now = now.Add(forgetTries + time.Second)
	for range freePerSource {
		check(t, th.try("a", "x", now))
	}
}

func TestThrottleOfAName(t *testing.T) {
	th, now := newThrottle(), time.Unix(1e9, 0)
	for i := range freePerName {
		check(t, th.try(fmt.Sprint("source", i), "admin", now))
	}
	longest := time.Duration(0)
	for i := range 20 {
		got := wait(t, th.try(fmt.Sprint("more", i), "admin", now))
		longest = max(longest, got)
		now = now.Add(got)
		check(t, th.try(fmt.Sprint("more", i), "admin", now))
	}
	if longest != waitPerName {
		t.Errorf("a stranger can make a name wait %v, want %v", longest, waitPerName)
	}
}

func TestThrottleForgetsOnSuccess(t *testing.T) {
	th, now := newThrottle(), time.Unix(1e9, 0)
	for range 10 {
		for range freePerSource {
			check(t, th.try("a", "admin", now))
		}
		th.succeeded("a", "admin")
	}
}

func TestThrottleIsBounded(t *testing.T) {
	th, now := newThrottle(), time.Unix(1e9, 0)
	for i := range 3 * maxRemembered {
		check(t, th.try(fmt.Sprint("s", i), fmt.Sprint("n", i), now))
	}
	if n := len(th.tries); n > maxRemembered+2 {
		t.Errorf("%d tries are remembered", n)
	}
}
