package catalog

import (
	"context"
	"database/sql"
	"reflect"
	"strings"

	"gorm.io/gorm"
)

// cleanText replaces what is no text, and what PostgreSQL's text cannot hold, by U+FFFD: platforms may answer anything.
func cleanText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}

func cleanAll(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		if v := reflect.ValueOf(a); v.Kind() == reflect.String {
			a = cleanText(v.String())
		}
		out[i] = a
	}
	return out
}

// cleanConn hands clean text to a database or a transaction.
type cleanConn struct{ gorm.ConnPool }

// ExecContext implements gorm.ConnPool.
func (c cleanConn) ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error) {
	return c.ConnPool.ExecContext(ctx, query, cleanAll(args)...)
}

// QueryContext implements gorm.ConnPool.
func (c cleanConn) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	return c.ConnPool.QueryContext(ctx, query, cleanAll(args)...)
}

// QueryRowContext implements gorm.ConnPool.
func (c cleanConn) QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row {
	return c.ConnPool.QueryRowContext(ctx, query, cleanAll(args)...)
}

// cleanPool is a cleanConn that can begin transactions.
type cleanPool struct {
	cleanConn
	db *sql.DB
}

// BeginTx implements gorm.ConnPoolBeginner.
func (p cleanPool) BeginTx(ctx context.Context, o *sql.TxOptions) (gorm.ConnPool, error) {
	tx, err := p.db.BeginTx(ctx, o)
	if err != nil {
		return nil, err
	}
	return &cleanTx{cleanConn{tx}, tx}, nil
}

// cleanTx is a cleanConn that can end.
type cleanTx struct {
	cleanConn
	tx *sql.Tx
}

// Commit implements gorm.TxCommitter.
func (t *cleanTx) Commit() error { return t.tx.Commit() }

// Rollback implements gorm.TxCommitter.
func (t *cleanTx) Rollback() error { return t.tx.Rollback() }

// sqlTx is the transaction under gorm's, for the job queue; nil if there is none.
func sqlTx(tx *gorm.DB) *sql.Tx {
	switch p := tx.Statement.ConnPool.(type) {
	case *sql.Tx:
		return p
	case *cleanTx:
		return p.tx
	}
	return nil
}
