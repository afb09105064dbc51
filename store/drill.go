package store

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/chunk"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
	"github.com/cairn-backup/cairn/store/tree"
)

// DrillReport says what a key was proven to open.
type DrillReport struct {
	Time         time.Time `json:"time"`
	Repository   string    `json:"repository"` // id
	Name         string    `json:"name"`
	PublicKey    string    `json:"public_key"`              // of the repository: to be compared with what was noted when the key was made
	Wrapping     Wrapping  `json:"wrapping"`                // the one that was opened
	RestorePoint string    `json:"restore_point,omitempty"` // the newest, proven; "" if the repository has none
	Series       string    `json:"series,omitempty"`
	Published    time.Time `json:"published,omitzero"`
	Pack         string    `json:"pack,omitempty"` // a frame of it was opened; "" if all disks are zeros
	FrameBytes   int       `json:"frame_bytes,omitempty"`
}

// Drill proves that a key that was put away still opens the repository: it opens a wrapping of the key set, checks the
// signature of config, proves the newest restore point and opens one frame of its data. It takes no lock and
// writes nothing. It looks for the frame in the packs themselves, so in a large repository it takes a while.
func Drill(ctx context.Context, b blob.Store, by Opener) (DrillReport, error) {
	g, err := openRing(ctx, b, by)
	if err != nil {
		return DrillReport{}, err
	}
	defer g.wipe()
	report := DrillReport{
		Time: time.Now().UTC(), Repository: g.config.Repository, Name: g.config.Name, PublicKey: g.file.PublicKey,
		Wrapping: g.by.public(g.keys.Public()),
	}
	d := drill{ring: g, r: &Repository{b: b, o: Options{ReadOnly: true}, id: g.id, keys: g.keys, config: g.config, hasher: chunk.NewHasher(g.keys.IDs)}}
	if err := d.run(ctx, &report); err != nil {
		return report, fault.Context("drill with "+by.String(), b.Location(), err)
	}
	return report, nil
}

type drill struct {
	*ring
	r     *Repository // never opened: for loading a restore point, without repairing anything
	coder *pack.Coder
	metas []packAt // packs of kind meta, once they are known
	datas []packAt
}

type packAt struct {
	id   seal.ID
	size int64
}

func (d *drill) run(ctx context.Context, report *DrillReport) (err error) {
	p, err := d.newest(ctx)
	if p == nil || err != nil {
		return err
	}
	report.RestorePoint, report.Series, report.Published = p.ID, p.Series, p.Published
	if d.coder, err = pack.NewCoder(pack.Standard); err != nil {
		return err
	}
	defer d.coder.Close()
	if err := d.sort(ctx); err != nil {
		return err
	}
	for _, im := range p.Images {
		ids, err := d.chunks(ctx, im.Ref)
		if err != nil {
			return err
		}
		if len(ids) == 0 {
			continue // nothing but zeros
		}
		rd, e, err := d.find(ctx, d.datas, ids...)
		if err != nil {
			return err
		}
		frame, err := rd.Frame(ctx, e.Frame, d.coder, &pack.Buffers{})
		if err != nil {
			return fault.Wrap(fault.Corrupt, "read pack", pack.Name(rd.Directory().Header.ID), err)
		}
		report.Pack, report.FrameBytes = pack.Name(rd.Directory().Header.ID), len(frame)
		return nil
	}
	return nil
}

// newest returns the newest restore point; ids sort by time.
func (d *drill) newest(ctx context.Context) (*point, error) {
	var ids []string
	for info, err := range d.b.List(ctx, manifestFolder) {
		if err != nil {
			return nil, err
		}
		ids = append(ids, strings.TrimPrefix(info.Name, manifestFolder))
	}
	slices.Sort(ids)
	for _, id := range slices.Backward(ids) {
		p, err := d.r.loadPoint(ctx, id)
		if fault.KindOf(err) == fault.NotFound {
			continue // pruned meanwhile, or no restore point's name
		}
		return p, err
	}
	return nil, nil
}

