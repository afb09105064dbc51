package agent

import (
	"context"

	"github.com/cairn-backup/cairn/store"
	"github.com/cairn-backup/cairn/store/remote"
)

// AccessOf is what a ticket allows whose repository another process has open. Closing it gives up an image that is not
// finished; what of it was durable stays for the next transfer with the same image.
func AccessOf(c *remote.Client) Access {
	return Access{Session: remoteSession{c}, Repository: remoteRepository{c}, Close: c.Close}
}

type remoteSession struct{ *remote.Client }

// NewImage implements Session.
func (s remoteSession) NewImage(ctx context.Context, o store.ImageOptions) (ImageWriter, error) {
	w, err := s.Client.NewImage(ctx, o)
	if err != nil {
		return nil, err
	}
	return w, nil
}

type remoteRepository struct{ *remote.Client }

// OpenImage implements Repository.
func (r remoteRepository) OpenImage(ctx context.Context, ref store.ImageRef) (ImageReader, error) {
	i, err := r.Client.OpenImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	return i, nil
}
