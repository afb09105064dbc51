package store

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/index"
	"github.com/cairn-backup/cairn/store/pack"
)

// piece is what is wanted of one frame: blocks of an entry, for a chunk to be proven.
type piece struct {
	at    frameKey
	rd    *pack.Reader
	e     *pack.Entry // whose bytes lie in the frame
	c     *gathering
	takes []take
}

// take is one block: From is where it is among the entry's, To where it is in the chunk.
type take struct{ from, to uint8 }

// gathering is a chunk whose block hashes come from several frames.
type gathering struct {
	id     Hash
	blocks []Hash // the zero hash is that of no block
}

// provenChunks proves chunks in the order of packs, decoding each frame once, and returns those that are good by
// their first copies. That the others are damaged is not said.
func (r *Repository) provenChunks(ctx context.Context, window []place) (map[Hash]bool, error) {
	good := map[Hash]bool{}
	var pieces []piece
	var chunks []*gathering
	for _, p := range window {
		if _, seen := good[p.id]; seen || p.id.IsZero() {
			continue
		}
		good[p.id] = false
		c := &gathering{id: p.id, blocks: make([]Hash, r.blocks)}
		wanted, err := r.pieces(ctx, c)
		if err != nil && !damaged(err) {
			return nil, err
		}
		if err == nil && wanted != nil {
			pieces, chunks = append(pieces, wanted...), append(chunks, c)
		}
	}
	slices.SortFunc(pieces, func(a, b piece) int {
		return cmp.Or(bytes.Compare(a.at.pack[:], b.at.pack[:]), cmp.Compare(a.at.frame, b.at.frame))
	})
	if err := r.gather(ctx, pieces); err != nil {
		return nil, err
	}
	for _, c := range chunks {
		good[c.id] = r.hasher.Join(c.blocks) == c.id
	}
	return good, nil
}

// pieces says where the blocks of a chunk are; nil if they are not all to be found.
func (r *Repository) pieces(ctx context.Context, c *gathering) ([]piece, error) {
	var buf [4]index.Location
	places, err := r.idx.Lookup(buf[:0], c.id)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, "look up", c.id.Short(), err)
	}
	for _, at := range places {
		if r.idx.IsSuspect(at.Pack) && len(places) > 1 {
			continue
		}
		rd, e, err := r.entry(ctx, at)
		if err != nil {
			return nil, err
		}
		if e.ID == c.id && e.Type == pack.Chunk {
			return r.piecesOf(ctx, c, rd, e)
		}
	}
	return nil, nil
}

func (r *Repository) piecesOf(ctx context.Context, c *gathering, rd *pack.Reader, e *pack.Entry) ([]piece, error) {
	own := newPiece(c, rd, e)
	var out []piece
	foreign := map[Hash][]take{}
	for i, refs := 0, e.Refs; i < r.blocks; i++ {
		switch bit := uint64(1) << i; {
		case e.Present&bit != 0:
			own.takes = append(own.takes, take{uint8(len(own.takes)), uint8(i)})
		case e.Zeros&bit != 0:
			c.blocks[i] = r.hasher.ZeroBlock()
		default:
			foreign[refs[0].Target] = append(foreign[refs[0].Target], take{refs[0].Block, uint8(i)})
			refs = refs[1:]
		}
	}
	if len(own.takes) > 0 {
		out = append(out, own)
	}
	for target, takes := range foreign {
		err := r.eachCopy(ctx, pack.Chunk, target, func(rd *pack.Reader, e *pack.Entry) error {
			p := newPiece(c, rd, e)
			for _, t := range takes {
				at, ok := blockAt(e, t.from)
				if !ok {
					return fault.New(fault.Corrupt, "read chunk", target.Short(), "this copy does not have block %d", t.from)
				}
				p.takes = append(p.takes, take{uint8(at / chunk.BlockBytes), t.to})
			}
			out = append(out, p)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func newPiece(c *gathering, rd *pack.Reader, e *pack.Entry) piece {
	return piece{at: frameKey{rd.Directory().Header.ID, e.Frame}, rd: rd, e: e, c: c}
}

// gather reads the frames that pieces, in order, lie in.
func (r *Repository) gather(ctx context.Context, pieces []piece) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.o.Workers)
	for len(pieces) > 0 {
		n := 1
		for n < len(pieces) && pieces[n].at == pieces[0].at {
			n++
		}
		here := pieces[:n]
		pieces = pieces[n:]
		g.Go(func() error { return r.gatherFrame(ctx, here) })
	}
	return g.Wait()
}

func (r *Repository) gatherFrame(ctx context.Context, pieces []piece) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	plain, err := r.frame(ctx, pieces[0].rd, pieces[0].at.frame)
	if err != nil && !damaged(err) {
		return err
	}
	if err != nil {
		return nil // without these hashes no id comes out
	}
	for i := range pieces {
		p := &pieces[i]
		data := plain[p.e.Offset : p.e.Offset+p.e.Length]
		for takes := p.takes; len(takes) > 0; {
			n := run(takes)
			from, to := int(takes[0].from), int(takes[0].to)
			r.hasher.Blocks(data[from*chunk.BlockBytes:(from+n)*chunk.BlockBytes], p.c.blocks[to:to+n])
			takes = takes[n:]
		}
	}
	return nil
}

// run returns how many of the first takes follow each other on both sides.
func run(takes []take) int {
	n := 1
	for n < len(takes) && int(takes[n].from) == int(takes[0].from)+n && int(takes[n].to) == int(takes[0].to)+n {
		n++
	}
	return n
}
