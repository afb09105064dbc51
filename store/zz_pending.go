package store

import (
	"context"
	"iter"

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

var errPending = fault.New(fault.Unsupported, "store", "", "not built yet")

func Open(ctx context.Context, b blob.Store, k Key, o Options) (*Repository, error) {
	return nil, errPending
}

type Repository struct{}

func (r *Repository) ID() string      { return "" }
func (r *Repository) ChunkBytes() int { return 0 }
func (r *Repository) Close() error    { return errPending }
func (r *Repository) Begin(ctx context.Context, o SessionOptions) (*Session, error) {
	return nil, errPending
}
func (r *Repository) RestorePoints(ctx context.Context) ([]RestorePoint, error) {
	return nil, errPending
}
func (r *Repository) RestorePoint(ctx context.Context, id string) (RestorePoint, error) {
	return RestorePoint{}, errPending
}
func (r *Repository) Document(ctx context.Context, id, name string) ([]byte, error) {
	return nil, errPending
}
func (r *Repository) OpenImage(ctx context.Context, ref ImageRef) (*ImageReader, error) {
	return nil, errPending
}
func (r *Repository) Verify(ctx context.Context, id string, progress func(done, total int64)) (VerifyReport, error) {
	return VerifyReport{}, errPending
}
func (r *Repository) Check(ctx context.Context) (CheckReport, error) {
	return CheckReport{}, errPending
}
func (r *Repository) Prune(ctx context.Context, ids ...string) error { return errPending }
func (r *Repository) Collect(ctx context.Context, o CollectOptions) (CollectReport, error) {
	return CollectReport{}, errPending
}
func (r *Repository) Usage(ctx context.Context) (Usage, error) { return Usage{}, errPending }

type Session struct{}

func (s *Session) NewImage(ctx context.Context, o ImageOptions) (*ImageWriter, error) {
	return nil, errPending
}
func (s *Session) Publish(ctx context.Context, m Manifest) (RestorePoint, error) {
	return RestorePoint{}, errPending
}
func (s *Session) Abort(ctx context.Context) error { return errPending }

type ImageWriter struct{}

func (w *ImageWriter) ChunkBytes() int                                      { return 0 }
func (w *ImageWriter) Write(ctx context.Context, off int64, p []byte) error { return errPending }
func (w *ImageWriter) Zero(ctx context.Context, off, n int64) error         { return errPending }
func (w *ImageWriter) Stats() ImageStats                                    { return ImageStats{} }
func (w *ImageWriter) Finish(ctx context.Context) (ImageRef, error)         { return ImageRef{}, errPending }

type ImageReader struct{}

func (i *ImageReader) ReadAt(p []byte, off int64) (int, error) { return 0, errPending }
func (i *ImageReader) Size() int64                             { return 0 }
func (i *ImageReader) ChunkBytes() int                         { return 0 }
func (i *ImageReader) Close() error                            { return nil }
func (i *ImageReader) Extents(ctx context.Context) iter.Seq2[Extent, error] {
	return func(func(Extent, error) bool) {}
}
