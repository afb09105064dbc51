package store

import ()

// roots are what must be kept now.
type roots struct {
	images    map[ImageRef]struct{}
	documents map[Hash]struct{}
}

// roots returns what restore points, sessions and readers of this process rely on.
func (r *Repository) roots() roots {
	out := roots{map[ImageRef]struct{}{}, map[Hash]struct{}{}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.points {
		out.add(p)
	}
	r.addRunning(out)
	return out
}

func (rs roots) add(p *point) {
	for _, im := range p.Images {
		rs.images[im.Ref] = struct{}{}
	}
	for _, pieces := range p.pieces {
		for _, id := range pieces {
			rs.documents[id] = struct{}{}
		}
	}
}

// addRunning adds what sessions and readers rely on. r.mu is held.
func (r *Repository) addRunning(out roots) {
	for s := range r.sessions {
		s.mu.Lock()
		for ref := range s.images {
			out.images[ref] = struct{}{}
		}
		s.mu.Unlock()
	}
	for ref := range r.reading {
		out.images[ref] = struct{}{}
	}
}
