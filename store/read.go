package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// secrets answers the data key of a key set.
func (r *Repository) secrets(keyID uint32) ([32]byte, error) {
	if keyID != r.keys.ID {
		return [32]byte{}, fmt.Errorf("sealed with key set %d, which this key does not open", keyID)
	}
	return r.keys.Data, nil
}

// openPack reads a pack's directory.
func (r *Repository) openPack(ctx context.Context, id seal.ID, size int64) (*pack.Reader, error) {
	var rd *pack.Reader
	err := r.again(ctx, pack.Name(id), func() (err error) {
		rd, err = pack.Open(ctx, r.b, r.id, id, size, r.secrets)
		return err
	})
	if err == nil && rd.Directory().Blocks != r.blocks {
		err = fmt.Errorf("it has chunks of %d blocks, the repository of %d", rd.Directory().Blocks, r.blocks)
	}
	if err != nil {
		return nil, r.packError(id, err)
	}
	return rd, nil
}

// packError says which pack is damaged or missing, and makes it suspect; errors of the backend keep their kind.
func (r *Repository) packError(id seal.ID, err error) error {
	if errors.Is(err, pack.ErrNewer) {
		return fault.Wrap(fault.Unsupported, "read pack", pack.Name(id), err)
	}
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Kind != fault.Corrupt {
		if _, known := r.idx.Pack(id); f.Kind == fault.NotFound && known {
			r.suspect(id, err) // whoever removes a pack has made the index forget it first
		}
		return fault.Context("read pack", pack.Name(id), err)
	}
	if kind := fault.KindOf(err); kind == fault.Canceled || kind == fault.Transient {
		return fault.Wrap(kind, "read pack", pack.Name(id), err)
	}
	r.suspect(id, err)
	return fault.Wrap(fault.Corrupt, "read pack", pack.Name(id), err).Explain(
		"A file of the repository is not what was written: the disk under it, or somebody, changed it.",
		"Run a verification to see which restore points are touched, and check the disk; put the file back from a copy of the repository if there is one.")
}

// pack returns the reader of an indexed pack.
func (r *Repository) pack(ctx context.Context, id seal.ID) (*pack.Reader, error) {
	return r.directories.Get(id, func() (*pack.Reader, int64, error) {
		p, ok := r.idx.Pack(id)
		if !ok {
			return nil, 0, fault.New(fault.Corrupt, "read pack", pack.Name(id), "it is not there")
		}
		// What is fetched serves others too: it does not end with this caller.
		rd, err := r.openPack(context.WithoutCancel(ctx), id, p.Size)
		if err != nil {
			return nil, 0, err
		}
		return rd, rd.Directory().Cost(), nil
	})
}

// frame returns a frame's plaintext, which must not be changed.
func (r *Repository) frame(ctx context.Context, rd *pack.Reader, number uint32) ([]byte, error) {
	id := rd.Directory().Header.ID
	return r.frames.Get(frameKey{id, number}, func() ([]byte, int64, error) {
		bufs := r.bufs.Get().(*pack.Buffers)
		defer r.bufs.Put(bufs)
		var p []byte
		err := r.again(ctx, pack.Name(id), func() (err error) {
			p, err = rd.Frame(context.WithoutCancel(ctx), number, r.coder(), bufs)
			return err
		})
		r.decoded.Add(1)
		if err != nil {
			return nil, 0, r.packError(id, err)
		}
		return p, int64(len(p)), nil
	})
}

// entry returns the directory entry at a location.
func (r *Repository) entry(ctx context.Context, at index.Location) (*pack.Reader, *pack.Entry, error) {
	rd, err := r.pack(ctx, at.Pack)
	if err != nil {
		return nil, nil, err
	}
	entries := rd.Directory().Entries
	if int64(at.Slot) >= int64(len(entries)) {
		return nil, nil, fault.New(fault.Internal, "look up", pack.Name(at.Pack), "the index names slot %d of %d", at.Slot, len(entries))
	}
	return rd, &entries[at.Slot], nil
}

// eachCopy calls use with each stored copy of an object until one succeeds, also if a compaction moves it meanwhile.
// Without any it answers Corrupt.
func (r *Repository) eachCopy(ctx context.Context, typ pack.EntryType, id Hash, use func(*pack.Reader, *pack.Entry) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.moving(id, func(places []index.Location) error { return r.anyCopy(ctx, typ, id, places, use) })
}

func (r *Repository) anyCopy(ctx context.Context, typ pack.EntryType, id Hash, places []index.Location, use func(*pack.Reader, *pack.Entry) error) error {
	var errs []error
	for _, at := range places {
		rd, e, err := r.entry(ctx, at)
		if err == nil && (e.ID != id || e.Type != typ) {
			continue
		}
		if err == nil {
			if err = use(rd, e); err == nil {
				return nil
			}
		}
		errs = append(errs, err)
	}
	switch len(errs) {
	case 0:
		return fault.New(fault.Corrupt, "find", typeName(typ)+" "+id.Short(), "no pack has it").Explain(
			"Something that a restore point needs is not in the repository any more.",
			"Check that all files of the repository are there; put missing packs back from a copy if there is one.")
	case 1:
		return r.lost(errs[0])
	}
	return r.lost(fault.Wrap(fault.KindOf(errs[0]), "read", typeName(typ)+" "+id.Short(), errors.Join(errs...)))
}

