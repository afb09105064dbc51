package catalog

import (
	"context"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Configuration is what somebody has told the appliance, and what it cannot find out again when its catalog is lost: the ids that
// rules and restore points name. It is neither history (runs, turns, events, the audit log) nor what is looked at anyway (health, the
// inventory). Restore points are not in it: repositories have them. Secrets are sealed with the catalog's key, as in the rows.
type Configuration struct {
	Connections  []SavedConnection `json:"connections,omitempty"`
	Repositories []Repository      `json:"repositories,omitempty"`
	VMs          []SavedVM         `json:"vms,omitempty"`
	Policies     []Policy          `json:"policies,omitempty"`
	Exclusions   []Exclusion       `json:"exclusions,omitempty"`
	Holds        []Hold            `json:"holds,omitempty"`
	Limits       []MoverLimit      `json:"limits,omitempty"`
	Maintenance  []Maintenance     `json:"maintenance,omitempty"`
	Movers       []Mover           `json:"movers,omitempty"`
	Users        []SavedUser       `json:"users,omitempty"`
	Tokens       []SavedToken      `json:"tokens,omitempty"`
}

// SavedConnection is a connection with its sealed secret.
type SavedConnection struct {
	Connection
	SealedSecret []byte `json:"sealed_secret,omitempty"`
}

// SavedVM is which VM an id is: policies, exclusions and people name VMs by it.
type SavedVM struct {
	ID           string    `json:"id"`
	ConnectionID string    `json:"connection_id"`
	PlatformID   string    `json:"platform_id"`
	Name         string    `json:"name"`
	FirstSeen    time.Time `json:"first_seen"`
}

// SavedUser is a user with the hash of the password.
type SavedUser struct {
	User
	PasswordHash string `json:"password_hash"`
}

// SavedToken is an API token with its hash.
type SavedToken struct {
	Token
	Hash string `json:"hash"`
}

// configurationTables are those that a Configuration is read from.
var configurationTables = map[string]bool{
	"connections": true, "repositories": true, "vms": true, "policies": true, "exclusions": true, "holds": true, "mover_limits": true,
	"maintenances": true, "movers": true, "users": true, "tokens": true,
}

// Configured tells that something was changed that may be part of the configuration. It is told once, however much was changed since
// it was last looked at, and before the change is committed. Changes of other managers are not told.
func (c *Catalog) Configured() <-chan struct{} { return c.configured }

// watchConfiguration lets Configured tell.
func (c *Catalog) watchConfiguration() error {
	tell := func(tx *gorm.DB) {
		if tx.Error == nil && configurationTables[tx.Statement.Table] {
			select {
			case c.configured <- struct{}{}:
			default:
			}
		}
	}
	for _, register := range []func(string, func(*gorm.DB)) error{
		c.db.Callback().Create().After("gorm:create").Register,
		c.db.Callback().Update().After("gorm:update").Register,
		c.db.Callback().Delete().After("gorm:delete").Register,
	} {
		if err := register("cairn:configured", tell); err != nil {
			return err
		}
	}
	return nil
}

// Configuration reads the configuration as it is at one instant, ordered by ids.
func (c *Catalog) Configuration(ctx context.Context) (Configuration, error) {
	var out Configuration
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		var connections []Connection
		var vms []VM
		var users []User
		var tokens []Token
		now := time.Now().UTC()
		for _, find := range []struct {
			query *gorm.DB
			rows  any
		}{
			{tx.Order("id"), &connections}, {tx.Order("id"), &out.Repositories}, {tx.Order("id").Select("id", "connection_id", "platform_id", "name", "first_seen"), &vms},
			{tx.Order("id"), &out.Policies}, {tx.Order("id"), &out.Exclusions}, {tx.Order("restore_point_id"), &out.Holds}, {tx.Order("id"), &out.Limits},
			{tx.Order("kind"), &out.Maintenance}, {tx.Order("id"), &out.Movers}, {tx.Order("id"), &users},
			{tx.Order("id").Where("expires_at IS NULL OR expires_at > ?", now), &tokens},
		} {
			if err := find.query.Find(find.rows).Error; err != nil {
				return err
			}
		}
		for _, row := range connections {
			out.Connections = append(out.Connections, SavedConnection{row, row.SealedSecret})
		}
		for _, row := range vms {
			out.VMs = append(out.VMs, SavedVM{row.ID, row.ConnectionID, row.PlatformID, row.Name, row.FirstSeen})
		}
		for _, row := range users {
			out.Users = append(out.Users, SavedUser{row, row.PasswordHash})
		}
		for _, row := range tokens {
			out.Tokens = append(out.Tokens, SavedToken{row, row.Hash})
		}
		return nil
	})
	if err != nil {
		return Configuration{}, failure("read configuration", "", err)
	}
	out.forget()
	return out, nil
}

