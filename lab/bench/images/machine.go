package images

import (
	"fmt"
	"slices"
)

// Machine is one machine of a set.
type Machine struct {
	Name      string   `json:"name"`
	Kind      Kind     `json:"kind"`
	Root      string   `json:"root"` // of the cached root file system
	Packages  []string `json:"packages"`
	SizeBytes int64    `json:"size_bytes"` // virtual
	Content   Content  `json:"content"`    // at first
	Day       Day      `json:"day"`        // changes each day
	Days      int      `json:"days"`       // the first included
}

// Kind says where on a machine's disk a day's changes lie. It decides what a day costs whoever stores large pieces, so
// results are told apart by it.
type Kind string

// The kinds.
const (
	Quiet     Kind = "quiet"     // most changes are new files and what is appended; large parts of the disk stay as they are
	Scattered Kind = "scattered" // a large data set is updated in place all over
)

// Kinds lists them.
var Kinds = []Kind{Quiet, Scattered}

// Content is what a machine has beside its packages.
type Content struct {
	DatabaseMiB int `json:"database_mib"` // in pages of 8 KiB
	Metrics     int `json:"metrics"`      // files of 734 KiB, points of which are overwritten in place
	SQLiteRows  int `json:"sqlite_rows"`
	MediaMiB    int `json:"media_mib"` // that does not compress
	Messages    int `json:"messages"`  // in maildirs
	Sources     int `json:"sources"`   // small text files in trees
	LogMiB      int `json:"log_mib"`
}

// Day is what happens on a machine from one image to the next.
type Day struct {
	PageShare  float64 `json:"page_share"` // of the database's pages that are updated
	Uniform    bool    `json:"uniform"`    // pages are updated anywhere; otherwise mostly in a hot fifth
	WALs       int     `json:"wals"`       // segments of 16 MiB that are written anew
	SQLiteRows int     `json:"sqlite_rows"`
	UpgradeMiB int     `json:"upgrade_mib"` // of packages' files that are replaced, every third day
	ListsMiB   int     `json:"lists_mib"`   // of package lists fetched anew, every third day
	MediaMiB   int     `json:"media_mib"`
	Messages   int     `json:"messages"`
	Edits      int     `json:"edits"`   // source files changed
	LogMiB     int     `json:"log_mib"` // appended
	Touched    int     `json:"touched"` // files of which only the access time changes
}

// Set is a set of machines that are backed up together, and one whose life is followed for long.
type Set struct {
	Name     string    `json:"name"`
	Seed     uint64    `json:"seed"`
	Machines []Machine `json:"machines"`
	Long     Machine   `json:"long"`
}

const (
	mib = 1 << 20
	gib = 1 << 30
)

var (
	smallBase = []string{
		"systemd-sysv", "openssh-server", "rsyslog", "cron", "logrotate", "curl", "less", "python3", "perl", "ca-certificates",
	}
	fullBase = append(slices.Clone(smallBase), "linux-image-amd64", "initramfs-tools", "locales", "vim", "man-db", "wget", "gnupg")
)

func with(base []string, more ...string) []string { return append(slices.Clone(base), more...) }

