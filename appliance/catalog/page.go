package catalog

import (
	"encoding/base64"
	"encoding/json"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Page asks for one page of a list.
type Page struct {
	Limit  int    // 0 is DefaultLimit; more than MaxLimit is MaxLimit
	Cursor string // Next of the page before; "" is the first page
}

// The limits of a page.
const (
	DefaultLimit = 100
	MaxLimit     = 1000
)

// List is one page and the cursor of the next; an empty cursor is the end.
type List[T any] struct {
	Items []T
	Next  string
}

// order is a stable order over a column and the id.
type order[T any] struct {
	column string
	desc   bool
	key    func(T) (column, id string)
}

// newestFirst orders by id, descending: ids sort by creation.
func newestFirst[T any](id func(T) string) order[T] {
	return order[T]{column: "id", desc: true, key: func(v T) (string, string) { return id(v), id(v) }}
}

// byName orders by name, then id.
func byName[T any](key func(T) (name, id string)) order[T] { return order[T]{column: "name", key: key} }

// page reads one page of a query by keyset, so that a deep page costs what the first one does.
func page[T any](q *gorm.DB, p Page, o order[T]) (List[T], error) {
	limit := p.Limit
	if limit <= 0 {
		limit = DefaultLimit
	}
	limit = min(limit, MaxLimit)
	cmp, dir := ">", "ASC"
	if o.desc {
		cmp, dir = "<", "DESC"
	}
	if p.Cursor != "" {
		var at [2]string
		raw, err := base64.RawURLEncoding.DecodeString(p.Cursor)
		if err != nil || json.Unmarshal(raw, &at) != nil {
			return List[T]{}, fault.New(fault.Invalid, "read page", "", "the page token is not one of this list").Explain(
				"Page tokens are good for the list they came from, in the same order.", "Read the list from its beginning.")
		}
		q = q.Where("("+o.column+", id) "+cmp+" (?, ?)", at[0], at[1])
	}
	var out List[T]
	err := q.Order(o.column + " " + dir + ", id " + dir).Limit(limit + 1).Find(&out.Items).Error
	if err != nil {
		return List[T]{}, failure("list", "", err)
	}
	if len(out.Items) > limit {
		out.Items = out.Items[:limit]
		column, id := o.key(out.Items[limit-1])
		raw, _ := json.Marshal([2]string{column, id}) // two strings always marshal
		out.Next = base64.RawURLEncoding.EncodeToString(raw)
	}
	return out, nil
}

// PageOf returns one page of a list that is in memory, in the order of its keys, each of which is there once.
func PageOf[T any](all []T, p Page, key func(T) (name, id string)) ([]T, string, error) {
	limit := min(p.Limit, MaxLimit)
	if limit <= 0 {
		limit = DefaultLimit
	}
	if p.Cursor != "" {
		var at [2]string
		raw, err := base64.RawURLEncoding.DecodeString(p.Cursor)
		if err != nil || json.Unmarshal(raw, &at) != nil {
			return nil, "", fault.New(fault.Invalid, "read page", "", "the page token is not one of this list").Explain(
				"Page tokens are good for the list they came from, in the same order.", "Read the list from its beginning.")
		}
		skip := 0
		for _, v := range all {
			if name, id := key(v); name > at[0] || name == at[0] && id > at[1] {
				break
			}
			skip++
		}
		all = all[skip:]
	}
	if len(all) <= limit {
		return all, "", nil
	}
	name, id := key(all[limit-1])
	raw, _ := json.Marshal([2]string{name, id}) // two strings always marshal
	return all[:limit], base64.RawURLEncoding.EncodeToString(raw), nil
}
