package guest

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cairn-backup/cairn/internal/fault"
)

// Config is what a mover is told from outside at its start. Every field may be empty.
type Config struct {
	Manager     string // host:port of the manager
	Fingerprint string // SHA-256 of the manager's CA certificate, 64 lower-case hexadecimal digits
	Token       string // one-use join token; logs never show it
	Name        string // the mover's name, also the host name
	// Repositories are directories with storage of repositories that the mover reaches itself.
	Repositories []string
	// Storage are shares, "nfs://host/path", that a Debian mover or appliance mounts below StorageDir as 1, 2, and so on.
	Storage []string
	// Sessions are targets on the storage network, "iscsi://portal/iqn…" or "nvme+tcp://address/nqn…", with which a Debian mover begins
	// sessions, so that it sees their LUNs. A CHAP name and secret stand before the portal; logs never show the secret.
	Sessions []string
	Network  Network

	// Sources says where the values came from, for the log: "kernel command line", "fw_cfg", "NoCloud seed sr0".
	Sources []string
}

// Network says how the mover reaches its network. The zero value is DHCP on the first interface .
type Network struct {
	MAC     string       // of the interface to use, "52:54:00:12:34:56"; empty: the first one
	Address netip.Prefix // not valid: DHCP
	Gateway netip.Addr
	DNS     []netip.Addr
	NTP     []string // names or addresses; empty: those that DHCP names
	MTU     int      // 0: the interface's own
}

// LogValue shows a configuration without its secret.
func (c Config) LogValue() slog.Value {
	token := ""
	if c.Token != "" {
		token = "[redacted]"
	}
	return slog.GroupValue(
		slog.String("manager", c.Manager), slog.String("fingerprint", c.Fingerprint), slog.String("token", token),
		slog.String("name", c.Name), slog.Any("repositories", c.Repositories), slog.Any("storage", c.Storage),
		slog.Any("sessions", WithoutSecrets(c.Sessions)), slog.String("network", c.Network.String()), slog.Any("sources", c.Sources))
}

// String returns the network's words as ParseCmdline takes them, or "dhcp".
func (n Network) String() string {
	var words []string
	add := func(key, value string) {
		if value != "" {
			words = append(words, key+"="+value)
		}
	}
	add("mac", n.MAC)
	if n.Address.IsValid() {
		add("address", n.Address.String())
	} else {
		words = append(words, "dhcp")
	}
	if n.Gateway.IsValid() {
		add("gateway", n.Gateway.String())
	}
	add("dns", strings.Join(texts(n.DNS), ","))
	add("ntp", strings.Join(n.NTP, ","))
	if n.MTU > 0 {
		add("mtu", strconv.Itoa(n.MTU))
	}
	return strings.Join(words, " ")
}

// texts are addresses as text.
func texts(as []netip.Addr) (out []string) {
	for _, a := range as {
		out = append(out, a.String())
	}
	return out
}

// maxDocument bounds what is read as a configuration.
const maxDocument = 64 << 10

// document is the configuration's text form. It is YAML, so that a NoCloud seed's user-data can carry it beside what
// is for cloud-init; only the key "cairn" is ours.
type document struct {
	Cairn *struct {
		Manager      string   `yaml:"manager"`
		Fingerprint  string   `yaml:"fingerprint"`
		Token        string   `yaml:"token"`
		Name         string   `yaml:"name"`
		Repositories []string `yaml:"repositories"`
		Storage      []string `yaml:"storage"`
		Sessions     []string `yaml:"sessions"`
		Network      struct {
			MAC     string   `yaml:"mac"`
			Address string   `yaml:"address"`
			Gateway string   `yaml:"gateway"`
			DNS     []string `yaml:"dns"`
			NTP     []string `yaml:"ntp"`
			MTU     string   `yaml:"mtu"`
		} `yaml:"network"`
	} `yaml:"cairn"`
}

// oursIn finds the line at which our part of a document begins.
var oursIn = regexp.MustCompile(`(?m)^["']?cairn["']?\s*:`)

// errNotOurs says that a document holds nothing for a mover.
var errNotOurs = errors.New("there is no key \"cairn\" in it")

