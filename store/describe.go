package store

import (
	"context"
	_ "embed" // the description and the second reader go into every repository

	"github.com/cairn-backup/cairn/internal/fault"
	"github.com/cairn-backup/cairn/store/blob"
)

// What every repository says about itself, for the day when there is nothing else at hand. Never needed for opening.
var (
	//go:embed FORMAT.md
	formatText []byte
	//go:embed reader/cairn_reader.py
	readerText []byte
)

// describe stores the description of the format and a reader in b, unless they are there.
func describe(ctx context.Context, b blob.Store) error {
	for _, o := range []struct {
		name string
		data []byte
	}{{formatName, formatText}, {readerName, readerText}} {
		_, err := b.Stat(ctx, o.name)
		if fault.KindOf(err) == fault.NotFound {
			err = blob.Put(ctx, b, o.name, o.data)
		}
		if err != nil && fault.KindOf(err) != fault.Exists {
			return err
		}
	}
	return nil
}
