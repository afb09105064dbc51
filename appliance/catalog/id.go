package catalog

import (
	"strings"

	"github.com/oklog/ulid/v2"
)

// The prefixes of ids. An id is prefix, "_" and a ULID in lower case, so ids of one kind sort by their creation.
const (
	PrefixConnection = "conn"
	PrefixRepository = "repo"
	PrefixVM         = "vm"
	PrefixRun        = "run"
	PrefixTask       = "task"
	PrefixOwed       = "owed"
	PrefixUser       = "user"
	PrefixToken      = "tok"
	PrefixMover      = "mover"
	PrefixLimit      = "limit"
	PrefixManager    = "mgr"
	PrefixRequest    = "ask"
)

// NewID makes an id that is greater than all ids of its kind that this process made before.
func NewID(prefix string) string { return prefix + "_" + strings.ToLower(ulid.Make().String()) }
