package cache

import (
	"errors"
	"sync"
	"testing"
)

func TestCostIsBounded(t *testing.T) {
	c := New[int, int](100)
	for i := range 50 {
		if v, err := c.Get(i, func() (int, int64, error) { return i * i, 10, nil }); err != nil || v != i*i {
			t.Fatalf("Get(%d) = %d, %v", i, v, err)
		}
	}
	if c.cost != 100 || len(c.entries) != 10 {
		t.Errorf("%d values of cost %d", len(c.entries), c.cost)
	}
	if _, err := c.Get(49, func() (int, int64, error) { return 0, 0, errors.New("asked again") }); err != nil {
		t.Error(err)
	}
	c.Forget(49)
	if _, err := c.Get(49, func() (int, int64, error) { return 0, 0, errors.New("asked again") }); err == nil {
		t.Error("forgotten value is there")
	}
	if v, err := c.Get(49, func() (int, int64, error) { return 7, 1, nil }); err != nil || v != 7 {
		t.Errorf("after an error: %d, %v", v, err)
	}
}

func TestEachValueIsFetchedOnce(t *testing.T) {
	c := New[int, int](1000)
	var mu sync.Mutex
	fetched := 0
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			v, err := c.Get(1, func() (int, int64, error) {
				mu.Lock()
				defer mu.Unlock()
				fetched++
				return 5, 1, nil
			})
			if v != 5 || err != nil {
				t.Errorf("Get = %d, %v", v, err)
			}
		})
	}
	wg.Wait()
	if fetched != 1 {
		t.Errorf("fetched %d times", fetched)
	}
}
