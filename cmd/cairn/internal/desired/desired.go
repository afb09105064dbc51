// Package desired reads files that say what connections, repositories, policies and exclusions there shall be, and writes them.
//
// It knows the files and nothing of an appliance: package command compares the two. Its invariant: what it does not understand is an
// error that names file and line, and the text of a secret is never part of an error or of what it writes.
package desired

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/cairn-backup/cairn/api/client"
	"github.com/cairn-backup/cairn/internal/fault"
)

// State is what there shall be. Its members are those of the API's requests (api/openapi.yaml) but for the names of repositories, which
// stand in the place of ids, and for passwords.
type State struct {
	Connections  []Connection              `json:"connections"`
	Repositories []Repository              `json:"repositories"`
	Policies     []client.PolicyRequest    `json:"policies"` // Repository is a name
	Exclusions   []client.ExclusionRequest `json:"exclusions"`
}

// Connection is a connection. Without a password the one that is stored stays.
type Connection struct {
	Name     string            `json:"name"`
	Platform string            `json:"platform"`
	Address  string            `json:"address"`
	User     string            `json:"user,omitempty"`
	Password *Secret           `json:"password,omitempty"`
	Options  map[string]string `json:"options,omitempty"`
}

// Secret says where a secret is: one of the two.
type Secret struct {
	File string `json:"file,omitempty"` // relative to the file that names it
	Env  string `json:"env,omitempty"`
	dir  string
}

// Repository is a repository. What is said of making it counts only when it is made.
type Repository struct {
	client.CreateRepositoryRequest                              // DomainOf is a name
	Verification                   *client.VerificationSettings `json:"verification,omitempty"`
}

// Read reads files, directories (of which those named *.yaml and *.yml, in the order of their names) and, for "-", stdin.
func Read(sources []string, stdin io.Reader) (State, error) {
	var all State
	for _, source := range sources {
		files := []string{source}
		if info, err := os.Stat(source); err == nil && info.IsDir() {
			if files, err = filesOf(source); err != nil {
				return State{}, err
			}
		}
		for _, file := range files {
			if err := all.add(file, stdin); err != nil {
				return State{}, err
			}
		}
	}
	return all, all.check()
}

func filesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.Context("read", dir, err)
	}
	var out []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && (ext == ".yaml" || ext == ".yml") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	if len(out) == 0 {
		return nil, wrong("there is no *.yaml and no *.yml in %s", dir)
	}
	return out, nil
}

func wrong(format string, args ...any) error {
	return fault.New(fault.Invalid, "", "", format, args...).Explain("", "docs/declared.md says what a file may hold; \"cairn export\" writes one.")
}

// add reads the documents of one file.
func (s *State) add(file string, stdin io.Reader) error {
	name, dir, in := file, filepath.Dir(file), stdin
	if file == "-" {
		name, dir = "standard input", "."
	} else {
		f, err := os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			return fault.New(fault.NotFound, "read", file, "there is no such file or directory")
		}
		if err != nil {
			return fault.Context("read", file, err)
		}
		defer f.Close()
		in = f
	}
	d := yaml.NewDecoder(in)
	for {
		var doc yaml.Node
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return wrong("%s: %v", name, err)
		}
		var part State
		if err := decode(&doc, &part); err != nil {
			return wrong("%s, %v", name, err)
		}
		for _, c := range part.Connections {
			if c.Password != nil {
				c.Password.dir = dir
			}
		}
		s.Connections = append(s.Connections, part.Connections...)
		s.Repositories = append(s.Repositories, part.Repositories...)
		s.Policies = append(s.Policies, part.Policies...)
		s.Exclusions = append(s.Exclusions, part.Exclusions...)
	}
}

// check looks for what cannot be meant.
func (s *State) check() error {
	var errs []error
	twice := func(noun string, names []string) {
		slices.Sort(names)
		for i, name := range names {
			if name == "" {
				errs = append(errs, wrong("a %s has no name", noun))
			}
			if i > 0 && names[i-1] == name && name != "" {
				errs = append(errs, wrong("%s %q is there twice", noun, name))
			}
		}
	}
	twice("connection", namesOf(s.Connections, func(c Connection) string { return c.Name }))
	twice("repository", namesOf(s.Repositories, func(r Repository) string { return r.Name }))
	twice("policy", namesOf(s.Policies, func(p client.PolicyRequest) string { return p.Name }))
	filters := namesOf(s.Exclusions, func(e client.ExclusionRequest) string { return e.Filter })
	slices.Sort(filters)
	for i := 1; i < len(filters); i++ {
		if filters[i] == filters[i-1] {
			errs = append(errs, wrong("the exclusion of %q is there twice", filters[i]))
		}
	}
	for _, c := range s.Connections {
		if p := c.Password; p != nil && (p.File == "") == (p.Env == "") {
			errs = append(errs, wrong("the password of connection %q is neither {file: PATH} nor {env: NAME}", c.Name))
		}
	}
	errs = append(errs, s.lacking()...)
	if len(errs) > 0 {
		return errs[0]
	}
	return nil
}

// lacking looks for what everything of its kind needs: a plan would else be made that cannot be carried out.
func (s *State) lacking() (errs []error) {
	needs := func(noun, name, member, value string) {
		if value == "" {
			errs = append(errs, wrong("%s %q has no %s", noun, name, member))
		}
	}
	for _, c := range s.Connections {
		needs("connection", c.Name, "platform", c.Platform)
		needs("connection", c.Name, "address", c.Address)
	}
	for _, r := range s.Repositories {
		if len(r.Set.Members) == 0 {
			needs("repository", r.Name, "path", r.Path)
		}
	}
	for _, p := range s.Policies {
		needs("policy", p.Name, "filter", p.Filter)
		needs("policy", p.Name, "schedule", p.Schedule)
	}
	for _, e := range s.Exclusions {
		needs("an exclusion with the reason", e.Reason, "filter", e.Filter)
		needs("the exclusion of", e.Filter, "reason", e.Reason)
	}
	return errs
}

func namesOf[T any](all []T, name func(T) string) []string {
	out := make([]string, len(all))
	for i, v := range all {
		out[i] = name(v)
	}
	return out
}

// Resolve reads a secret from where it is; "" for none.
func (s *Secret) Resolve(getenv func(string) string) (string, error) {
	if s == nil {
		return "", nil
	}
	if s.Env != "" {
		if v := getenv(s.Env); v != "" {
			return v, nil
		}
		return "", fault.New(fault.NotFound, "read secret", s.Env, "the environment variable is not set")
	}
	path := s.File
	if !filepath.IsAbs(path) {
		path = filepath.Join(s.dir, path)
	}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fault.New(fault.NotFound, "read secret", path, "there is no such file")
	}
	if err != nil {
		return "", fault.Context("read secret", path, err)
	}
	text := strings.TrimRight(string(b), "\r\n")
	if text == "" {
		return "", wrong("the secret in %s is empty", path)
	}
	return text, nil
}

// Write writes a state as a file that Read reads. No secret is in it.
func Write(w io.Writer, s State) error {
	e := yaml.NewEncoder(w)
	e.SetIndent(2)
	node, err := encode(s)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	return errors.Join(e.Encode(node), e.Close())
}
