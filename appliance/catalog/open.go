package catalog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/glebarez/sqlite"
	"gorm.io/gorm"
	"gorm.io/gorm/logger"

	"github.com/cairn-backup/cairn/internal/fault"
)

// schemaVersion is the version of the tables this program writes.
const schemaVersion = 15

// Schema is the version of the tables.
func (c *Catalog) Schema() int { return schemaVersion }

// Catalog is an open catalog. Its methods may be called from several goroutines.
type Catalog struct {
	db   *gorm.DB
	sql  *sql.DB
	side *sql.DB // for the queue and signs of life; sql, where there is but one connection
	seal *sealer
	pg   bool

	manager string // this process, once it has joined

	facts facts

	configured chan struct{}
	changing   chan struct{} // one for each connection that holds the lock of a change
}

// Options of Open. Either Path or Address says where the catalog is.
type Options struct {
	Path    string // of the SQLite file; made when it is not there
	Address Secret // of a PostgreSQL database: postgres://user:password@host:port/database
	KeyFile string // the key-encryption key; made together with the catalog, never for one that exists
}

// Open opens the catalog, makes it on first use and brings its tables up to date. A catalog of a newer program is
// refused.
func Open(ctx context.Context, o Options) (*Catalog, error) {
	if o.Address != "" {
		return openShared(ctx, o)
	}
	_, statErr := os.Stat(o.Path)
	fresh := errors.Is(statErr, os.ErrNotExist)
	if err := os.MkdirAll(filepath.Dir(o.Path), 0o700); err != nil {
		return nil, fault.Context("create directory of catalog", o.Path, err)
	}
	seal, err := loadSealer(o.KeyFile, fresh)
	if err != nil {
		return nil, err
	}
	db, err := openSQLite(o.Path)
	if err != nil {
		return nil, err
	}
	c := &Catalog{sql: db, side: db, seal: seal, configured: make(chan struct{}, 1)}
	if err := c.prepare(ctx, sqlite.Dialector{Conn: db}, func(*gorm.DB, int) error { return nil }); err != nil {
		return nil, errors.Join(unreadable(o.Path, err), db.Close())
	}
	return c, nil
}

// openShared opens a catalog that several managers may have open.
func openShared(ctx context.Context, o Options) (*Catalog, error) {
	c := &Catalog{pg: true, configured: make(chan struct{}, 1), changing: make(chan struct{}, changesAtOnce)}
	var err error
	if c.sql, c.side, err = openPostgres(o.Address); err != nil {
		return nil, err
	}
	err = c.prepare(ctx, postgresDialector(c.sql), func(tx *gorm.DB, version int) (err error) {
		if c.seal, err = loadSealer(o.KeyFile, version == 0); err != nil {
			return err
		}
		return c.checkKey(tx, version)
	})
	if err != nil {
		return nil, errors.Join(unreachable(err), c.Close())
	}
	return c, nil
}

// Shared reports whether other managers may have the catalog open, too: whether it is on PostgreSQL.
func (c *Catalog) Shared() bool { return c.pg }

// like is the operator that compares with a pattern and takes no notice of case.
func (c *Catalog) like() string {
	if c.pg {
		return "ILIKE"
	}
	return "LIKE"
}

// Result codes of SQLite: the database is damaged, or the file is none.
const (
	sqliteCorrupt = 11
	sqliteNotADB  = 26
)

// unreadable gives an error met while the catalog was opened its kind and words.
func unreadable(path string, err error) error {
	if e, ok := errors.AsType[interface {
		error
		Code() int
	}](err); ok && (e.Code()&0xff == sqliteNotADB || e.Code()&0xff == sqliteCorrupt) {
		return fault.Wrap(fault.Corrupt, "open catalog", path, err).Explain(
			"The file is damaged, or is not a catalog. Restore points are not touched by this: they lie in the repositories.",
			"Put the file back from a copy; or move it away, start cairnd with an empty catalog, connect the hosts and attach the repositories again.")
	}
	return fault.Context("open catalog", path, err)
}

func openSQLite(path string) (*sql.DB, error) {
	q := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(10000)", "journal_mode(WAL)", "synchronous(FULL)", "foreign_keys(1)", "cache_size(-32768)", // KiB: indexes of a million restore points
	}}
	db, err := sql.Open(sqlite.DriverName, "file:"+path+"?"+q.Encode())
	if err != nil {
		return nil, fault.Context("open catalog", path, err)
	}
	db.SetMaxOpenConns(1)
	db.SetMaxIdleConns(1)
	db.SetConnMaxLifetime(0)
	return db, nil
}

// prepare brings the tables up to date, after key has looked at the version that is there.
func (c *Catalog) prepare(ctx context.Context, d gorm.Dialector, key func(tx *gorm.DB, version int) error) error {
	var err error
	c.db, err = gorm.Open(d, &gorm.Config{
		Logger: logger.Discard, TranslateError: true, SkipDefaultTransaction: true, DisableAutomaticPing: true,
		NowFunc: func() time.Time { return time.Now().UTC() },
	})
	if err == nil {
		err = c.watchConfiguration()
	}
	if err != nil {
		return err
	}
	return c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Exec("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)").Error; err != nil {
			return err
		}
		var version int
		if err := tx.Raw("SELECT COALESCE(MAX(version), 0) FROM schema_version").Scan(&version).Error; err != nil {
			return err
		}
		if version > schemaVersion {
			return fault.New(fault.Unsupported, "", "", "schema version %d, this program knows %d", version, schemaVersion).
				Explain("The catalog was written by a newer version of Cairn.", "Start that version, or a newer one.")
		}
		if version < schemaVersion {
			if err := c.nobodyElse(tx); err != nil {
				return err
			}
			if err := migrate(tx, version); err != nil {
				return err
			}
		}
		return key(tx, version)
	})
}