// ParseDocument reads a YAML document of at most 64 KiB with the key "cairn". Keys beside it are others' and ignored;
// unknown keys below it are an error, because a misspelt one would be missed silently.
func ParseDocument(p []byte) (Config, error) {
	if len(p) > maxDocument {
		return Config{}, invalid(fmt.Errorf("it is larger than %d bytes", maxDocument))
	}
	if !oursIn.Match(p) {
		return Config{}, errNotOurs // other machines' user-data may be no YAML at all
	}
	var all map[string]yaml.Node
	if err := yaml.Unmarshal(p, &all); err != nil {
		return Config{}, invalid(err)
	}
	ours, ok := all["cairn"]
	if !ok {
		return Config{}, errNotOurs
	}
	one, err := yaml.Marshal(map[string]*yaml.Node{"cairn": &ours})
	if err != nil {
		return Config{}, invalid(err)
	}
	var d document
	dec := yaml.NewDecoder(bytes.NewReader(one))
	dec.KnownFields(true)
	if err := dec.Decode(&d); err != nil && !errors.Is(err, io.EOF) {
		return Config{}, invalid(err)
	}
	if d.Cairn == nil {
		return Config{}, errNotOurs
	}
	n := d.Cairn.Network
	return build(map[string]string{
		"manager": d.Cairn.Manager, "fingerprint": d.Cairn.Fingerprint, "token": d.Cairn.Token, "name": d.Cairn.Name,
		"repositories": strings.Join(d.Cairn.Repositories, ","), "storage": strings.Join(d.Cairn.Storage, ","),
		"sessions": strings.Join(d.Cairn.Sessions, ","),
		"mac":      n.MAC, "address": n.Address, "gateway": n.Gateway, "dns": strings.Join(n.DNS, ","),
		"ntp": strings.Join(n.NTP, ","), "mtu": n.MTU,
	})
}

// Document returns the configuration in the form that ParseDocument reads, the token included.
func (c Config) Document() ([]byte, error) {
	ours := map[string]any{}
	set := func(m map[string]any, key, value string) {
		if value != "" {
			m[key] = value
		}
	}
	set(ours, "manager", c.Manager)
	set(ours, "fingerprint", c.Fingerprint)
	set(ours, "token", c.Token)
	set(ours, "name", c.Name)
	if len(c.Repositories) > 0 {
		ours["repositories"] = c.Repositories
	}
	if len(c.Storage) > 0 {
		ours["storage"] = c.Storage
	}
	if len(c.Sessions) > 0 {
		ours["sessions"] = c.Sessions
	}
	if n := c.Network; !n.isZero() {
		network := map[string]any{}
		set(network, "mac", n.MAC)
		if n.Address.IsValid() {
			network["address"] = n.Address.String()
		}
		if n.Gateway.IsValid() {
			network["gateway"] = n.Gateway.String()
		}
		if len(n.DNS) > 0 {
			network["dns"] = n.DNS
		}
		if len(n.NTP) > 0 {
			network["ntp"] = n.NTP
		}
		if n.MTU > 0 {
			network["mtu"] = strconv.Itoa(n.MTU)
		}
		ours["network"] = network
	}
	return yaml.Marshal(map[string]any{"cairn": ours})
}

// ParseCmdline reads the words "cairn.<key>=<value>" of a kernel command line: manager, fingerprint, token, name, mac,
// address, gateway, repositories, storage, sessions, dns and ntp (these with commas between), mtu. Other words are ignored; ok is false
// when there is none of ours. Secrets of sessions are refused: every process of the machine can read its command line.
func ParseCmdline(line string) (cfg Config, ok bool, err error) {
	values := map[string]string{}
	for word := range strings.FieldsSeq(line) {
		key, value, _ := strings.Cut(word, "=")
		key, ours := strings.CutPrefix(key, "cairn.")
		if !ours {
			continue
		}
		if !slices.Contains(keys, key) {
			return Config{}, true, invalid(fmt.Errorf("cairn.%s is not known; there are %s", key, strings.Join(keys, ", ")))
		}
		values[key] = value
	}
	cfg, err = build(values)
	for _, text := range cfg.Sessions {
		if s, e := parseSession(text); e == nil && s.secret != "" {
			return Config{}, true, invalid(errors.New("cairn.sessions has a CHAP secret, which every process of this machine could read; give it by a seed or fw_cfg"))
		}
	}
	return cfg, len(values) > 0, err
}

// keys are the configuration's words, in the order of the documentation.
var keys = []string{"manager", "fingerprint", "token", "name", "repositories", "storage", "sessions", "mac", "address", "gateway", "dns", "ntp", "mtu"}

