package qcow2

import (
	"container/list"
	"sync"
)

// cacheKey names a slice of a table: the layer's depth and the place in its file.
type cacheKey struct {
	depth int
	place int64
}

// cache holds slices of mapping tables of a whole chain, those used last, up to a number of bytes. What it returns is
// not changed any more.
type cache struct {
	mu    sync.Mutex
	limit int
	bytes int
	slots map[cacheKey]*list.Element
	order *list.List // most recent first
}

type slot struct {
	key cacheKey
	p   []byte
}

func newCache(limit int) *cache {
	return &cache{limit: limit, slots: map[cacheKey]*list.Element{}, order: list.New()}
}

func (c *cache) get(k cacheKey) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.slots[k]
	if !ok {
		return nil, false
	}
	c.order.MoveToFront(e)
	return e.Value.(slot).p, true
}

func (c *cache) put(k cacheKey, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.slots[k]; ok {
		return // another reader was faster
	}
	c.slots[k] = c.order.PushFront(slot{k, p})
	c.bytes += len(p)
	for c.bytes > c.limit && c.order.Len() > 1 {
		last := c.order.Remove(c.order.Back()).(slot)
		delete(c.slots, last.key)
		c.bytes -= len(last.p)
	}
}
