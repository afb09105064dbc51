package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"gorm.io/gorm"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Mover is an enrolled mover. One that was revoked keeps its row, so that its name says who it was.
type Mover struct {
	ID              string     `gorm:"primaryKey" json:"id"`
	Name            string     `gorm:"uniqueIndex;not null" json:"name"`
	Drained         bool       `json:"drained"`
	Facts           MoverFacts `gorm:"serializer:json" json:"facts"`
	Slots           int        `json:"slots"`
	Source          string     `json:"source"` // the address it last connected from
	EnrolledAt      time.Time  `json:"enrolled_at"`
	CertificateEnds time.Time  `json:"certificate_ends"`
	LastSeen        *time.Time `json:"last_seen,omitempty"`
	RevokedAt       *time.Time `json:"revoked_at,omitempty"`
	// DeployedOn is the connection on which we have made its VM, which goes with it; "" if we have not.
	DeployedOn string `json:"deployed_on,omitempty"`
}

// MoverFacts is what a mover says of its machine.
type MoverFacts struct {
	Version     string       `json:"version,omitempty"`
	Hostname    string       `json:"hostname,omitempty"`
	CPUs        int          `json:"cpus,omitempty"`
	MemoryBytes int64        `json:"memory_bytes,omitempty"`
	Transports  []string     `json:"transports,omitempty"`
	MachineUUID string       `json:"machine_uuid,omitempty"`
	BootID      string       `json:"boot_id,omitempty"`
	Mounts      []MoverMount `json:"mounts,omitempty"`
	WWNs        []string     `json:"wwns,omitempty"` // of the LUNs that it sees, in canonical form
}

// MoverMount is a repository's storage that a mover reaches itself.
type MoverMount struct {
	Path    string `json:"path"`
	StoreID string `json:"store_id"`
}

// JoinToken lets one mover enrol; only a hash of it is kept.
type JoinToken struct {
	ID        string     `gorm:"primaryKey" json:"id"`
	Hash      string     `gorm:"uniqueIndex;not null" json:"-"`
	Name      string     `json:"name,omitempty"`    // the mover's; "" lets it choose
	Replace   bool       `json:"replace,omitempty"` // takes the place of the mover with this name
	CreatedBy string     `json:"created_by"`
	CreatedAt time.Time  `json:"created_at"`
	ExpiresAt time.Time  `json:"expires_at"`
	UsedAt    *time.Time `json:"used_at,omitempty"`
	MoverID   string     `json:"mover_id,omitempty"` // who used it
	KeyHash   string     `json:"-"`                  // of the public key it was used with
}

// AddJoinToken stores a new token and fills in the id and time. An Exists error means that its name is taken and it
// does not replace.
func (c *Catalog) AddJoinToken(ctx context.Context, t *JoinToken) error {
	t.ID, t.CreatedAt = NewID(PrefixToken), time.Now().UTC()
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		if t.Name != "" && !t.Replace {
			if taken, err := moverNamed(tx, t.Name); err != nil {
				return err
			} else if taken {
				return gorm.ErrDuplicatedKey
			}
		}
		return tx.Create(t).Error
	})
	if err != nil {
		return failure("create join token", t.Name, err)
	}
	return nil
}

// JoinToken returns one token by its id.
func (c *Catalog) JoinToken(ctx context.Context, id string) (JoinToken, error) {
	return first[JoinToken](ctx, c, "look up join token", id, "id = ?", id)
}

// SpendJoinToken makes a token worthless and returns it: who has used it meanwhile is in it.
func (c *Catalog) SpendJoinToken(ctx context.Context, id string) (JoinToken, error) {
	if err := c.db.WithContext(ctx).Model(&JoinToken{}).Where("id = ?", id).Update("expires_at", time.Now().UTC()).Error; err != nil {
		return JoinToken{}, failure("end join token", id, err)
	}
	return c.JoinToken(ctx, id)
}

// DeployedMover records that a mover's VM was made by us, on a connection.
func (c *Catalog) DeployedMover(ctx context.Context, id, connectionID string) error {
	return c.changeMover(ctx, id, map[string]any{"deployed_on": connectionID}, nil)
}

func moverNamed(tx *gorm.DB, name string) (bool, error) {
	var n int64
	err := tx.Model(&Mover{}).Where("name = ?", name).Count(&n).Error
	return n > 0, err
}

