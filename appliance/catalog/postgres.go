package catalog

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
	"gorm.io/driver/postgres"
	"gorm.io/gorm"
	"gorm.io/gorm/migrator"
	"gorm.io/gorm/schema"

	"github.com/cairn-backup/cairn/internal/fault"
)

// How many connections one manager has at most: for what is asked and stored, and for the queue and the signs of life.
// The second are apart, so that a crowd that waits for the catalog's lock keeps nobody from saying that it is alive.
const (
	mainConnections = 10
	sideConnections = 6
)

// deadLink is after how long a link that swallows everything is given up, on both sides. It is also how long a
// transaction may do nothing: one of a manager that was cut off must not keep the lock from the others.
const deadLink = 15 * time.Second

// openPostgres opens the two pools on a database; nothing is asked of it yet.
func openPostgres(address Secret) (main, side *sql.DB, err error) {
	config, err := pgx.ParseConfig(string(address))
	if err != nil { // its text may show the password
		return nil, nil, fault.New(fault.Invalid, "open catalog", "", "the address of the database cannot be read").Explain(
			"The catalog's address is not one of a PostgreSQL database.", "Write it as postgres://user:password@host:5432/database.")
	}
	for name, value := range map[string]string{
		"application_name": "cairnd", "timezone": "UTC", "lock_timeout": "60s", "idle_in_transaction_session_timeout": "15s",
		"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "2", "tcp_user_timeout": "15000",
	} {
		if config.RuntimeParams[name] == "" {
			config.RuntimeParams[name] = value
		}
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = deadLink
	}
	dialer := net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2},
		Control:         limitSilence,
	}
	config.DialFunc = dialer.DialContext
	open := func(connections int) *sql.DB {
		db := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(adapt))
		db.SetMaxOpenConns(connections)
		db.SetMaxIdleConns(connections)
		db.SetConnMaxIdleTime(time.Minute)
		return db
	}
	return open(mainConnections), open(sideConnections), nil
}

// tcpUserTimeout is TCP_USER_TIMEOUT of Linux, which package syscall does not name.
const tcpUserTimeout = 18

// limitSilence bounds how long what was sent may stay unacknowledged: without it a cut link is noticed after a quarter of an hour.
func limitSilence(network, _ string, c syscall.RawConn) error {
	if !strings.HasPrefix(network, "tcp") {
		return nil
	}
	var err error
	return errors.Join(c.Control(func(fd uintptr) {
		err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(deadLink.Milliseconds()))
	}), err)
}

// adapt makes times come out as they do with SQLite: in UTC.
func adapt(_ context.Context, conn *pgx.Conn) error {
	conn.TypeMap().RegisterType(&pgtype.Type{Name: "timestamptz", OID: pgtype.TimestamptzOID, Codec: &pgtype.TimestamptzCodec{ScanLocation: time.UTC}})
	return nil
}

// dialector orders text by its bytes, as SQLite does, whatever the database's own order is: page tokens compare names and
// ids, and ids tell which is newer.
type dialector struct{ postgres.Dialector }

// DataTypeOf implements gorm.Dialector.
func (d dialector) DataTypeOf(f *schema.Field) string {
	t := d.Dialector.DataTypeOf(f)
	if t == "text" {
		return `text COLLATE "C"`
	}
	return t
}

// Migrator implements gorm.Dialector.
func (d dialector) Migrator(db *gorm.DB) gorm.Migrator {
	return postgres.Migrator{Migrator: migrator.Migrator{Config: migrator.Config{DB: db, Dialector: d, CreateIndexAfterCreateTable: true}}}
}

func postgresDialector(db *sql.DB) gorm.Dialector {
	return dialector{postgres.Dialector{Config: &postgres.Config{Conn: cleanPool{cleanConn{db}, db}}}}
}

// unreachable gives an error met while a PostgreSQL catalog was opened its kind and words.
func unreachable(err error) error {
	if e, ok := errors.AsType[*fault.Error](err); ok && e.Meaning != "" {
		return fault.Context("open catalog", "", err)
	}
	if e, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(e.Code, "28") || ok && e.Code == "3D000" {
		return fault.Wrap(fault.Denied, "open catalog", "", err).Explain(
			"The PostgreSQL server has no such database, or refuses the user or the password.",
			"Look at the address of the database, and make the user and the database (docs/appliance.md).")
	}
	return fault.Wrap(fault.Transient, "open catalog", "", err).Explain(
		"The PostgreSQL server cannot be used now, so cairnd does not start.", "Look whether the server runs and can be reached from here.")
}
