// Package cache keeps recently used values up to a total cost and loads each missing one once.
//
// It is not a store: anything may be forgotten at any time. Values are shared and must not be changed.
package cache

import (
	"container/list"
	"sync"
)

// Cache is a least-recently-used cache bounded by cost. It may be used from several goroutines.
type Cache[K comparable, V any] struct {
	limit int64

	mu      sync.Mutex
	cost    int64
	order   list.List // of *entry, most recent first
	entries map[K]*list.Element
	loading map[K]*load[V]
}

type entry[K comparable, V any] struct {
	key  K
	val  V
	cost int64
}

type load[V any] struct {
	done chan struct{}
	val  V
	err  error
}

// New returns a cache that holds values of at most limit total cost.
func New[K comparable, V any](limit int64) *Cache[K, V] {
	return &Cache[K, V]{limit: limit, entries: map[K]*list.Element{}, loading: map[K]*load[V]{}}
}

// Get returns the value of key, from the cache or from fetch, which is called once however many ask at a time. An
// error is given to all who asked and not kept.
func (c *Cache[K, V]) Get(key K, fetch func() (val V, cost int64, err error)) (V, error) {
	c.mu.Lock()
	if e := c.entries[key]; e != nil {
		c.order.MoveToFront(e)
		c.mu.Unlock()
		return e.Value.(*entry[K, V]).val, nil
	}
	if l := c.loading[key]; l != nil {
		c.mu.Unlock()
		<-l.done
		return l.val, l.err
	}
	l := &load[V]{done: make(chan struct{})}
	c.loading[key] = l
	c.mu.Unlock()

	var cost int64
	l.val, cost, l.err = fetch()

	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.loading, key)
	close(l.done)
	if l.err == nil {
		c.put(key, l.val, cost)
	}
	return l.val, l.err
}

// Has reports whether the value of key is in the cache now. It does not count as a use.
func (c *Cache[K, V]) Has(key K) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[key] != nil
}

func (c *Cache[K, V]) put(key K, val V, cost int64) {
	if c.entries[key] != nil {
		return
	}
	c.entries[key] = c.order.PushFront(&entry[K, V]{key, val, cost})
	c.cost += cost
	for c.cost > c.limit && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
}

// Clear drops every value.
func (c *Cache[K, V]) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.remove(c.order.Back())
	}
}

// Forget drops a value.
func (c *Cache[K, V]) Forget(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[key]; e != nil {
		c.remove(e)
	}
}

func (c *Cache[K, V]) remove(e *list.Element) {
	ent := c.order.Remove(e).(*entry[K, V])
	c.cost -= ent.cost
	delete(c.entries, ent.key)
}
