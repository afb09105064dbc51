package catalog

import (
	"strings"
	"testing"
)

// plan is how SQLite would answer a query, one step a line.
func plan(t *testing.T, c *Catalog, query string) (steps []string) {
	t.Helper()
	rows, err := c.sql.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	for rows.Next() {
		var id, parent, unused int
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			t.Fatal(err)
		}
		steps = append(steps, detail)
	}
	if err := rows.Err(); err != nil || len(steps) == 0 {
		t.Fatalf("%s: %v, %v", query, steps, err)
	}
	return steps
}

// usesIndex reports whether a step goes along an index; "SCAN … USING INDEX" is one that is read in its order.
func usesIndex(step string) bool {
	return strings.Contains(step, " USING ") && strings.Contains(step, "INDEX")
}
