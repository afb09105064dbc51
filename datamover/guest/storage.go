package guest

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// StorageDir is where a Debian mover and the appliance's image mount the shares of Config.Storage: the first as 1, the second as 2.
const StorageDir = "/srv/storage"

// share is one of Config.Storage.
type share struct{ host, port, path string }

// parseShare reads "nfs://host/path" or "nfs://host:port/path". What it accepts can be a word of mount's command line.
func parseShare(text string) (share, error) {
	u, err := url.Parse(text)
	if err != nil {
		return share{}, err
	}
	s := share{host: u.Hostname(), port: u.Port(), path: u.Path}
	if u.Scheme != "nfs" || s.host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Opaque != "" {
		return share{}, fmt.Errorf("%q is not of the form nfs://host/path", text)
	}
	if err := checkName(s.host); err != nil && net.ParseIP(s.host) == nil {
		return share{}, err
	}
	if s.port != "" {
		if n, err := strconv.Atoi(s.port); err != nil || n < 1 || n > 65535 {
			return share{}, fmt.Errorf("%q is no port", s.port)
		}
	}
	if s.path == "" || path.Clean(s.path) != s.path {
		return share{}, fmt.Errorf("the share's path %q is not an absolute path in its shortest form", s.path)
	}
	if err := printable(s.path); err != nil {
		return share{}, errors.Join(fmt.Errorf("the share's path %q", s.path), err)
	}
	return s, nil
}

// Directories returns where storage of repositories is: Repositories, and where the Storage is mounted.
func (c Config) Directories() []string {
	dirs := append([]string(nil), c.Repositories...)
	for i := range c.Storage {
		dirs = append(dirs, filepath.Join(StorageDir, strconv.Itoa(i+1)))
	}
	return dirs
}

// mountTable has a line for each share: the directory, what is mounted there and the options, as mount(8) takes them.
//
// A server that does not answer gives errors after some minutes instead of blocking for ever (softerr): what Cairn writes is
// checked and never written over, so an error loses nothing, and a mover must be able to say so.
func (c Config) mountTable() string {
	var b strings.Builder
	for i, text := range c.Storage {
		s, err := parseShare(text)
		if err != nil {
			continue // build has refused it
		}
		host := s.host
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		options := "softerr,timeo=300,retrans=3,noatime,nosuid,nodev,noexec"
		if s.port != "" {
			options += ",port=" + s.port
		}
		fmt.Fprintf(&b, "%s/%d %s:%s %s\n", StorageDir, i+1, host, s.path, options)
	}
	return b.String()
}