// lost makes damage of a pack that is not there: the owner removes none that a reader needs. Whether it has, beside
// the owner, current finds out.
func (r *Repository) lost(err error) error {
	if fault.KindOf(err) != fault.NotFound {
		return err
	}
	return fault.Wrap(fault.Corrupt, "read repository", r.b.Location(), err).Explain(
		"A file that a restore point needs is not in the repository any more.",
		"Verify the restore points to see which are touched; put the file back from a copy of the repository if there is one.")
}

func typeName(t pack.EntryType) string {
	switch t {
	case pack.Chunk:
		return "chunk"
	case pack.Node:
		return "tree node"
	case pack.Image:
		return "image head"
	case pack.Document:
		return "document"
	}
	return fmt.Sprintf("object of type %d", t)
}

// slice returns the bytes of an entry; they must not be changed.
func (r *Repository) slice(ctx context.Context, rd *pack.Reader, e *pack.Entry) ([]byte, error) {
	p, err := r.frame(ctx, rd, e.Frame)
	if err != nil {
		return nil, err
	}
	return p[e.Offset : e.Offset+e.Length], nil
}

// object returns the proven bytes of a node, image head or document piece.
func (r *Repository) object(ctx context.Context, typ pack.EntryType, id Hash) (out []byte, err error) {
	err = r.eachCopy(ctx, typ, id, func(rd *pack.Reader, e *pack.Entry) error {
		p, err := r.slice(ctx, rd, e)
		if err != nil {
			return err
		}
		if got := r.objectID(typ, p); got != id {
			return r.wrong(rd, e, got)
		}
		out = p
		return nil
	})
	return out, err
}

func (r *Repository) objectID(typ pack.EntryType, p []byte) Hash {
	switch typ {
	case pack.Node:
		return r.hasher.Node(p)
	case pack.Image:
		return r.hasher.Image(p)
	}
	return r.hasher.Document(p)
}

func (r *Repository) wrong(rd *pack.Reader, e *pack.Entry, got Hash) error {
	d := rd.Directory()
	return r.packError(d.Header.ID, fmt.Errorf("%s %s in frame %d at offset %d has the content of %s",
		typeName(e.Type), e.ID.Short(), e.Frame, d.Frames[e.Frame].Offset, got.Short()))
}

// node returns a proven tree node, which must not be changed.
func (r *Repository) node(ctx context.Context, id Hash, level uint8) (*tree.Node, error) {
	n, err := r.nodes.Get(id, func() (*tree.Node, int64, error) {
		p, err := r.object(context.WithoutCancel(ctx), pack.Node, id)
		if err != nil {
			return nil, 0, err
		}
		n, err := tree.Parse(p, level)
		if err != nil {
			return nil, 0, fault.Wrap(fault.Corrupt, "read tree node", id.Short(), err)
		}
		return n, tree.NodeBytes, nil
	})
	if err == nil && n.Level != level {
		err = fault.New(fault.Corrupt, "read tree node", id.Short(), "it is of level %d, not %d", n.Level, level)
	}
	return n, err
}

// chunk fills dst, of exactly a chunk's size, with a proven chunk.
func (r *Repository) chunk(ctx context.Context, id Hash, dst []byte) error {
	return r.eachCopy(ctx, pack.Chunk, id, func(rd *pack.Reader, e *pack.Entry) error {
		if err := r.assemble(ctx, rd, e, dst); err != nil {
			return err
		}
		if got := r.hasher.Chunk(dst); got != id {
			return r.wrong(rd, e, got)
		}
		return nil
	})
}

// assemble puts a chunk together from the blocks that are here and those it refers to.
func (r *Repository) assemble(ctx context.Context, rd *pack.Reader, e *pack.Entry, dst []byte) error {
	var here []byte
	if e.Present != 0 {
		p, err := r.slice(ctx, rd, e)
		if err != nil {
			return err
		}
		if len(p) == len(dst) {
			copy(dst, p)
			return nil
		}
		here = p
	}
	refs := e.Refs
	for i := range r.blocks {
		block := dst[i*chunk.BlockBytes : (i+1)*chunk.BlockBytes]
		switch bit := uint64(1) << i; {
		case e.Present&bit != 0:
			copy(block, here)
			here = here[chunk.BlockBytes:]
		case e.Zeros&bit != 0:
			clear(block)
		default:
			if err := r.foreignBlock(ctx, refs[0], block); err != nil {
				return err
			}
			refs = refs[1:]
		}
	}
	return nil
}

// foreignBlock copies a block from a copy of another chunk that has it present.
func (r *Repository) foreignBlock(ctx context.Context, ref pack.Ref, dst []byte) error {
	return r.eachCopy(ctx, pack.Chunk, ref.Target, func(rd *pack.Reader, e *pack.Entry) error {
		at, ok := blockAt(e, ref.Block)
		if !ok {
			return fault.New(fault.Corrupt, "read chunk", ref.Target.Short(), "this copy does not have block %d", ref.Block)
		}
		p, err := r.slice(ctx, rd, e)
		if err != nil {
			return err
		}
		copy(dst, p[at:])
		return nil
	})
}

// document returns the proven content of a document.
func (r *Repository) document(ctx context.Context, d Document, pieces []Hash) ([]byte, error) {
	var out []byte
	for _, id := range pieces {
		p, err := r.object(ctx, pack.Document, id)
		if err != nil {
			return nil, err
		}
		out = append(out, p...)
	}
	if int64(len(out)) != d.SizeBytes {
		return nil, fault.New(fault.Corrupt, "read document", d.Name, "it has %d bytes, not %d", len(out), d.SizeBytes)
	}
	return out, nil
}
