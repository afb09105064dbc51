package catalog

import (
	"context"
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/internal/fault"
)

// HostTaken is in the chain of errors about a host that another connection leads to already.
type HostTaken struct{ Other Connection }

func (e *HostTaken) Error() string {
	return fmt.Sprintf("connection %s leads to the same host, %s", e.Other.Name, e.Other.HostID)
}

// ownHost is an error that matches HostTaken when another connection leads to a connection's host.
func ownHost(tx *gorm.DB, c Connection) error {
	if c.HostID == "" {
		return nil
	}
	var others []Connection
	if err := tx.Where("platform = ? AND host_id = ? AND id <> ?", c.Platform, c.HostID, c.ID).Limit(1).Find(&others).Error; err != nil {
		return err
	}
	if len(others) == 0 {
		return nil
	}
	return fault.Wrap(fault.Exists, "", "", &HostTaken{Other: others[0]})
}

// CreateConnection stores a new connection and its credentials, and fills in its id and times. A host that another one has is HostTaken.
func (c *Catalog) CreateConnection(ctx context.Context, conn *Connection, secret Secret) error {
	conn.ID = NewID(PrefixConnection)
	conn.SealedSecret = c.seal.seal(conn.ID, secret)
	if conn.Status == "" {
		conn.Status = HealthUnknown
	}
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := ownHost(tx, *conn); err != nil {
			return err
		}
		return tx.Create(conn).Error
	})
	if err != nil {
		return failure("create connection", conn.Name, err)
	}
	return nil
}

// Connection returns one connection by its id.
func (c *Catalog) Connection(ctx context.Context, id string) (Connection, error) {
	return first[Connection](ctx, c, "look up connection", id, "id = ?", id)
}

// ConnectionByName returns one connection by its name.
func (c *Catalog) ConnectionByName(ctx context.Context, name string) (Connection, error) {
	return first[Connection](ctx, c, "look up connection", name, "name = ?", name)
}

// ConnectionToHost returns the connection to a host or manager by the identity that the platform gives it.
func (c *Catalog) ConnectionToHost(ctx context.Context, platform hypervisors.Platform, hostID string) (Connection, error) {
	return first[Connection](ctx, c, "look up connection to host", hostID, "platform = ? AND host_id = ?", platform, hostID)
}

// ConnectionSecret returns the credentials of a connection; "" when there are none.
func (c *Catalog) ConnectionSecret(ctx context.Context, id string) (Secret, error) {
	conn, err := c.Connection(ctx, id)
	if err != nil {
		return "", err
	}
	return c.seal.open(conn.ID, conn.SealedSecret)
}

// Connections lists connections by name, or by created_at.
func (c *Catalog) Connections(ctx context.Context, p Page) (List[Connection], error) {
	id := func(v Connection) string { return v.ID }
	return page(c.db.WithContext(ctx), p, byName(func(v Connection) string { return v.Name }, id, map[string]order[Connection]{
		"created_at": by("id", id),
	}))
}

// AllConnections returns every connection by name, however many there are.
func (c *Catalog) AllConnections(ctx context.Context) ([]Connection, error) {
	return everything[Connection](ctx, c, "connections")
}

// UpdateConnection changes a connection as change says. A host that another one has is HostTaken, and nothing is changed.
func (c *Catalog) UpdateConnection(ctx context.Context, id string, change func(*Connection)) (Connection, error) {
	return c.changeConnection(ctx, id, func(_ *gorm.DB, conn *Connection) error {
		change(conn)
		return nil
	})
}

// RerouteConnection changes how a connection is reached, as change says, and its credentials. While tasks use it it answers Conflict.
func (c *Catalog) RerouteConnection(ctx context.Context, id string, secret Secret, change func(*Connection)) (Connection, error) {
	return c.changeConnection(ctx, id, func(tx *gorm.DB, conn *Connection) error {
		if err := busy(tx, "connection_id", id); err != nil {
			return err
		}
		change(conn)
		conn.SealedSecret = c.seal.seal(id, secret)
		return nil
	})
}

func (c *Catalog) changeConnection(ctx context.Context, id string, change func(*gorm.DB, *Connection) error) (Connection, error) {
	var conn Connection
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", id).Take(&conn).Error; err != nil {
			return err
		}
		host := conn.HostID
		if err := change(tx, &conn); err != nil {
			return err
		}
		conn.ID = id
		if conn.HostID != host {
			if err := ownHost(tx, conn); err != nil {
				return err
			}
		}
		return tx.Save(&conn).Error
	})
	if err != nil {
		return Connection{}, failure("change connection", id, err)
	}
	return conn, nil
}

// ConnectionIdle is a Conflict error while tasks use a connection.
func (c *Catalog) ConnectionIdle(ctx context.Context, id string) error {
	if err := busy(c.db.WithContext(ctx), "connection_id", id); err != nil {
		return failure("wait for connection", id, err)
	}
	return nil
}

// DeleteConnection forgets a connection and its VMs; VMs with restore points stay, as gone. While tasks are under way
// or clean-ups are owed it answers Conflict.
func (c *Catalog) DeleteConnection(ctx context.Context, id string) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if err := tx.Where("id = ?", id).Take(&Connection{}).Error; err != nil {
			return err
		}
		if err := busy(tx, "connection_id", id); err != nil {
			return err
		}
		var owed int64
		if err := tx.Model(&OwedCleanup{}).Where("connection_id = ? AND done_at IS NULL", id).Count(&owed).Error; err != nil {
			return err
		}
		if owed > 0 {
			return fault.New(fault.Conflict, "", "", "%d clean-ups are owed on it", owed).Explain(
				"Objects that Cairn made there have not been removed yet.",
				"Make the connection work, so that they can be removed, and try again.")
		}
		kept := tx.Model(&RestorePoint{}).Select("vm_id")
		if err := tx.Where("connection_id = ? AND id NOT IN (?)", id, kept).Delete(&VM{}).Error; err != nil {
			return err
		}
		gone := tx.Model(&VM{}).Where("connection_id = ? AND gone_at IS NULL", id).Update("gone_at", time.Now().UTC())
		if gone.Error != nil {
			return gone.Error
		}
		return tx.Where("id = ?", id).Delete(&Connection{}).Error
	})
	if err != nil {
		return failure("delete connection", id, err)
	}
	return nil
}

// busy answers Conflict when tasks under way have a value in a column.
func busy(tx *gorm.DB, column, id string) error {
	var n int64
	err := tx.Model(&Task{}).Where(column+" = ? AND state IN ?", id, []State{Queued, Running}).Count(&n).Error
	if err != nil {
		return err
	}
	if n > 0 {
		return fault.New(fault.Conflict, "", "", "%d tasks use it", n).Explain(
			"Tasks that are queued or running need it.", "Wait for them, or cancel them.")
	}
	return nil
}
