package ovirt

import (
	"context"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/cairn-backup/cairn/hypervisors"
	"github.com/cairn-backup/cairn/hypervisors/ovirt/internal/engine"
	"github.com/cairn-backup/cairn/internal/fault"
)

// marker begins what this product writes on everything it makes.
const marker = "cairn-"

// Config says how to reach an engine.
type Config struct {
	URL      string // https://engine.example.com, with or without /ovirt-engine/api
	User     string // as typed: admin@internal, or admin@ovirt@internalsso where Keycloak is in use
	Password string
	Options  map[string]string
	Confirm  hypervisors.ConfirmHost // nil takes any engine
	Log      *slog.Logger
}

// The keys of Config.Options.
const (
	// OptCAFile is a PEM file on the appliance with the CA of the engine's web server.
	OptCAFile = engine.OptCAFile
	// OptCAFingerprint is the SHA-256 of that CA's certificate, or of the server's own, in hex.
	OptCAFingerprint = engine.OptCAFingerprint
	// OptImageioCAFile is a PEM file with the CA of the hosts' imageio; by default the engine's own CA, asked of it.
	OptImageioCAFile = engine.OptImageioCAFile
	// OptTransferVia is "host" (movers read from the hosts, through the engine where they cannot reach one) or "engine".
	OptTransferVia = "transfer_via"
	// OptHostAddresses maps the hosts' addresses as the engine has them to those that movers reach:
	// "node1.lan=10.0.0.5,node2.lan=10.0.0.6".
	OptHostAddresses = "host_addresses"
	// OptChecksums is "on" if what was read of a whole disk is compared with the host's own checksum of it, which it reads the disk
	// a second time for; by default it is "off".
	OptChecksums = "transfer_checksums"
)

var options = []string{OptCAFile, OptCAFingerprint, OptImageioCAFile, OptTransferVia, OptHostAddresses, OptChecksums}

// Driver is one engine. It implements hypervisors.Driver.
type Driver struct {
	hypervisors.Unsupported
	conn *engine.Conn
	base *url.URL // of the engine
	cfg  Config
	log  *slog.Logger
	pace pace
	// addresses is OptHostAddresses.
	addresses map[string]string

	mu       sync.Mutex
	frozen   map[string]*frozen    // by tag: freezes of this process whose transfers are kept alive
	restores map[string]*restoring // by tag: restores of this process
	adding   map[string]*making    // by tag: calls under way that make something
}

var _ hypervisors.Driver = (*Driver)(nil)

// Open checks the configuration; it does not connect. The driver logs in when it is first used.
func Open(_ context.Context, cfg Config) (*Driver, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "configure connection", hypervisors.ShownAddress(cfg.URL), format, args...).Explain(
			"These settings cannot be those of an oVirt engine.",
			"Give the engine's address as https://engine.example.com, a user as admin@internal or admin@ovirt@internalsso, and a password; known options: "+
				strings.Join(options, ", ")+".")
	}
	for k := range cfg.Options {
		if !slices.Contains(options, k) {
			return nil, bad("unknown option %q", k)
		}
	}
	base, err := parseAddress(cfg.URL)
	if err != nil {
		return nil, bad("%w", err)
	}
	if !strings.Contains(cfg.User, "@") {
		return nil, bad("the user %q names no profile after an @", cfg.User)
	}
	if cfg.Password == "" {
		return nil, bad("there is no password")
	}
	addresses, err := parseHostAddresses(cfg.Options[OptHostAddresses])
	if err != nil {
		return nil, bad("%w", err)
	}
	if via := cfg.Options[OptTransferVia]; via != "" && via != viaHost && via != viaEngine {
		return nil, bad("the option %s is %q, neither %s nor %s", OptTransferVia, via, viaHost, viaEngine)
	}
	if sums := cfg.Options[OptChecksums]; sums != "" && sums != checksumsOn && sums != checksumsOff {
		return nil, bad("the option %s is %q, neither %s nor %s", OptChecksums, sums, checksumsOn, checksumsOff)
	}
	conn, err := engine.Open(engine.Config{Base: base, User: cfg.User, Password: cfg.Password, Options: cfg.Options, Log: cfg.Log, Confirm: cfg.Confirm})
	if err != nil {
		return nil, err
	}
	return &Driver{
		Unsupported: hypervisors.Unsupported{Platform: hypervisors.OVirt},
		conn:        conn, base: base,
		cfg: cfg, log: cfg.Log, pace: usualPace, addresses: addresses,
		frozen: map[string]*frozen{}, restores: map[string]*restoring{}, adding: map[string]*making{},
	}, nil
}

