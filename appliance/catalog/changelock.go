package catalog

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"hash/fnv"
	"time"

	"github.com/cairn-backup/cairn/internal/fault"
)

// changeClass tells the advisory locks of changes from others.
const changeClass = 0x6361 // "ca"

// changesAtOnce bounds the connections that hold locks of changes: those that they wait for must be there, too.
const changesAtOnce = 3

// LockChange keeps every manager of this catalog from changing a thing, by its name, until unlock is called: what is read in between is
// what is changed. Where there can be no other manager it does nothing. The lock ends with its connection, and so with its manager.
func (c *Catalog) LockChange(ctx context.Context, what string) (unlock func(), err error) {
	if !c.Shared() {
		return func() {}, nil
	}
	select {
	case c.changing <- struct{}{}:
	case <-ctx.Done():
		return nil, fault.Context("wait to change", what, ctx.Err())
	}
	conn, err := c.sql.Conn(ctx)
	if err == nil {
		err = lockOn(ctx, conn, what)
	}
	if err != nil {
		<-c.changing
		return nil, failure("wait to change", what, err)
	}
	return func() {
		// Closing the connection for good ends the lock, too, when it cannot be given back.
		after, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if _, err := conn.ExecContext(after, "SELECT pg_advisory_unlock($1, $2)", changeClass, changeNumber(what)); err != nil {
			drop(conn)
		}
		_ = conn.Close()
		<-c.changing
	}, nil
}

// drop has database/sql close a connection for good instead of using it again.
func drop(conn *sql.Conn) {
	_ = conn.Raw(func(any) error { return driver.ErrBadConn })
}

func lockOn(ctx context.Context, conn *sql.Conn, what string) error {
	_, err := conn.ExecContext(ctx, "SELECT pg_advisory_lock($1, $2)", changeClass, changeNumber(what))
	if err != nil {
		drop(conn) // it may hold the lock all the same
		_ = conn.Close()
	}
	return err
}

func changeNumber(what string) int32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(what)) // never fails
	return int32(h.Sum32())
}
