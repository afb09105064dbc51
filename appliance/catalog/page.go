package catalog

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Page asks for one page of a list.
type Page struct {
	Limit  int    // 0 is DefaultLimit; more than MaxLimit is MaxLimit
	Cursor string // Next of the page before; "" is the first page
	Sort   string // what to sort by, descending after "-"; "" is the list's own order
	Total  bool   // count all there are, which reads them all
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
	Total *int // how many there are in all, when Page.Total asked for it
}

// everything reads a whole list, by name.
func everything[T any](ctx context.Context, c *Catalog, noun string) ([]T, error) {
	var out []T
	if err := c.db.WithContext(ctx).Order("name, id").Find(&out).Error; err != nil {
		return nil, failure("list "+noun, "", err)
	}
	return out, nil
}

// order is a stable order over a column and the id.
type order[T any] struct {
	column string
	key    func(T) any                        // the column's value
	read   func(json.RawMessage) (any, error) // the same from a cursor
}

// by is an order over a column.
func by[T, V any](column string, key func(T) V) order[T] {
	return order[T]{
		column: column, key: func(v T) any { return key(v) },
		read: func(raw json.RawMessage) (any, error) {
			var v V
			err := json.Unmarshal(raw, &v)
			return v, err
		},
	}
}

// orders are the orders that a list knows, by what they are asked for.
type orders[T any] struct {
	id       func(T) string
	fallback string // as Page.Sort
	by       map[string]order[T]
}

// byAge is the order of lists of which ids sort by creation: the newest first.
func byAge[T any](id func(T) string, more map[string]order[T]) orders[T] {
	o := orders[T]{id: id, fallback: "-created_at", by: map[string]order[T]{"created_at": by("id", id)}}
	maps.Copy(o.by, more)
	return o
}

// byName orders by name.
func byName[T any](name, id func(T) string, more map[string]order[T]) orders[T] {
	o := orders[T]{id: id, fallback: "name", by: map[string]order[T]{"name": by("name", name)}}
	maps.Copy(o.by, more)
	return o
}

// cursor is where a page ended: good for the same list in the same order.
type cursor struct {
	Sort  string          `json:"s"`
	Value json.RawMessage `json:"v"`
	ID    string          `json:"i"`
}

func badCursor() error {
	return fault.New(fault.Invalid, "read page", "", "the page token is not one of this list").Explain(
		"Page tokens are good for the list they came from, in the same order.", "Read the list from its beginning.")
}

func (o orders[T]) pick(sort string) (order[T], bool, error) {
	name, desc := strings.CutPrefix(sort, "-")
	chosen, ok := o.by[name]
	if !ok {
		return chosen, false, fault.New(fault.Invalid, "read page", "", "the list cannot be sorted by %q", name).Explain(
			"Lists can be sorted by some of their members.", "Sort by one of: "+strings.Join(slices.Sorted(maps.Keys(o.by)), ", ")+".")
	}
	return chosen, desc, nil
}

// after restricts a query to what comes behind a cursor.
func (o order[T]) after(q *gorm.DB, sort, text string, desc bool) (*gorm.DB, error) {
	var at cursor
	raw, err := base64.RawURLEncoding.DecodeString(text)
	// PostgreSQL takes no NUL in a text.
	if err != nil || bytes.Contains(raw, []byte(`\u0000`)) || json.Unmarshal(raw, &at) != nil || at.Sort != sort {
		return nil, badCursor()
	}
	v, err := o.read(at.Value)
	if err != nil {
		return nil, badCursor()
	}
	cmp := ">"
	if desc {
		cmp = "<"
	}
	if o.column == "id" {
		return q.Where("id "+cmp+" ?", at.ID), nil
	}
	return q.Where("("+o.column+", id) "+cmp+" (?, ?)", v, at.ID), nil
}

// page reads one page of a query by keyset, so that a deep page costs what the first one does.
func page[T any](q *gorm.DB, p Page, o orders[T]) (List[T], error) {
	if p.Sort == "" {
		p.Sort = o.fallback
	}
	chosen, desc, err := o.pick(p.Sort)
	if err != nil {
		return List[T]{}, err
	}
	var out List[T]
	q = q.Model(new(T)).Session(&gorm.Session{})
	if p.Total {
		var n int64
		if err := q.Count(&n).Error; err != nil {
			return List[T]{}, failure("count", "", err)
		}
		out.Total = new(int)
		*out.Total = int(n)
	}
	if p.Cursor != "" {
		if q, err = chosen.after(q, p.Sort, p.Cursor, desc); err != nil {
			return List[T]{}, err
		}
	}
	dir := " ASC"
	if desc {
		dir = " DESC"
	}
	sort := chosen.column + dir
	if chosen.column != "id" {
		sort += ", id" + dir
	}
	limit := min(p.Limit, MaxLimit)
	if limit <= 0 {
		limit = DefaultLimit
	}
	if err := q.Order(sort).Limit(limit + 1).Find(&out.Items).Error; err != nil {
		return List[T]{}, failure("list", "", err)
	}
	if len(out.Items) > limit {
		out.Items = out.Items[:limit]
		last := out.Items[limit-1]
		value, err := json.Marshal(chosen.key(last))
		if err != nil {
			return List[T]{}, failure("list", "", err)
		}
		raw, err := json.Marshal(cursor{Sort: p.Sort, Value: value, ID: o.id(last)})
		if err != nil {
			return List[T]{}, failure("list", "", err)
		}
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
