package nbd

import (
	"context"
	"io"
)

// Backend is what a Server exports. Its methods may be called from several goroutines. Ranges are always inside Size.
// Errors reach the client as an Errno: one found in the chain, else one that fits the error's kind.
type Backend interface {
	io.ReaderAt
	io.WriterAt
	// Zero makes a range read as zeros.
	Zero(ctx context.Context, offset, length int64) error
	// Flush returns after everything written so far is durable.
	Flush(ctx context.Context) error
	Size() int64
	// Extents describes a range in one of the export's contexts. The list covers a prefix of the range, at least a byte;
	// the last extent may reach beyond it. It is called for contexts of Export.Contexts only.
	Extents(ctx context.Context, name string, offset, length int64) ([]Extent, error)
}

// Export is one disk a Server offers.
type Export struct {
	Name        string
	Description string
	Backend     Backend
	ReadOnly    bool
	// Contexts the backend can answer, BaseAllocation and dirty ones ("qemu:dirty-bitmap:…").
	Contexts []string
	// MultiConn promises that a flush on one connection covers what was written on all.
	MultiConn bool
	// MinBlock, PreferredBlock and MaxBlock are told to clients that ask; 0 means 1, 4096 and 32 MiB. Requests that do
	// not keep to MinBlock and MaxBlock are refused.
	MinBlock, PreferredBlock, MaxBlock int
}

func (e *Export) blocks() (minimum, preferred, maximum int) {
	return orDefault(e.MinBlock, 1), max(orDefault(e.PreferredBlock, 4096), e.MinBlock), min(orDefault(e.MaxBlock, maxPayload), maxPayload)
}

func (e *Export) flags() uint16 {
	f := uint16(flagHasFlags | flagSendDF)
	if e.MultiConn {
		f |= flagCanMultiConn
	}
	if e.ReadOnly {
		return f | flagReadOnly
	}
	return f | flagSendFlush | flagSendFUA | flagSendWriteZero
}