// sort separates the packs by their headers.
func (d *drill) sort(ctx context.Context) error {
	for info, err := range d.b.List(ctx, pack.Folder) {
		if err != nil {
			return err
		}
		id, err := pack.ParseName(info.Name)
		if err != nil {
			continue
		}
		p := make([]byte, pack.HeaderBytes)
		if err := d.b.ReadAt(ctx, info.Name, p, 0); err != nil {
			continue // what is needed and cannot be read will be missed
		}
		h, err := pack.ParseHeader(p)
		switch {
		case err != nil:
		case h.Kind == pack.Meta:
			d.metas = append(d.metas, packAt{id, info.Size})
		default:
			d.datas = append(d.datas, packAt{id, info.Size})
		}
	}
	return nil
}

// find returns an entry with one of the ids that has bytes. A remainder after compaction may have nothing but
// references; what those lead to are copies with bytes, which is looked into for a few of them only: a chain of such
// remainders is damage.
func (d *drill) find(ctx context.Context, packs []packAt, ids ...Hash) (*pack.Reader, *pack.Entry, error) {
	for range 8 {
		rd, e, err := d.findOne(ctx, packs, ids...)
		if err != nil || e.Length > 0 || len(e.Refs) == 0 {
			return rd, e, err
		}
		ids = []Hash{e.Refs[0].Target}
	}
	return nil, nil, fault.New(fault.Corrupt, "find data", ids[0].Short(), "references lead only to references").Explain(
		"The packs of the newest restore point refer to each other in a way that no writer makes.", "Run a check and a verification of the repository.")
}

func (d *drill) findOne(ctx context.Context, packs []packAt, ids ...Hash) (*pack.Reader, *pack.Entry, error) {
	for i, p := range packs {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		rd, err := pack.Open(ctx, d.b, d.id, p.id, p.size, d.r.secrets)
		if err != nil {
			continue
		}
		for j := range rd.Directory().Entries {
			e := &rd.Directory().Entries[j]
			if !slices.Contains(ids, e.ID) {
				continue
			}
			packs[0], packs[i] = packs[i], packs[0] // what comes next is likely to be here too
			return rd, e, nil
		}
	}
	return nil, nil, fault.New(fault.Corrupt, "find data", ids[0].Short(), "no pack that can be read has it").Explain(
		"Data of the newest restore point is missing or damaged.", "Run a check and a verification of the repository.")
}

// object returns a proven object of a meta pack.
func (d *drill) object(ctx context.Context, id Hash, hash func([]byte) Hash) ([]byte, error) {
	rd, e, err := d.find(ctx, d.metas, id)
	if err != nil {
		return nil, err
	}
	frame, err := rd.Frame(ctx, e.Frame, d.coder, &pack.Buffers{})
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, "read pack", pack.Name(rd.Directory().Header.ID), err)
	}
	p := frame[e.Offset : e.Offset+e.Length]
	if hash(p) != id {
		return nil, fault.New(fault.Corrupt, "read object", id.Short(), "it is not what its id says")
	}
	return p, nil
}

// chunks returns chunks of an image: those of its first leaf.
func (d *drill) chunks(ctx context.Context, ref ImageRef) (ids []Hash, err error) {
	p, err := d.object(ctx, ref.Root, d.r.hasher.Image)
	if err != nil {
		return nil, err
	}
	head, err := tree.ParseHead(p)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, "read image", ref.Root.Short(), err)
	}
	next := []Hash{head.Top}
	if head.Top.IsZero() {
		return nil, nil
	}
	for level := int(head.Height) - 1; level >= 0; level-- {
		p, err := d.object(ctx, next[0], d.r.hasher.Node)
		if err != nil {
			return nil, err
		}
		n, err := tree.Parse(p, uint8(level))
		if err != nil {
			return nil, fault.Wrap(fault.Corrupt, "read image", ref.Root.Short(), err)
		}
		next = next[:0]
		for _, c := range n.Children {
			if !c.IsZero() {
				next = append(next, c)
			}
		}
	}
	return next, nil
}
