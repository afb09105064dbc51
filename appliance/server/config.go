package server

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cairn-backup/cairn/appliance/httpapi"
	"github.com/cairn-backup/cairn/internal/fault"
)

// defaultConfig is read if it is there.
const defaultConfig = "/etc/cairn/cairnd.yaml"

// option is one setting: its flag and key in the configuration file, and its environment variable. Flags go before the
// environment, that before the file, and that before the default.
type option struct {
	name, env, fallback, usage string
	set                        func(s *settings, value string) error
	boolean                    bool
	show                       func(value string) string // hides what is secret; nil shows all
}

func options() []option {
	return []option{
		{name: "data", env: "CAIRN_DATA", fallback: "/var/lib/cairn", usage: "data `directory`", set: func(s *settings, v string) error {
			s.dir = v
			return check(v != "", "it is empty")
		}},
		{
			name: "database", env: "CAIRN_DATABASE", show: redactAddress,
			usage: "PostgreSQL database for the catalog, instead of one in the data directory: `file:PATH`, credential:NAME or env:NAME, which hold its address, or the address itself",
			set:   func(s *settings, v string) error { s.source = v; return nil },
		},
		{name: "listen", env: "CAIRN_LISTEN", fallback: ":8440", usage: "`address` and port of the API", set: func(s *settings, v string) error {
			s.listen = v
			return checkAddress(v)
		}},
		{name: "movers", env: "CAIRN_MOVERS", fallback: ":8441", usage: "`address` and port for movers, or none", set: func(s *settings, v string) error {
			s.movers = v
			if v == noMovers {
				return nil
			}
			return checkAddress(v)
		}},
		{name: "images", env: "CAIRN_IMAGES_DIR", fallback: "/usr/share/cairn/images", usage: "`directory` with the mover images", set: func(s *settings, v string) error {
			s.images = v
			return nil
		}},
		{name: "hosts", env: "CAIRN_HOSTS", usage: "more `names` and addresses for the certificate, separated by commas", set: func(s *settings, v string) error {
			s.hosts = strings.FieldsFunc(v, func(r rune) bool { return r == ',' })
			return check(!strings.ContainsAny(v, " \t\n"), "names are separated by commas alone")
		}},
		{name: "workers", env: "CAIRN_WORKERS", fallback: "4", usage: "tasks at once", set: func(s *settings, v string) (err error) {
			s.workers, err = number(v, 1, 1000)
			return err
		}},
		{
			name: "requests", env: "CAIRN_REQUESTS", fallback: strconv.Itoa(httpapi.DefaultRate.PerSecond),
			usage: "requests a second that the API answers one token for long; four times as many at once", set: func(s *settings, v string) (err error) {
				s.rate.PerSecond, err = number(v, 1, 1_000_000)
				s.rate.Burst = 4 * s.rate.PerSecond
				return err
			},
		},
		{name: "vm-metrics", env: "CAIRN_VM_METRICS", fallback: "true", boolean: true, usage: "series of each VM in /metrics", set: func(s *settings, v string) (err error) {
			if s.vmSeries, err = strconv.ParseBool(v); err != nil {
				err = errors.New("it is neither true nor false")
			}
			return err
		}},
		{name: "log-level", env: "CAIRN_LOG_LEVEL", fallback: "info", usage: "debug, info, warn or error", set: func(s *settings, v string) error {
			return s.level.UnmarshalText([]byte(v))
		}},
	}
}

func check(ok bool, wrong string) error {
	if !ok {
		return errors.New(wrong)
	}
	return nil
}

func checkAddress(v string) error {
	_, port, err := net.SplitHostPort(v)
	if err == nil {
		_, err = number(port, 0, 65535)
	}
	if err != nil {
		return errors.New("it is not an address and a port, as in :8440 or 192.0.2.1:8440")
	}
	return nil
}

func number(v string, least, most int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("it is not a number from %d to %d", least, most)
	}
	return n, nil
}

// chosen is the value of a setting and where it comes from.
type chosen struct{ value, from string }

// configured is all settings, by name, and what they make.
type configured struct {
	values map[string]chosen
	settings
}

