package store

import (
	"sync"

	"github.com/cairn-backup/cairn/store/seal"
)

// withheld are the packs that carriers were given leave for and that were not taken. Their carrier may remove them, so
// nobody else may come to know them, let alone to rely on them: listPacks leaves them out. Take and removal come one
// after the other, since whoever ends a carrier waits for its calls.
type withheld struct {
	listing sync.RWMutex // held shared from before packs are listed until each was looked for here

	mu  sync.Mutex
	ids map[seal.ID]struct{}
}

func (h *withheld) add(id seal.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ids == nil {
		h.ids = map[seal.ID]struct{}{}
	}
	h.ids[id] = struct{}{}
}

func (h *withheld) has(id seal.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.ids[id]
	return ok
}

// taken strikes off a pack that the index knows by now.
func (h *withheld) taken(id seal.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.ids, id)
}

// removed strikes off a pack that is not there any more. While a listing is under way, which may have seen it, it stays:
// names are never given twice.
func (h *withheld) removed(id seal.ID) {
	if h.listing.TryLock() {
		h.taken(id)
		h.listing.Unlock()
	}
}
