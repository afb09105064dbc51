package store

import (
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/pack"
)

// coding is how what is written is compressed; with its coder everything can be read.
type coding struct {
	how   pack.Compression
	coder *pack.Coder
}

// SetCompression changes how what is written is compressed: one of pack.Compressions, "" is pack.Standard. Packs and images
// under way go on as they began; what is stored stays as it is, and is found as before. Invalid: there is no such
// compression.
func (r *Repository) SetCompression(name string) error {
	how, err := pack.ParseCompression(name)
	if err != nil {
		return fault.Wrap(fault.Invalid, "set compression of repository", r.b.Location(), err)
	}
	if now := r.coding.Load(); now != nil && now.how == how {
		return nil
	}
	coder, err := pack.NewCoder(how)
	if err != nil {
		return fault.Wrap(fault.Internal, "set compression of repository", r.b.Location(), err)
	}
	r.coding.Store(&coding{how, coder}) // the one before may be in use, and holds nothing but memory
	return nil
}

func (r *Repository) coder() *pack.Coder { return r.coding.Load().coder }
