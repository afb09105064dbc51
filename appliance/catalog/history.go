package catalog

import (
	"context"
	"encoding/binary"
	"time"

	"gorm.io/gorm"
	"gorm.io/gorm/clause"

	"github.com/cairn-backup/cairn/appliance/policy"
)

// The RPO that was achieved is accounted for as it happens (policy.Account), because restore points that are pruned later do not say any more
// what there was. A VM has one account, and a row for each month with 20 bytes a day.

// RPOAccount is how far a VM has been accounted for.
type RPOAccount struct {
	VMID          string     `gorm:"primaryKey" json:"vm_id"`
	AsOf          time.Time  `json:"as_of"`
	Newest        *time.Time `json:"newest,omitempty"`
	TargetSeconds int64      `json:"target_seconds"`
}

// RPOStamp is that a restore point was made, until it is accounted for.
type RPOStamp struct {
	RestorePointID string    `gorm:"primaryKey" json:"restore_point_id"`
	VMID           string    `json:"vm_id"`
	Time           time.Time `json:"time"`
	Published      time.Time `json:"published"`
}

// RPOMonth is what a VM has achieved on the days of a month.
type RPOMonth struct {
	VMID  string `gorm:"primaryKey" json:"vm_id"`
	Month string `gorm:"primaryKey;index" json:"month"` // 2026-11
	Days  []byte `json:"days"`                          // see encodeDays
}

// HistoryKept is how long it is known what was achieved.
const HistoryKept = 400 * 24 * time.Hour

// dayBytes is the size of a day: its number, a byte that is 0, restore points, and four durations in seconds.
const dayBytes = 20

func encodeDays(days []policy.Day) []byte {
	out := make([]byte, 0, len(days)*dayBytes)
	for _, d := range days {
		out = append(out, byte(d.Date.Day()), 0)
		out = binary.LittleEndian.AppendUint16(out, uint16(min(d.Points, 1<<16-1)))
		for _, span := range []time.Duration{d.Covered, d.Late, d.Worst, d.Target} {
			out = binary.LittleEndian.AppendUint32(out, uint32(min(span/time.Second, 1<<32-1)))
		}
	}
	return out
}

func (m RPOMonth) decode() (days []policy.Day) {
	first, err := time.Parse("2006-01", m.Month)
	if err != nil {
		return nil
	}
	for p := m.Days; len(p) >= dayBytes; p = p[dayBytes:] {
		span := func(i int) time.Duration { return time.Duration(binary.LittleEndian.Uint32(p[4+4*i:])) * time.Second }
		days = append(days, policy.Day{
			Date: first.AddDate(0, 0, int(p[0])-1), Points: int(binary.LittleEndian.Uint16(p[2:])),
			Covered: span(0), Late: span(1), Worst: span(2), Target: span(3),
		})
	}
	return days
}

// account turns a row into what it means.
func (r RPOAccount) account() policy.Account {
	a := policy.Account{AsOf: r.AsOf.UTC(), Target: time.Duration(r.TargetSeconds) * time.Second}
	if r.Newest != nil {
		a.Newest = r.Newest.UTC()
	}
	return a
}

// Ledger is all accounts, and what has happened since.
type Ledger struct {
	Accounts map[string]policy.Account // by VM
	Stamps   map[string][]policy.Stamp
	points   map[string][]string // ids of the restore points of the stamps
}

// Ledger reads the accounts of a VM, or of all.
func (c *Catalog) Ledger(ctx context.Context, vmID string) (Ledger, error) {
	l := Ledger{Accounts: map[string]policy.Account{}, Stamps: map[string][]policy.Stamp{}, points: map[string][]string{}}
	q := c.db.WithContext(ctx)
	if vmID != "" {
		q = q.Where("vm_id = ?", vmID)
	}
	q = q.Session(&gorm.Session{})
	var stamps []RPOStamp
	if err := q.Find(&stamps).Error; err != nil {
		return l, failure("list restore points to account for", vmID, err)
	}
	for _, s := range stamps {
		l.Stamps[s.VMID] = append(l.Stamps[s.VMID], policy.Stamp{Time: s.Time.UTC(), Published: s.Published.UTC()})
		l.points[s.VMID] = append(l.points[s.VMID], s.RestorePointID)
	}
	var rows []RPOAccount
	if err := q.Find(&rows).Error; err != nil {
		return l, failure("list accounts", vmID, err)
	}
	for _, r := range rows {
		l.Accounts[r.VMID] = r.account()
	}
	return l, nil
}