// NewSet returns one of the sets that there are: "default" (4 GiB virtual, 1.2 to 2.3 GiB used) or "small".
func NewSet(name string, seed uint64) (Set, error) {
	long := Machine{
		Name: "mail", Kind: Quiet, Root: "mail", Packages: with(smallBase, "postfix", "dovecot-imapd", "dovecot-lmtpd"), SizeBytes: gib, Days: 31,
		Content: Content{Messages: 1500, SQLiteRows: 20000, LogMiB: 16},
		Day:     Day{SQLiteRows: 200, UpgradeMiB: 4, Messages: 60, LogMiB: 1, Touched: 100},
	}
	switch name {
	case "default":
		return Set{Name: name, Seed: seed, Long: long, Machines: []Machine{
			{
				Name: "web", Kind: Quiet, Root: "web", SizeBytes: 4 * gib, Days: 4,
				Packages: with(fullBase, "nginx", "apache2", "php-fpm", "php-mysql", "php-gd", "php-xml", "php-mbstring", "nodejs", "npm",
					"redis-server", "certbot", "imagemagick"),
				Content: Content{DatabaseMiB: 64, SQLiteRows: 20000, MediaMiB: 128, Sources: 6000, LogMiB: 96},
				Day:     Day{PageShare: 0.05, SQLiteRows: 2000, UpgradeMiB: 40, ListsMiB: 20, MediaMiB: 8, Edits: 200, LogMiB: 12, Touched: 3000},
			},
			{
				Name: "database", Kind: Scattered, Root: "small-database", SizeBytes: 4 * gib, Days: 4,
				Packages: with(smallBase, "postgresql", "sqlite3"),
				Content:  Content{DatabaseMiB: 1200, SQLiteRows: 50000, LogMiB: 32},
				Day:      Day{PageShare: 0.03, Uniform: true, WALs: 2, SQLiteRows: 3000, UpgradeMiB: 30, ListsMiB: 20, LogMiB: 6, Touched: 2000},
			},
			{
				Name: "development", Kind: Quiet, Root: "development", SizeBytes: 4 * gib, Days: 4,
				Packages: with(fullBase, "build-essential", "git", "golang-go", "gdb", "openjdk-17-jdk-headless", "python3-dev", "cmake",
					"sqlite3"),
				Content: Content{SQLiteRows: 10000, MediaMiB: 32, Messages: 400, Sources: 12000, LogMiB: 16},
				Day: Day{
					SQLiteRows: 1000, UpgradeMiB: 40, ListsMiB: 20, MediaMiB: 4, Messages: 60, Edits: 1500, LogMiB: 3, Touched: 4000,
				},
			},
			{
				Name: "monitoring", Kind: Scattered, Root: "monitoring", SizeBytes: 4 * gib, Days: 4,
				Packages: with(fullBase, "graphite-carbon", "graphite-web", "apache2", "libapache2-mod-wsgi-py3", "rrdtool", "snmp", "redis-server"),
				Content:  Content{Metrics: 1000, SQLiteRows: 10000, LogMiB: 32},
				Day:      Day{SQLiteRows: 500, UpgradeMiB: 30, ListsMiB: 20, LogMiB: 6, Touched: 2000},
			},
		}}, nil
	case "small":
		long.Days = 6
		return Set{Name: name, Seed: seed, Long: long, Machines: []Machine{
			{
				Name: "web", Kind: Quiet, Root: "small-web", Packages: with(smallBase, "nginx", "php-fpm", "redis-server"), SizeBytes: gib, Days: 4,
				Content: Content{DatabaseMiB: 16, SQLiteRows: 5000, MediaMiB: 16, Sources: 1000, LogMiB: 16},
				Day:     Day{PageShare: 0.05, SQLiteRows: 500, UpgradeMiB: 8, ListsMiB: 4, MediaMiB: 2, Edits: 40, LogMiB: 2, Touched: 500},
			},
			{
				Name: "database", Kind: Scattered, Root: "small-database", Packages: with(smallBase, "postgresql", "sqlite3"), SizeBytes: gib, Days: 4,
				Content: Content{DatabaseMiB: 192, SQLiteRows: 10000, LogMiB: 8},
				Day:     Day{PageShare: 0.04, Uniform: true, WALs: 1, SQLiteRows: 500, UpgradeMiB: 6, ListsMiB: 4, LogMiB: 1, Touched: 500},
			},
			{
				Name: "development", Kind: Quiet, Root: "small-development", Packages: with(smallBase, "git", "gcc", "libc6-dev", "make"),
				SizeBytes: gib, Days: 4,
				Content: Content{SQLiteRows: 5000, MediaMiB: 8, Messages: 100, Sources: 2000, LogMiB: 4},
				Day:     Day{SQLiteRows: 300, UpgradeMiB: 8, ListsMiB: 4, MediaMiB: 1, Messages: 20, Edits: 200, LogMiB: 1, Touched: 800},
			},
		}}, nil
	}
	return Set{}, fmt.Errorf("no set of images is called %q; there are default and small", name)
}
