package httpapi

import (
	"encoding/json"
	"strings"

	"github.com/cairn-backup/cairn/api/server"
	"github.com/cairn-backup/cairn/internal/fault"
)

// fields reads the parameter of that name: the members of a list's items that are wanted, nil for all.
func (o *operation) fields(text string) (map[string]bool, error) {
	if text == "" || o.members == nil {
		return nil, nil
	}
	wanted := map[string]bool{}
	for _, name := range strings.Split(text, ",") {
		if !o.members[name] {
			e := reject(fault.Invalid, 0, "parameter", "fields: the items have no member "+name)
			e.fields = []server.ProblemField{{Parameter: "fields", Detail: "the items have no member " + name}}
			return nil, e
		}
		wanted[name] = true
	}
	return wanted, nil
}

// only leaves the wanted members in the items of a list.
func (h *held) only(wanted map[string]bool) error {
	var list map[string]json.RawMessage
	if err := json.Unmarshal(h.body.Bytes(), &list); err != nil {
		return err
	}
	var items []map[string]json.RawMessage
	if err := json.Unmarshal(list["items"], &items); err != nil {
		return err
	}
	for _, item := range items {
		for name := range item {
			if !wanted[name] {
				delete(item, name)
			}
		}
	}
	var err error
	if list["items"], err = json.Marshal(items); err != nil {
		return err
	}
	out, err := json.Marshal(list)
	if err != nil {
		return err
	}
	h.body.Reset()
	h.body.Write(out)
	return nil
}