// Accounted is what one VM's account has become.
type Accounted struct {
	VMID    string
	Account policy.Account
	Days    []policy.Day // to add
}

// SaveAccounts stores what accounts that were read as l have become, and forgets the stamps that are in them. An account that another
// manager has advanced meanwhile is left to it.
func (c *Catalog) SaveAccounts(ctx context.Context, l Ledger, all []Accounted) error {
	const batch = 250 // others write between two
	for len(all) > 0 {
		n := min(batch, len(all))
		err := c.transaction(ctx, func(tx *gorm.DB) error {
			for _, one := range all[:n] {
				if err := saveAccount(tx, l, one); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return failure("account for RPO", "", err)
		}
		all = all[n:]
	}
	return nil
}

func saveAccount(tx *gorm.DB, l Ledger, one Accounted) error {
	row := RPOAccount{VMID: one.VMID, AsOf: one.Account.AsOf.UTC(), TargetSeconds: int64(one.Account.Target / time.Second)}
	if !one.Account.Newest.IsZero() {
		newest := one.Account.Newest.UTC()
		row.Newest = &newest
	}
	before, known := l.Accounts[one.VMID]
	var res *gorm.DB
	if known {
		res = tx.Model(&RPOAccount{}).Where("vm_id = ? AND as_of = ?", one.VMID, before.AsOf).Select("as_of", "newest", "target_seconds").Updates(&row)
	} else {
		res = tx.Clauses(clause.OnConflict{DoNothing: true}).Create(&row)
	}
	if res.Error != nil || res.RowsAffected == 0 {
		return res.Error
	}
	if err := addDays(tx, one.VMID, one.Days); err != nil {
		return err
	}
	if ids := l.points[one.VMID]; len(ids) > 0 {
		return tx.Where("restore_point_id IN ?", ids).Delete(&RPOStamp{}).Error
	}
	return nil
}

// addDays adds days of a VM to its months.
func addDays(tx *gorm.DB, vmID string, days []policy.Day) error {
	for len(days) > 0 {
		month := days[0].Date.Format("2006-01")
		n := 0
		for n < len(days) && days[n].Date.Format("2006-01") == month {
			n++
		}
		row := RPOMonth{VMID: vmID, Month: month}
		var known []RPOMonth
		if err := tx.Where("vm_id = ? AND month = ?", vmID, month).Find(&known).Error; err != nil {
			return err
		}
		if len(known) > 0 {
			row = known[0]
		}
		row.Days = encodeDays(mergeDays(row.decode(), days[:n]))
		if err := tx.Clauses(clause.OnConflict{UpdateAll: true}).Create(&row).Error; err != nil {
			return err
		}
		days = days[n:]
	}
	return nil
}

// mergeDays adds up two lists, of which the second one begins with the last day of the first, or later.
func mergeDays(days, more []policy.Day) []policy.Day {
	for _, d := range more {
		if n := len(days); n > 0 && !d.Date.After(days[n-1].Date) {
			days[n-1] = days[n-1].Add(d)
			continue
		}
		days = append(days, d)
	}
	return days
}

// History calls see for each VM and day from the first to the last, as far as it has been accounted for; vmID "" is all VMs.
func (c *Catalog) History(ctx context.Context, vmID string, from, to time.Time, see func(vmID string, d policy.Day)) error {
	q := c.db.WithContext(ctx).Where("month >= ? AND month <= ?", from.UTC().Format("2006-01"), to.UTC().Format("2006-01"))
	if vmID != "" {
		q = q.Where("vm_id = ?", vmID)
	}
	var rows []RPOMonth
	if err := q.Find(&rows).Error; err != nil {
		return failure("read history of RPO", vmID, err)
	}
	for _, row := range rows {
		for _, d := range row.decode() {
			if !d.Date.Before(from) && !d.Date.After(to) {
				see(row.VMID, d)
			}
		}
	}
	return nil
}

// PurgeHistory forgets months that ended before an instant.
func (c *Catalog) PurgeHistory(ctx context.Context, before time.Time) error {
	if err := c.db.WithContext(ctx).Where("month < ?", before.UTC().Format("2006-01")).Delete(&RPOMonth{}).Error; err != nil {
		return failure("forget old history of RPO", "", err)
	}
	return nil
}