// build checks the values and puts them together.
func build(v map[string]string) (Config, error) {
	c := Config{Manager: v["manager"], Token: v["token"], Name: v["name"]}
	var errs []error
	check := func(key string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", key, err))
		}
	}
	if c.Manager != "" {
		check("manager", checkHostPort(c.Manager))
	}
	var err error
	c.Fingerprint, err = parseFingerprint(v["fingerprint"])
	check("fingerprint", err)
	check("token", printable(c.Token))
	check("name", checkName(c.Name))
	for _, dir := range splitList(v["repositories"]) {
		if !filepath.IsAbs(dir) {
			check("repositories", fmt.Errorf("%q is no absolute path", dir))
		}
		c.Repositories = append(c.Repositories, filepath.Clean(dir))
	}
	for _, text := range splitList(v["storage"]) {
		_, err := parseShare(text)
		check("storage", err)
		c.Storage = append(c.Storage, text)
	}
	for _, text := range splitList(v["sessions"]) {
		_, err := parseSession(text)
		check("sessions", err)
		c.Sessions = append(c.Sessions, text)
	}
	check("network", c.Network.parse(v))
	if len(errs) > 0 {
		return Config{}, invalid(errors.Join(errs...))
	}
	return c, nil
}

func (n *Network) parse(v map[string]string) error {
	var errs []error
	if mac := v["mac"]; mac != "" {
		hw, err := net.ParseMAC(mac)
		errs = append(errs, err)
		n.MAC = hw.String()
	}
	if text := v["address"]; text != "" {
		var err error
		n.Address, err = netip.ParsePrefix(text)
		errs = append(errs, err)
	}
	if text := v["gateway"]; text != "" {
		var err error
		n.Gateway, err = netip.ParseAddr(text)
		errs = append(errs, err)
	}
	for _, text := range splitList(v["dns"]) {
		a, err := netip.ParseAddr(text)
		errs = append(errs, err)
		n.DNS = append(n.DNS, a)
	}
	for _, host := range splitList(v["ntp"]) {
		errs = append(errs, printable(host))
		n.NTP = append(n.NTP, host)
	}
	if text := v["mtu"]; text != "" {
		m, err := strconv.Atoi(text)
		if err == nil && (m < 576 || m > 65535) {
			err = fmt.Errorf("an MTU of %d is not between 576 and 65535", m)
		}
		errs = append(errs, err)
		n.MTU = m
	}
	if n.Gateway.IsValid() && !n.Address.IsValid() {
		errs = append(errs, errors.New("a gateway needs an address; with DHCP the server names it"))
	}
	return errors.Join(errs...)
}

// over returns the configuration with its empty values filled from another one.
func (c Config) over(other Config) Config {
	fill := func(to *string, from string) {
		if *to == "" {
			*to = from
		}
	}
	fill(&c.Manager, other.Manager)
	fill(&c.Fingerprint, other.Fingerprint)
	fill(&c.Token, other.Token)
	fill(&c.Name, other.Name)
	if len(c.Repositories) == 0 {
		c.Repositories = other.Repositories
	}
	if len(c.Storage) == 0 {
		c.Storage = other.Storage
	}
	if len(c.Sessions) == 0 {
		c.Sessions = other.Sessions
	}
	if c.Network.isZero() {
		c.Network = other.Network
	}
	c.Sources = append(slices.Clone(c.Sources), other.Sources...)
	return c
}

func (n Network) isZero() bool {
	return n.MAC == "" && !n.Address.IsValid() && !n.Gateway.IsValid() && len(n.DNS) == 0 && len(n.NTP) == 0 && n.MTU == 0
}

func parseFingerprint(s string) (string, error) {
	s = strings.ToLower(strings.ReplaceAll(s, ":", ""))
	s = strings.TrimPrefix(s, "sha256")
	if s == "" {
		return "", nil
	}
	if p, err := hex.DecodeString(s); err != nil || len(p) != 32 {
		return "", errors.New("it is not 64 hexadecimal digits, a SHA-256")
	}
	return s, nil
}

func checkHostPort(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return fmt.Errorf("%q is no port", port)
	}
	if host == "" {
		return errors.New("the host is missing")
	}
	return printable(host)
}

// checkName accepts what is a host name, since it becomes one.
func checkName(s string) error {
	if len(s) > 63 {
		return errors.New("it is longer than 63 characters")
	}
	for i, r := range s {
		inner := i > 0 && i < len(s)-1
		if !('a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || '0' <= r && r <= '9' || inner && (r == '-' || r == '.')) {
			return fmt.Errorf("%q has characters that a host name cannot have", s)
		}
	}
	return nil
}

func printable(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("it has spaces or characters that are not ASCII")
	}
	return nil
}

func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

func invalid(err error) error {
	return fault.Wrap(fault.Invalid, "read the mover's configuration", "", err).Explain(
		"The mover cannot tell what it was told.", "docs/images.md shows the keys and their form.")
}