// EnrolMover uses a token up and stores the mover, both or neither; of several who try at once one succeeds. The
// mover's id and time are filled in, and its name: that of the token, or the one it has in m, made unique. replaced is
// the id of the mover whose place it took. A Denied error says in words why the token is no good. The same token with
// the same key gives the same mover again, as long as the token lives: the first answer may have been lost.
func (c *Catalog) EnrolMover(ctx context.Context, hash, keyHash string, m *Mover) (replaced string, err error) {
	m.ID, m.EnrolledAt = NewID(PrefixMover), time.Now().UTC()
	err = c.transaction(ctx, func(tx *gorm.DB) error {
		var t JoinToken
		if err := tx.Where("hash = ?", hash).Take(&t).Error; err != nil {
			if errors.Is(err, gorm.ErrRecordNotFound) {
				return tokenNoGood("it is not known")
			}
			return err
		}
		if why := t.spent(m.EnrolledAt, keyHash); why != "" {
			return tokenNoGood(why)
		}
		if t.UsedAt != nil {
			ends := m.CertificateEnds
			*m = Mover{}
			if err := tx.Where("id = ? AND revoked_at IS NULL", t.MoverID).Take(m).Error; err != nil {
				return tokenNoGood("it was used already, and its mover is gone")
			}
			m.CertificateEnds = ends
			return tx.Model(m).Update("certificate_ends", ends).Error
		}
		used := JoinToken{UsedAt: &m.EnrolledAt, MoverID: m.ID, KeyHash: keyHash}
		if err := tx.Model(&t).Select("used_at", "mover_id", "key_hash").Updates(&used).Error; err != nil {
			return err
		}
		var err error
		if replaced, err = takeName(tx, t, m); err != nil {
			return err
		}
		return tx.Create(m).Error
	})
	if err != nil {
		return "", failure("enrol mover", m.Name, err)
	}
	return replaced, nil
}

func (t *JoinToken) spent(now time.Time, keyHash string) string {
	switch {
	case t.UsedAt != nil && t.KeyHash != keyHash:
		return "it was used already"
	case !now.Before(t.ExpiresAt):
		return "it expired at " + t.ExpiresAt.UTC().Format(time.RFC3339)
	}
	return ""
}

func tokenNoGood(why string) error {
	return fault.New(fault.Denied, "use join token", "", "%s", why).Explain(
		"A join token enrols one mover, once, and only for a short time.",
		"Make a new one with `cairn mover token` and start the mover with it.")
}

// takeName settles what the mover is called.
func takeName(tx *gorm.DB, t JoinToken, m *Mover) (replaced string, err error) {
	if t.Name != "" {
		m.Name = t.Name
		if t.Replace {
			var old Mover
			if err := tx.Where("name = ?", t.Name).Limit(1).Find(&old).Error; err != nil || old.ID == "" {
				return "", err
			}
			if old.Facts.MachineUUID == m.Facts.MachineUUID {
				m.DeployedOn = old.DeployedOn // the same VM begins again
			}
			return old.ID, tx.Delete(&old).Error
		}
		return "", nil // the unique index says whether somebody has it meanwhile
	}
	wished := m.Name
	for n := 2; ; n++ {
		taken, err := moverNamed(tx, m.Name)
		if err != nil || !taken {
			return "", err
		}
		m.Name = fmt.Sprintf("%s-%d", wished, n)
	}
}

// Movers returns all movers, by name.
func (c *Catalog) Movers(ctx context.Context) ([]Mover, error) {
	return everything[Mover](ctx, c, "movers")
}

// Mover returns one mover by its id.
func (c *Catalog) Mover(ctx context.Context, id string) (Mover, error) {
	return first[Mover](ctx, c, "look up mover", id, "id = ?", id)
}

// SeeMover stores what is known of a mover that has connected or renewed its certificate. Which machine it is was settled
// when it enrolled: disks are plugged into the VM of that name, and a mover must not be able to point to another one.
func (c *Catalog) SeeMover(ctx context.Context, m Mover) error {
	known, err := c.Mover(ctx, m.ID)
	if err != nil {
		return err
	}
	m.Facts.MachineUUID = known.Facts.MachineUUID
	return c.changeMover(ctx, m.ID, map[string]any{"last_seen": time.Now().UTC()}, &m, "facts", "slots", "source", "certificate_ends")
}

// TouchMover stores that a mover is there now.
func (c *Catalog) TouchMover(ctx context.Context, id string) error {
	return c.changeMover(ctx, id, map[string]any{"last_seen": time.Now().UTC()}, nil)
}

// DrainMover says whether a mover is given no more transfers.
func (c *Catalog) DrainMover(ctx context.Context, id string, drained bool) error {
	return c.changeMover(ctx, id, map[string]any{"drained": drained}, nil)
}

// RevokeMover makes a mover's certificates worthless. May be repeated; the first time counts.
func (c *Catalog) RevokeMover(ctx context.Context, id string) error {
	return c.changeMover(ctx, id, map[string]any{"revoked_at": gorm.Expr("COALESCE(revoked_at, ?)", time.Now().UTC())}, nil)
}

// changeMover writes some columns, and then those of row that are named.
func (c *Catalog) changeMover(ctx context.Context, id string, values map[string]any, row *Mover, columns ...string) error {
	err := c.transaction(ctx, func(tx *gorm.DB) error {
		res := tx.Model(&Mover{}).Where("id = ?", id).Updates(values)
		if res.Error == nil && res.RowsAffected == 0 {
			return gorm.ErrRecordNotFound
		}
		if res.Error != nil || row == nil {
			return res.Error
		}
		return tx.Model(&Mover{}).Where("id = ?", id).Select(columns).Updates(row).Error
	})
	if err != nil {
		return failure("change mover", id, err)
	}
	return nil
}

// RemoveMover forgets a mover; its certificates are then of nobody.
func (c *Catalog) RemoveMover(ctx context.Context, id string) error {
	res := c.db.WithContext(ctx).Where("id = ?", id).Delete(&Mover{})
	if res.Error != nil {
		return failure("remove mover", id, res.Error)
	}
	if res.RowsAffected == 0 {
		return notFound("remove mover", id)
	}
	return nil
}