// configure reads the command line, the environment and the configuration file. more adds flags of a command's own.
func configure(name string, args []string, getenv func(string) string, output io.Writer, more ...func(*flag.FlagSet)) (configured, error) {
	c := configured{values: map[string]chosen{}}
	given := map[string]string{}
	f := flag.NewFlagSet(name, flag.ContinueOnError)
	f.SetOutput(output)
	path := f.String("config", getenv("CAIRND_CONFIG"), "configuration `file` (CAIRND_CONFIG); "+defaultConfig+" if it is there")
	for _, o := range options() {
		take := func(v string) error { given[o.name] = v; return nil }
		usage := o.usage + " (" + o.env
		if o.fallback != "" {
			usage += "; default " + o.fallback
		}
		if usage += ")"; o.boolean {
			f.BoolFunc(o.name, usage, take)
			continue
		}
		f.Func(o.name, usage, take)
	}
	for _, add := range more {
		add(f)
	}
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fault.New(fault.Invalid, "read command line", "", "unexpected argument %q", f.Arg(0))
	}
	file, err := readConfig(*path)
	if err != nil {
		return c, err
	}
	for _, o := range options() {
		v := chosen{o.fallback, "default"}
		if inFile, ok := file[o.name]; ok {
			v = inFile
		}
		if e := getenv(o.env); e != "" {
			v = chosen{e, o.env}
		}
		if g, ok := given[o.name]; ok {
			v = chosen{g, "--" + o.name}
		}
		if err := o.set(&c.settings, v.value); err != nil {
			shown := v.value
			if o.show != nil {
				shown = o.show(shown)
			}
			return c, fault.New(fault.Invalid, "read configuration", "", "%s is %q (%s): %v", o.name, shown, v.from, err).Explain(
				"cairnd does not start with a setting that it cannot carry out.", "Correct it where it comes from. `cairnd config print` shows all settings.")
		}
		c.values[o.name] = v
	}
	c.hosts = append(ownNames(), c.hosts...)
	c.database, err = readSecret(c.source, getenv)
	if err == nil && c.source != "" && c.database == "" {
		err = fault.New(fault.Invalid, "read configuration", "", "database is %s, where nothing is", redactAddress(c.source)).Explain(
			"cairnd would make a catalog of its own in the data directory instead of using the database.", "Put the address of the database there.")
	}
	return c, err
}

// shown are all settings that are not what they are by default, without secrets.
func (c configured) shown() map[string]string {
	out := map[string]string{}
	for _, o := range options() {
		v := c.values[o.name]
		if v.from == "default" {
			continue
		}
		if o.show != nil {
			v.value = o.show(v.value)
		}
		out[o.name] = v.value
	}
	return out
}

// readConfig reads the configuration file, a YAML mapping of the settings' names; "" is the default one, which may be missing.
func readConfig(path string) (map[string]chosen, error) {
	p := path
	if p == "" {
		p = defaultConfig
	}
	raw, err := os.ReadFile(p)
	if path == "" && errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Context("read configuration", p, err)
	}
	values, err := parseConfig(filepath.Base(p), raw)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, "read configuration", p, err).Explain(
			"cairnd does not start with a configuration that it cannot carry out as it is written.",
			"Correct the line. `cairnd config check` looks at the file, `cairnd config print` shows every setting.")
	}
	return values, nil
}

func parseConfig(file string, raw []byte) (map[string]chosen, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return nil, err
	}
	out := map[string]chosen{}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return out, nil // nothing but comments
	}
	top := doc.Content[0]
	if top.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: settings are written as name: value", top.Line)
	}
	for i := 0; i < len(top.Content); i += 2 {
		key, value := top.Content[i], top.Content[i+1]
		if !slices.ContainsFunc(options(), func(o option) bool { return o.name == key.Value }) {
			return nil, fmt.Errorf("line %d: there is no setting %q; there are %s", key.Line, key.Value, strings.Join(optionNames(), ", "))
		}
		if _, twice := out[key.Value]; twice {
			return nil, fmt.Errorf("line %d: %s is set twice", key.Line, key.Value)
		}
		text, err := scalar(value)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", value.Line, key.Value, err)
		}
		out[key.Value] = chosen{text, fmt.Sprintf("%s, line %d", file, key.Line)}
	}
	return out, nil
}

// scalar is a value as it would be on the command line; a list is joined by commas.
func scalar(n *yaml.Node) (string, error) {
	switch n.Kind {
	case yaml.ScalarNode:
		if n.Tag == "!!null" {
			return "", nil
		}
		return n.Value, nil
	case yaml.SequenceNode:
		var parts []string
		for _, item := range n.Content {
			if item.Kind != yaml.ScalarNode {
				return "", errors.New("a list is of simple values")
			}
			parts = append(parts, item.Value)
		}
		return strings.Join(parts, ","), nil
	}
	return "", errors.New("it is a simple value or a list")
}

func optionNames() (names []string) {
	for _, o := range options() {
		names = append(names, o.name)
	}
	return names
}

// configCommand is `cairnd config check` and `cairnd config print`.
func configCommand(args []string, getenv func(string) string, stdout, stderr io.Writer) error {
	if len(args) == 0 || args[0] != "check" && args[0] != "print" {
		return fault.New(fault.Invalid, "read command line", "", "config check, or config print").Explain(
			"The first says whether the configuration can be used, the second what it amounts to.", "cairnd config check --config /etc/cairn/cairnd.yaml")
	}
	c, err := configure("cairnd config "+args[0], args[1:], getenv, stderr)
	if err != nil {
		return err
	}
	if args[0] == "check" {
		_, err := fmt.Fprintln(stdout, "The configuration can be used.")
		return err
	}
	text, err := c.printed()
	if err == nil {
		_, err = io.WriteString(stdout, text)
	}
	return err
}

// printed is every setting as it counts and where it comes from, without secrets.
func (c configured) printed() (string, error) {
	var out strings.Builder
	for _, o := range options() {
		v := c.values[o.name]
		if o.show != nil {
			v.value = o.show(v.value)
		}
		text, err := yaml.Marshal(map[string]yaml.Node{o.name: {Kind: yaml.ScalarNode, Value: v.value}})
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "%s # %s\n", strings.TrimSpace(string(text)), v.from)
	}
	return out.String(), nil
}
