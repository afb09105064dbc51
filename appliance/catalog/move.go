package catalog

import (
	"context"
	"errors"
	"fmt"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// table is one that Move takes along.
type table struct {
	name string
	copy func(ctx context.Context, from, to *gorm.DB) (int64, error)
}

// batch is how many rows are written at once.
const batch = 200

func tableOf[T any](name string) table {
	return table{name, func(ctx context.Context, from, to *gorm.DB) (n int64, err error) {
		rows, err := from.WithContext(ctx).Table(name).Rows()
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		var part []T
		flush := func() error {
			n += int64(len(part))
			if len(part) == 0 {
				return nil
			}
			err := to.WithContext(ctx).Table(name).Create(&part).Error
			part = part[:0:0]
			return err
		}
		for rows.Next() {
			var row T
			if err := from.ScanRows(rows, &row); err != nil {
				return n, err
			}
			if part = append(part, row); len(part) == batch {
				if err := flush(); err != nil {
					return n, err
				}
			}
		}
		return n, errors.Join(flush(), rows.Err())
	}}
}

// moved are the tables with what somebody has said or what has happened. Not moved is who is at work: the queue's jobs and the
// managers; what waits is queued anew, and what was running is settled, by the first manager that starts.
func moved() []table {
	return []table{
		tableOf[Connection]("connections"), tableOf[Repository]("repositories"), tableOf[VM]("vms"), tableOf[Run]("runs"), tableOf[Task]("tasks"),
		tableOf[Event]("events"), tableOf[RestorePoint]("restore_points"), tableOf[OwedCleanup]("owed_cleanups"), tableOf[User]("users"),
		tableOf[Token]("tokens"), tableOf[Mover]("movers"), tableOf[JoinToken]("join_tokens"), tableOf[AuditEntry]("audit_entries"),
		tableOf[MoverLimit]("mover_limits"), tableOf[KeptTask]("kept_tasks"), tableOf[Policy]("policies"), tableOf[Exclusion]("exclusions"),
		tableOf[Occurrence]("occurrences"), tableOf[Turn]("turns"), tableOf[Breaker]("breakers"), tableOf[Hold]("holds"),
		tableOf[KeyedRequest]("keyed_requests"), tableOf[SharedFile]("shared_files"), tableOf[Maintenance]("maintenances"),
		tableOf[Standing]("standings"),
		tableOf[RPOAccount]("rpo_accounts"), tableOf[RPOStamp]("rpo_stamps"), tableOf[RPOMonth]("rpo_months"),
	}
}

// counted are the tables whose rows are numbered by the database.
var counted = []string{"events", "audit_entries"}

// TableCount is how many rows of a table were moved.
type TableCount struct {
	Table string
	Rows  int64
}

// Move copies everything in a SQLite catalog that no process works with into a PostgreSQL database that has nothing yet: all of
// it, or nothing. What was counted there in the end is the answer. Both are opened with the same key.
func Move(ctx context.Context, from, to Options) (report []TableCount, err error) {
	source, err := Open(ctx, from)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	target, err := Open(ctx, to)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	err = target.transaction(ctx, func(tx *gorm.DB) error {
		if err := target.nobodyElse(tx); err != nil {
			return err
		}
		report, err = moveAll(ctx, source.db, tx)
		return err
	})
	if err != nil {
		return nil, failure("move catalog", from.Path, err)
	}
	return report, nil
}

func moveAll(ctx context.Context, from, to *gorm.DB) (report []TableCount, err error) {
	for _, t := range moved() {
		var n int64
		if err := to.Table(t.name).Count(&n).Error; err != nil {
			return nil, err
		}
		if n > 0 {
			return nil, fault.New(fault.Exists, "", "", "the database has %d rows in %s already", n, t.name).Explain(
				"A catalog is moved into an empty database: two cannot be made one.", "Name another database, or empty this one.")
		}
	}
	for _, t := range moved() {
		read, err := t.copy(ctx, from, to)
		if err != nil {
			return nil, fmt.Errorf("copy %s: %w", t.name, err)
		}
		var there, written int64
		if err := errors.Join(from.Table(t.name).Count(&there).Error, to.Table(t.name).Count(&written).Error); err != nil {
			return nil, err
		}
		if read != there || written != there {
			return nil, fault.New(fault.Internal, "", "", "%s: %d rows there, %d read, %d written", t.name, there, read, written)
		}
		report = append(report, TableCount{t.name, written})
	}
	for _, name := range counted {
		err := to.Exec("SELECT setval(pg_get_serial_sequence('" + name + "', 'seq'), (SELECT COALESCE(MAX(seq), 0) + 1 FROM " + name + "), false)").Error
		if err != nil {
			return nil, err
		}
	}
	return report, nil
}
