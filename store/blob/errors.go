package blob

import "github.com/cairn-backup/cairn/internal/fault"

func tooLong(name string, size, limit int64) error {
	return fault.New(fault.Corrupt, "read object", name, "it has %d bytes, more than the %d such an object may have", size, limit)
}