// migrate brings the tables from a version to the present one; 0 is no tables.
func migrate(tx *gorm.DB, version int) error {
	var errs []error
	m := tx.Migrator()
	if version == 0 {
		errs = append(errs, tx.AutoMigrate(&Connection{}, &Repository{}, &VM{}, &Run{}, &Task{}, &Event{}, &RestorePoint{},
			&OwedCleanup{}, &User{}, &Token{}))
	}
	if version < 4 {
		errs = append(errs, tx.AutoMigrate(&Mover{}, &JoinToken{}, &AuditEntry{}))
	}
	if version == 4 {
		errs = append(errs, m.AddColumn(&Mover{}, "DeployedOn"))
	}
	if version < 6 {
		errs = append(errs, tx.AutoMigrate(&MoverLimit{}))
	}
	if version < 7 {
		errs = append(errs, tx.AutoMigrate(&KeptTask{}))
	}
	if version < 8 {
		errs = append(errs, tx.AutoMigrate(&Policy{}, &Exclusion{}, &Occurrence{}, &Turn{}, &Breaker{}, &Hold{}))
	}
	if version > 0 && version < 8 {
		errs = append(errs, m.AddColumn(&VM{}, "Facts"), m.AddColumn(&Run{}, "PolicyID"), m.AddColumn(&Run{}, "TurnID"),
			m.CreateIndex(&Run{}, "PolicyID"))
	}
	if version < 9 {
		errs = append(errs, tx.AutoMigrate(&KeyedRequest{}), createIndexes(tx))
	}
	if version < 9 && !m.HasColumn(&Token{}, "Scope") {
		errs = append(errs, m.AddColumn(&Token{}, "Scope"))
	}
	if version < 10 {
		errs = append(errs, tx.AutoMigrate(&keyCheck{}, &Manager{}, &RepositoryOwner{}, &VMHold{}, &SharedFile{}))
	}
	if version > 0 && version < 10 {
		errs = append(errs, m.AddColumn(&Task{}, "ManagerID"), m.CreateIndex(&Task{}, "ManagerID"),
			m.AddColumn(&Event{}, "ManagerID"), tx.Exec("UPDATE tasks SET manager_id = ''").Error, tx.Exec("UPDATE events SET manager_id = ''").Error)
	}
	if version < 11 {
		errs = append(errs, tx.AutoMigrate(&Maintenance{}))
	}
	if version < 13 {
		errs = append(errs, tx.AutoMigrate(&Standing{}))
	}
	if version < 13 && !m.HasColumn(&Repository{}, "Saved") {
		errs = append(errs, m.AddColumn(&Repository{}, "Saved"))
	}
	if version < 14 && !m.HasColumn(&Maintenance{}, "LastParts") {
		errs = append(errs, m.AddColumn(&Maintenance{}, "LastParts"))
	}
	if version < 14 {
		errs = append(errs, tx.AutoMigrate(&RPOAccount{}, &RPOStamp{}, &RPOMonth{}))
	}
	if version < 15 {
		errs = append(errs, tx.AutoMigrate(&MaintenanceRequest{}))
	}
	if version == 1 {
		errs = append(errs, m.AddColumn(&Connection{}, "HostID"))
	}
	if version == 1 || version == 2 {
		errs = append(errs, m.AddColumn(&Repository{}, "Members"), m.AddColumn(&Repository{}, "Verification"))
	}
	if version > 0 && version < 12 {
		errs = append(errs, m.AddColumn(&Repository{}, "Compression"), tx.Exec("UPDATE repositories SET compression = ''").Error)
	}
	if version > 0 && version < 5 {
		errs = append(errs, m.AddColumn(&Repository{}, "Generation"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("create tables: %w", err)
	}
	if err := tx.Exec("DELETE FROM schema_version").Error; err != nil {
		return err
	}
	return tx.Exec("INSERT INTO schema_version (version) VALUES (?)", schemaVersion).Error
}

// DB is the database, for the job queue that shares it.
func (c *Catalog) DB() *sql.DB { return c.side }

// Close closes the catalog.
func (c *Catalog) Close() error {
	if c.side == c.sql {
		return c.sql.Close()
	}
	return errors.Join(c.sql.Close(), c.side.Close())
}

// failure gives an error of gorm its kind.
func failure(op, subject string, err error) error {
	switch {
	case errors.Is(err, gorm.ErrRecordNotFound):
		return notFound(op, subject)
	case errors.Is(err, gorm.ErrDuplicatedKey):
		return fault.New(fault.Exists, op, subject, "the name or address is taken").Explain(
			"Another one has this name, or lies in the same place.", "Choose another name or place.")
	}
	return fault.Context(op, subject, err)
}

func notFound(op, subject string) error {
	return fault.New(fault.NotFound, op, subject, "not in the catalog").Explain(
		"The appliance does not know it, or not any more.", "List what there is, and name one of those.")
}

func isNotFound(err error) bool { return fault.KindOf(err) == fault.NotFound }

// first reads one row by a condition.
func first[T any](ctx context.Context, c *Catalog, op, subject, where string, args ...any) (T, error) {
	var row T
	if err := c.db.WithContext(ctx).Where(where, args...).Take(&row).Error; err != nil {
		return row, failure(op, subject, err)
	}
	return row, nil
}
