package store

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
	"github.com/cairn-backup/cairn/store/manifest"
	"github.com/cairn-backup/cairn/store/pack"
	"github.com/cairn-backup/cairn/store/seal"
)

// Publish makes a restore point of the session's images and ends the session. The order is the promise: packs
// durable, then the index, then the signed manifest; on return the restore point survives any crash. After an error
// nothing is visible, and the caller calls Abort; only an error of the very last step, the fsync of the manifest's
// directory entry, leaves it open whether the restore point appears.
func (s *Session) Publish(ctx context.Context, m Manifest) (RestorePoint, error) {
	s.life.Lock()
	defer s.life.Unlock()
	if s.over {
		return RestorePoint{}, fault.New(fault.Conflict, "publish restore point", s.o.Series, "the session is over")
	}
	if err := s.failed(); err != nil {
		return RestorePoint{}, fault.Context("publish restore point", s.o.Series, err)
	}
	p, err := s.publish(ctx, m)
	if err != nil {
		err = s.r.overtaken(ctx, err)
		return RestorePoint{}, fault.Context("publish restore point", s.o.Series, s.fail(err))
	}
	s.over = true
	if err := s.endCarriers(ctx); err != nil {
		s.r.log.Warn("unfinished packs are left to the next open", "err", err)
	}
	if err := s.end(context.WithoutCancel(ctx)); err != nil {
		s.r.log.Warn("lease is left to the next open", "lease", s.lease, "err", err)
	}
	return p.RestorePoint, nil
}

func (s *Session) publish(ctx context.Context, m Manifest) (*point, error) {
	if err := s.checkManifest(&m); err != nil {
		return nil, err
	}
	pieces, err := s.storeDocuments(ctx, m.Documents)
	if err != nil {
		return nil, err
	}
	fault.Point("store.publish.documents-stored")
	if err := s.storeMeta(ctx); err != nil {
		return nil, err
	}
	fault.Point("store.publish.meta-stored")
	s.written, err = s.flush(ctx, pack.Data, pack.Meta)
	if err != nil {
		return nil, err
	}
	fault.Point("backup.packs-durable")
	for _, d := range s.written {
		if err := s.indexPack(d); err != nil {
			return nil, err
		}
	}
	s.written = nil
	fault.Point("backup.index-written")
	if err := s.checkPins(ctx); err != nil {
		return nil, err
	}
	fault.Point("store.publish.pins-checked")
	if s.o.Resumable { // or a crash from here on could have it published twice
		if err := s.endLease(ctx); err != nil {
			return nil, err
		}
	}
	p, err := s.putManifest(ctx, m, pieces)
	if err != nil {
		return nil, err
	}
	fault.Point("backup.manifest-written")
	return p, nil
}

// checkManifest refuses a manifest that could not be restored from.
func (s *Session) checkManifest(m *Manifest) error {
	if m.Series == "" {
		m.Series = s.o.Series
	}
	if m.Series != s.o.Series {
		return fault.New(fault.Invalid, "check manifest", m.Series, "the session is for series %q", s.o.Series)
	}
	if err := checkTexts(m); err != nil {
		return err
	}
	names := map[string]bool{}
	for _, im := range m.Images {
		if names["i"+im.Name] || im.Name == "" {
			return fault.New(fault.Invalid, "check manifest", m.Series, "two images have the name %q, or it is empty", im.Name)
		}
		names["i"+im.Name] = true
		s.mu.Lock()
		_, ok := s.finished[im.Ref]
		s.mu.Unlock()
		if !ok && !s.r.keep(s, im.Ref) {
			return fault.New(fault.Invalid, "check manifest", m.Series, "image %q is neither of this session nor of a restore point", im.Name)
		}
	}
	for _, d := range m.Documents {
		if names["d"+d.Name] || d.Name == "" || len(d.Data) > maxDocument {
			return fault.New(fault.Invalid, "check manifest", m.Series, "document %q of %d bytes: its name is taken or empty, or it is too long", d.Name, len(d.Data))
		}
		names["d"+d.Name] = true
	}
	return nil
}

func (s *Session) storeDocuments(ctx context.Context, docs []Document) ([][]Hash, error) {
	pieces := make([][]Hash, len(docs))
	for i, d := range docs {
		for at := 0; at < len(d.Data); at += documentPiece {
			id, err := s.putObject(ctx, pack.Document, d.Data[at:min(at+documentPiece, len(d.Data))])
			if err != nil {
				return nil, err
			}
			pieces[i] = append(pieces[i], id)
		}
	}
	return pieces, nil
}

// putManifest signs the manifest, chained to the one before it, and makes it visible.
func (s *Session) putManifest(ctx context.Context, m Manifest, pieces [][]Hash) (*point, error) {
	r := s.r
	r.publishing.Lock()
	defer r.publishing.Unlock()
	id, raw := newPointID()
	p := &point{pieces: pieces, RestorePoint: RestorePoint{ID: id, Sequence: 1, Published: time.Now().UTC(), Manifest: m}}
	p.Documents = nil
	for _, d := range m.Documents {
		p.Documents = append(p.Documents, Document{Name: d.Name, MediaType: d.MediaType, SizeBytes: int64(len(d.Data))})
	}
	rec := record{Format: formatVersion, Pieces: pieces}
	if head := r.head(m.Series); head != nil {
		p.Previous, p.Sequence = head.ID, head.Sequence+1
		p.previousHash = hex.EncodeToString(head.hash[:])
		rec.PreviousHash = hex.EncodeToString(head.hash[:])
	}
	gone, err := r.prunedOf(ctx, r.seriesKey(m.Series))
	if err != nil {
		return nil, err
	}
	p.Sequence = max(p.Sequence, gone.last()+1) // a number is given once
	rec.Point = p.RestorePoint
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "encode manifest", m.Series, err)
	}
	p.hash = r.hasher.Manifest(body)
	return p, r.showPoint(ctx, p, raw, body)
}

func (r *Repository) showPoint(ctx context.Context, p *point, raw seal.ID, body []byte) error {
	object, err := manifest.Encode(r.keys, r.o.Cipher, r.id, raw, body)
	if err != nil {
		return fault.Wrap(fault.Internal, "encode manifest", p.ID, err)
	}
	if len(object) > maxManifest {
		return fault.New(fault.Invalid, "encode manifest", p.ID, "it has %d bytes", len(object))
	}
	if err := r.fence(ctx); err != nil {
		return err
	}
	fault.Point("store.publish.fenced")
	// Until the point is known, the session's pins keep its packs; no collect decides in between.
	r.gc.RLock()
	defer r.gc.RUnlock()
	if err := blob.Put(ctx, r.b, manifestName(p.ID), object); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.points[p.ID] = p
	return nil
}
