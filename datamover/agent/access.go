package agent

import (
	"context"

	"github.com/cairn-backup/cairn/datamover/transfer"
	"github.com/cairn-backup/cairn/store"
)

// Access is what a ticket allows: adding images to a session, or reading images of a repository. What it does not
// allow is nil.
type Access struct {
	Session    Session
	Repository Repository
	// Close ends what was opened for the ticket; nil if that is nothing. It is called when the transfer has ended.
	Close func() error
}

func (a Access) close() {
	if a.Close != nil {
		_ = a.Close() // what it wrote was finished or is worth nothing
	}
}

// Session takes new images. The manager publishes or aborts it.
type Session interface {
	NewImage(ctx context.Context, o store.ImageOptions) (ImageWriter, error)
}

// ImageWriter takes the content of one image; *store.ImageWriter is one and says what its methods promise.
type ImageWriter interface {
	transfer.ImageSink
	Finish(ctx context.Context) (store.ImageRef, error)
	Stats() store.ImageStats
}

// Repository opens images for reading.
type Repository interface {
	OpenImage(ctx context.Context, ref store.ImageRef) (ImageReader, error)
}

// ImageReader gives the content of one image; *store.ImageReader is one.
type ImageReader interface {
	transfer.ImageSource
	Close() error
}

// SessionOf is the session of a repository that this process has open.
func SessionOf(s *store.Session) Session { return openSession{s} }

// RepositoryOf is a repository that this process has open.
func RepositoryOf(r *store.Repository) Repository { return openRepository{r} }

type openSession struct{ *store.Session }

// NewImage implements Session.
func (s openSession) NewImage(ctx context.Context, o store.ImageOptions) (ImageWriter, error) {
	w, err := s.Session.NewImage(ctx, o)
	if err != nil {
		return nil, err // and not a nil writer in an interface
	}
	return w, nil
}

type openRepository struct{ *store.Repository }

// OpenImage implements Repository.
func (r openRepository) OpenImage(ctx context.Context, ref store.ImageRef) (ImageReader, error) {
	i, err := r.Repository.OpenImage(ctx, ref)
	if err != nil {
		return nil, err
	}
	return i, nil
}
