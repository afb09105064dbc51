package rescue

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/cmd/cairn/internal/failure"
	"github.com/cairn-backup/cairn/cmd/cairn/internal/output"
	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store"
)

// salvage reads an image and gives zeros for chunks that are damaged, which it remembers. It is used only where
// --damaged-as-zeros asks for it.
type salvage struct {
	*store.ImageReader
	disk string

	mu     sync.Mutex
	damage []store.Damage
}

// ReadAt reads chunk by chunk once a read of several failed, so that only what is damaged is lost.
func (s *salvage) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.ImageReader.ReadAt(p, off)
	if err == nil || n == len(p) || fault.KindOf(err) != fault.Corrupt {
		return n, err
	}
	chunk := int64(s.ChunkBytes())
	for done := 0; done < len(p); {
		at := off + int64(done)
		part := p[done:min(len(p), done+int(chunk-at%chunk))]
		n, err := s.ImageReader.ReadAt(part, at)
		if n < len(part) {
			if fault.KindOf(err) != fault.Corrupt {
				return done, err
			}
			clear(part)
			s.mu.Lock()
			s.damage = append(s.damage, store.Damage{Image: s.disk, Offset: at, Length: int64(len(part)), Cause: err.Error()})
			s.mu.Unlock()
		}
		done += len(part)
	}
	return len(p), nil
}

// tidy sorts damaged places and joins those that touch, keeping the first cause of each.
func tidy(damage []store.Damage) []store.Damage {
	damage = slices.Clone(damage)
	slices.SortFunc(damage, func(a, b store.Damage) int {
		return cmp.Or(strings.Compare(a.Image, b.Image), cmp.Compare(a.Offset, b.Offset))
	})
	var out []store.Damage
	for _, d := range damage {
		if i := len(out) - 1; i >= 0 && out[i].Image == d.Image && out[i].Offset+out[i].Length == d.Offset {
			out[i].Length += d.Length
			continue
		}
		out = append(out, d)
	}
	return out
}

// places writes damaged places for people, the first of them only.
func places(damage []store.Damage) string {
	const most = 20
	var b strings.Builder
	for i, d := range damage {
		if i == most {
			fmt.Fprintf(&b, "\nand %d more; -o json lists them", len(damage)-most)
			break
		}
		where := fmt.Sprintf("disk %s, %s at offset %d", d.Image, output.Size(d.Length), d.Offset)
		if d.Image == "" || strings.HasPrefix(d.Image, "document ") {
			where = d.Image
		}
		b.WriteString("\n" + where + ": " + d.Cause)
	}
	return b.String()
}

// explainSalvaged says which parts of an exported disk are zeros only because they are damaged.
func (t *tool) explainSalvaged(e exported) error {
	if len(e.Damage) == 0 {
		return nil
	}
	failure.Explain(t.Err, "Damaged", "parts of "+e.File+" are not what was backed up"+places(e.Damage),
		"These ranges could not be read and were written as zeros; everything else is proven.",
		"Use the file to get data out, not as if it were the disk. Check the file systems in it first.", t.ColourErr())
	return failure.Ended{Code: failure.Warning}
}
