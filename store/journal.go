package store

import "context"

func (w *ImageWriter) note(context.Context, int64, Hash) error       { return nil }
func (w *ImageWriter) noteZeros(context.Context, int64, int64) error { return nil }
func (w *ImageWriter) checkpoint(context.Context) error              { return nil }