// forget leaves out what is looked at anyway, or happens by itself.
func (c *Configuration) forget() {
	for i := range c.Connections {
		row := &c.Connections[i].Connection
		*row = Connection{
			ID: row.ID, Name: row.Name, Platform: row.Platform, Address: row.Address, User: row.User, Options: row.Options, HostID: row.HostID,
			Status: HealthUnknown, CreatedAt: row.CreatedAt,
		}
	}
	for i := range c.Repositories {
		row := &c.Repositories[i]
		var v *Verification
		if row.Verification != nil {
			v = &Verification{EveryDays: row.Verification.EveryDays, BytesPerSecond: row.Verification.BytesPerSecond}
		}
		*row = Repository{
			ID: row.ID, Name: row.Name, Kind: row.Kind, Path: row.Path, KeyFile: row.KeyFile, StoreID: row.StoreID, Status: HealthUnknown,
			CreatedAt: row.CreatedAt, Members: row.Members, Generation: row.Generation, Verification: v, Compression: row.Compression,
		}
	}
	for i := range c.Maintenance {
		row := &c.Maintenance[i]
		row.LastStarted, row.LastEnded, row.LastResult, row.LastError, row.LastParts = nil, nil, "", nil, nil
	}
	for i := range c.Movers {
		c.Movers[i].LastSeen = nil
	}
	for i := range c.Users {
		c.Users[i].LastLogin = nil
	}
	for i := range c.Tokens {
		c.Tokens[i].LastUsed = nil
	}
}

// Settled is the configuration without what changes by itself: equal for as long as nobody has changed anything. Maintenance of which
// only the last result was kept is what holds anyway.
func (c Configuration) Settled() Configuration {
	c.Repositories = append([]Repository(nil), c.Repositories...)
	for i := range c.Repositories {
		c.Repositories[i].Generation = Generation{}
	}
	c.Policies = append([]Policy(nil), c.Policies...)
	for i := range c.Policies {
		c.Policies[i].OpenedUntil, c.Policies[i].UpdatedAt = time.Time{}, time.Time{}
	}
	c.Movers = append([]Mover(nil), c.Movers...)
	for i := range c.Movers {
		m := &c.Movers[i]
		*m = Mover{
			ID: m.ID, Name: m.Name, Drained: m.Drained, RevokedAt: m.RevokedAt, DeployedOn: m.DeployedOn, EnrolledAt: m.EnrolledAt,
			Facts: MoverFacts{MachineUUID: m.Facts.MachineUUID},
		}
	}
	return c
}

// Install writes a configuration, and who the appliance is, into a catalog that has nothing yet: all of it or nothing. VMs are gone
// until an inventory finds them; nothing that was due before now is due.
func (c *Catalog) Install(ctx context.Context, conf Configuration, who Standing, now time.Time) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		for name := range configurationTables {
			var n int64
			if err := tx.Table(name).Count(&n).Error; err != nil {
				return err
			}
			if n > 0 {
				return fault.New(fault.Exists, "", "", "the database has %d rows in %s already", n, name).Explain(
					"A configuration is recovered into an empty database: two cannot be made one.", "Name another database, or empty this one.")
			}
		}
		who.ID = 1
		return firstError(
			tx.Where("1 = 1").Delete(&Standing{}).Error, tx.Create(&who).Error,
			insert(tx, conf.Connections, func(s SavedConnection) Connection { s.Connection.SealedSecret = s.SealedSecret; return s.Connection }),
			insert(tx, conf.Repositories, func(r Repository) Repository { return r }),
			insert(tx, conf.VMs, func(s SavedVM) VM { return s.row(now) }),
			insert(tx, conf.Policies, func(p Policy) Policy { p.OpenedUntil = now.UTC(); return p }),
			insert(tx, conf.Exclusions, func(e Exclusion) Exclusion { return e }),
			insert(tx, conf.Holds, func(h Hold) Hold { return h }),
			insert(tx, conf.Limits, func(l MoverLimit) MoverLimit { return l }),
			insert(tx, conf.Maintenance, func(m Maintenance) Maintenance { return m }),
			insert(tx, conf.Movers, func(m Mover) Mover { return m }),
			insert(tx, conf.Users, func(s SavedUser) User { s.User.PasswordHash = s.PasswordHash; return s.User }),
			insert(tx, conf.Tokens, func(s SavedToken) Token { s.Token.Hash = s.Hash; return s.Token }),
		)
	})
	if err != nil {
		return failure("recover configuration", "", err)
	}
	return nil
}

func (s SavedVM) row(now time.Time) VM {
	now = now.UTC()
	vm := VM{
		ID: s.ID, ConnectionID: s.ConnectionID, PlatformID: s.PlatformID, Name: s.Name, Power: "other", FirstSeen: s.FirstSeen, LastSeen: now, GoneAt: &now,
	}
	vm.Description.ID, vm.Description.Name = s.PlatformID, s.Name
	vm.Facts = factsOf(vm.ID, vm.ConnectionID, vm.Description)
	return vm
}

// insert writes rows as row makes them of what was saved.
func insert[S, T any](tx *gorm.DB, saved []S, row func(S) T) error {
	if len(saved) == 0 {
		return nil
	}
	rows := make([]T, len(saved))
	for i, s := range saved {
		rows[i] = row(s)
	}
	return tx.CreateInBatches(&rows, batch).Error
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