// The values of OptTransferVia.
const (
	viaHost   = "host"
	viaEngine = "engine"
)

// The values of OptChecksums.
const (
	checksumsOn  = "on"
	checksumsOff = "off"
)

// parseAddress takes the forms in which people write an engine's address and returns its root.
func parseAddress(address string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSpace(address))
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "", "the address cannot be read")
	}
	path := strings.TrimSuffix(u.Path, "/")
	switch {
	case u.Scheme != "https":
		return nil, fault.New(fault.Invalid, "", "", "the address does not begin with https://")
	case u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, fault.New(fault.Invalid, "", "", "the address is more or less than a host")
	case path != "" && path != "/ovirt-engine" && path != "/ovirt-engine/api":
		return nil, fault.New(fault.Invalid, "", "", "the address has the path %s", path)
	}
	return &url.URL{Scheme: "https", Host: u.Host}, nil
}

func parseHostAddresses(text string) (map[string]string, error) {
	out := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		from, to, found := strings.Cut(pair, "=")
		from, to = strings.TrimSpace(from), strings.TrimSpace(to)
		if !found || from == "" || to == "" || strings.ContainsAny(from+to, "/@?# ") {
			return nil, fault.New(fault.Invalid, "", "", "the option %s has %q, which is not name=address", OptHostAddresses, pair)
		}
		out[strings.ToLower(from)] = to
	}
	return out, nil
}

// Close stops what keeps freezes alive and logs out. Freezes and restores stay on the engine.
func (d *Driver) Close() error {
	d.mu.Lock()
	var all []*keeper
	for _, f := range d.frozen {
		all = append(all, f.keeper)
	}
	for _, r := range d.restores {
		all = append(all, r.keep)
	}
	d.mu.Unlock()
	for _, k := range all {
		k.stop()
	}
	return d.conn.Close()
}

// Capabilities says what the driver can do. What an engine or cluster is too old for is said by each freeze.
func (d *Driver) Capabilities() hypervisors.Capabilities {
	return hypervisors.Capabilities{
		Platform: hypervisors.OVirt, Backup: true, ChangeTracking: true, Quiesce: true, StoppedBackup: true,
		Restore: true, RestoreInPlace: true, RestoreDisks: true, RestoreInto: true, Power: true, DeployMover: true, Watch: true,
		Transports: []hypervisors.Transport{hypervisors.TransportImageio, hypervisors.TransportHotadd, hypervisors.TransportSAN},
		Formats:    []hypervisors.DiskFormat{hypervisors.Raw, hypervisors.QCOW2},
	}
}

var (
	goodTag = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	goodID  = regexp.MustCompile(`^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$`)
)

func checkTag(tag string) error {
	if !goodTag.MatchString(tag) {
		return fault.New(fault.Invalid, "check tag", tag, "it is not 1 to 64 letters, digits, '-' and '_'")
	}
	return nil
}

// checkID answers NotFound for anything that cannot be an entity's id, so that it is never part of a path.
func checkID(what, id string) error {
	if goodID.MatchString(id) {
		return nil
	}
	return fault.New(fault.NotFound, "look up "+what, id, "no %s has this id", what).
		Explain("The engine has no "+what+" with this id.", "List what the connection has, and name one of it.")
}
