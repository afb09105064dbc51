package httpapi

import (
	"context"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/appliance/catalog"
)

func (h *handlers) ListKeys(ctx context.Context, r server.ListKeysRequestObject) (server.ListKeysResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	keys, err := h.s.core.ListKeys(ctx, r.RepositoryID)
	if err != nil {
		return nil, err
	}
	return server.ListKeys200JSONResponse{Items: each(keys, keyOf)}, nil
}

func (h *handlers) GetKey(ctx context.Context, r server.GetKeyRequestObject) (server.GetKeyResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	keys, err := h.s.core.ListKeys(ctx, r.RepositoryID)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.ID == r.KeyID {
			return server.GetKey200JSONResponse(keyOf(k)), nil
		}
	}
	return nil, none("key", r.KeyID)
}

func (h *handlers) AddKey(ctx context.Context, r server.AddKeyRequestObject) (server.AddKeyResponseObject, error) {
	b := r.Body
	var w wrongs
	by, given := givenKey(b.By)
	w.add(given > 1, "#/by", "exactly one key is needed")
	w.add(b.Kind == server.KeyFile && b.KeyFile == "" && given == 0, "#/key_file", "it is missing")
	w.add(b.Kind != server.KeyFile && b.KeyFile != "", "#/key_file", "this kind of key has none")
	w.add(b.Kind == server.KeyAge && b.Recipient == "", "#/recipient", "it is missing")
	w.add(b.Kind != server.KeyAge && b.Recipient != "", "#/recipient", "this kind of key has none")
	if err := w.err(); err != nil {
		return nil, err
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	key, page, err := h.s.core.AddKey(ctx, r.RepositoryID, NewKey{
		Kind: string(b.Kind), Label: b.Label, Recipient: b.Recipient, KeyFile: b.KeyFile, By: by,
	})
	if err != nil {
		return nil, err
	}
	h.note(ctx, "key.add", key.ID, string(b.Kind)+" of "+r.RepositoryID)
	return server.AddKey201JSONResponse{Key: keyOf(key), Paper: string(page)}, nil
}

func (h *handlers) RemoveKey(ctx context.Context, r server.RemoveKeyRequestObject) (server.RemoveKeyResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	if err := h.s.core.RemoveKey(ctx, r.RepositoryID, r.KeyID); err != nil {
		return nil, err
	}
	h.note(ctx, "key.remove", r.KeyID, "of "+r.RepositoryID)
	return server.RemoveKey204Response{}, nil
}

func (h *handlers) RotateKey(ctx context.Context, r server.RotateKeyRequestObject) (server.RotateKeyResponseObject, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	key, err := h.s.core.RotateKey(ctx, r.RepositoryID)
	if err != nil {
		return nil, err
	}
	h.note(ctx, "key.rotate", key.ID, "of "+r.RepositoryID)
	return server.RotateKey200JSONResponse(keyOf(key)), nil
}

func (h *handlers) DrillKey(ctx context.Context, r server.DrillKeyRequestObject) (server.DrillKeyResponseObject, error) {
	key, given := givenKey(*r.Body)
	var w wrongs
	w.add(given != 1, "#", "exactly one key is needed")
	if err := w.err(); err != nil {
		return nil, err
	}
	ctx, cancel := patiently(ctx)
	defer cancel()
	d, err := h.s.core.DrillKey(ctx, r.RepositoryID, key)
	if err != nil {
		return nil, err
	}
	return server.DrillKey200JSONResponse{
		DrilledAt: d.Time.UTC(), RepositoryID: d.RepositoryID, StoreID: d.Repository, Name: d.Name, PublicKey: d.PublicKey,
		Key: keyOf(KeyInfo{Wrapping: d.Wrapping, InUse: d.InUse}), RestorePointID: d.RestorePoint, VMName: d.VMName,
		Series: d.Series, PublishedAt: d.Published.UTC(), Pack: d.Pack, ReadBytes: int64(d.FrameBytes),
	}, nil
}

// givenKey translates a key and counts how many were given.
func givenKey(b server.DrillRequest) (key GivenKey, given int) {
	for _, text := range []string{b.PaperKey, b.Identity, b.Key, b.KeySource} {
		if text != "" {
			given++
		}
	}
	return GivenKey{
		Paper: catalog.Secret(b.PaperKey), Identity: catalog.Secret(b.Identity), Key: catalog.Secret(b.Key), Source: b.KeySource,
	}, given
}

func keyOf(k KeyInfo) server.Key {
	return server.Key{
		ID: k.ID, Kind: server.KeyKind(k.Kind), Key: k.Key, Label: k.Label, CreatedAt: k.Created.UTC(), InUse: k.InUse,
		Problem: k.Problem,
	}
}
