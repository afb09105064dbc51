package catalog

import (
	"encoding/json"
	"errors"
	"sync"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/appliance/policy"
)

// facts remembers what filters look at, as it was last understood: filters, policies and coverage look at all VMs, which seldom change, and
// understanding takes longer than reading. What is stored decides; nothing has to be forgotten when it changes.
type facts struct {
	mu    sync.Mutex
	known map[string]knownFacts // by VM; replaced, never changed
}

type knownFacts struct {
	stored string
	facts  policy.VM
}

// read returns the facts of all VMs that are there, or of some of them, by name.
func (f *facts) read(db *gorm.DB, connections map[string]Connection, some []string) (out []policy.VM, err error) {
	f.mu.Lock()
	before := f.known
	f.mu.Unlock()
	size := len(before)
	q := db.Table("vms").Select("id", "connection_id", "facts").Where("gone_at IS NULL").Order("name, id")
	if some != nil {
		size = len(some)
		q = q.Where("id IN ?", some)
	}
	rows, err := q.Rows()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	known := make(map[string]knownFacts, size)
	out = make([]policy.VM, 0, size)
	for rows.Next() {
		row := VM{}
		var stored []byte
		if err := rows.Scan(&row.ID, &row.ConnectionID, &stored); err != nil {
			return nil, err
		}
		k, ok := before[row.ID]
		if !ok || k.stored != string(stored) {
			k = knownFacts{stored: string(stored)}
			if len(stored) > 0 {
				if err := json.Unmarshal(stored, &k.facts); err != nil {
					return nil, err
				}
			}
		}
		known[row.ID] = k
		row.Facts = k.facts
		out = append(out, row.FactsIn(connections[row.ConnectionID]))
	}
	if err := rows.Err(); err != nil {
		return nil, err
	}
	if some == nil {
		f.mu.Lock()
		f.known = known
		f.mu.Unlock()
	}
	return out, nil
}
